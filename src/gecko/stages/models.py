"""The models of a run: the start model and the teachers, loaded when they are first needed, here or where the work is."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Protocol

from gecko.config.run import RunConfig
from gecko.config.stages import RelabelConfig
from gecko.core.counts import Counts
from gecko.core.errors import TeacherError
from gecko.core.progress import Silent, Ui
from gecko.run.engine import Executor, RemoteModel, another_model

if TYPE_CHECKING:
    from gecko.encoder import Encoder
    from gecko.llm.base import LanguageModel, Usage

TeacherLoader = Callable[[Counts], "LanguageModel"]
EncoderLoader = Callable[[], "Encoder"]


@dataclass
class RemoteEncoder(RemoteModel["Encoder"]):
    """An encoder; ``spec`` and ``pad_token`` as for :func:`gecko.encoder.load_encoder`."""

    pad_token: str = ""

    def _load(self) -> "Encoder":
        from gecko.encoder import load_encoder

        return load_encoder(self.spec, pad_token=self.pad_token)


@contextmanager
def _waiting(counts: Counts) -> Iterator[None]:
    began = time.perf_counter()
    yield
    counts.waited += time.perf_counter() - began


@dataclass
class RemoteTeacher:
    """A teacher that is loaded where the work is.

    ``identity`` is that of its weights, and ``scores`` whether it must return the log-probabilities of a given text.
    """

    spec: str
    identity: str
    config: RelabelConfig
    scores: bool
    _loaded: "LanguageModel | None" = field(default=None, init=False, repr=False)

    def __call__(self, counts: Counts) -> "LanguageModel":
        """The teacher; the time that loading it takes is not counted as work.

        Raises TeacherError: it cannot be loaded, or is another one here.
        """
        if self._loaded is None:
            from gecko.llm.registry import check_scores, load_teacher

            with _waiting(counts):
                loaded = load_teacher(self.spec, self.config, Silent())
                if loaded.identity != self.identity:
                    raise TeacherError(another_model(self.spec, loaded.identity, self.identity))
                if self.scores:
                    check_scores(loaded)
            self._loaded = loaded
        return self._loaded


class Asks(Protocol):
    """Who asks for models: the context of a run, which decides whether and how its teachers may be asked."""

    ui: Ui
    engine: Executor

    @property
    def config(self) -> RunConfig:
        """The settings of the run."""

    def may_ask(self) -> None:
        """Called before a teacher is loaded. Raises RunError: none may be."""

    def can_judge(self, teacher: "LanguageModel") -> None:
        """Called with the teacher that was loaded. Raises TeacherError: it cannot do what the run needs."""

    def needs_likelihood(self) -> bool:
        """Whether the teacher must return the log-probabilities of a given text."""


class Models:
    """The start model and the teachers of a run; where its engine does the work elsewhere, models are loaded there."""

    def __init__(self, context: Asks) -> None:
        self.context, self.config, self.ui, self.engine = context, context.config, context.ui, context.engine
        self._teacher: LanguageModel | None = None

    @cached_property
    def start_identity(self) -> str:
        """Hash of the start model."""
        from gecko.encoder import model_identity

        return model_identity(self.config.backbone)

    @cached_property
    def start(self) -> "Encoder":
        """The start model, in its own input format."""
        from gecko.encoder import load_encoder

        return load_encoder(self.config.backbone, pad_token=self.config.train.backbone.pad_token)

    @cached_property
    def start_outline(self) -> "Encoder":
        """The start model without its weights, for what it reads; it embeds nothing."""
        from gecko.encoder.encoder import load_outline

        return load_outline(self.config.backbone, pad_token=self.config.train.backbone.pad_token)

    @property
    def start_loader(self) -> EncoderLoader:
        """The start model where the work is done."""
        if self.engine.remote:
            return RemoteEncoder(self.config.backbone, self.start_identity, self.config.train.backbone.pad_token)
        return lambda: self.start

    @cached_property
    def teacher_identity(self) -> str:
        """Hash of the teacher's weights."""
        from gecko.llm.registry import teacher_identity

        return teacher_identity(self.config.llm)

    @property
    def teacher(self) -> "LanguageModel":
        """The teacher, loaded on first use."""
        if self._teacher is None:
            began = time.perf_counter()
            teacher = self._load(self.config.llm)
            self.context.can_judge(teacher)
            self._teacher = teacher
            self.ui.say(f"{teacher.name} is ready after {time.perf_counter() - began:.0f} s")
        return self._teacher

    @teacher.setter
    def teacher(self, teacher: "LanguageModel") -> None:
        self._teacher = teacher

    @property
    def usage(self) -> "Usage | None":
        """What the teacher in this process has taken so far; none where there is none."""
        return self._teacher.usage if self._teacher else None

    def loaded_teacher(self, counts: Counts) -> "LanguageModel":
        """The teacher; the time that loading it takes is not counted as work."""
        with _waiting(counts):
            return self.teacher

    @property
    def teacher_loader(self) -> TeacherLoader:
        """The teacher where the work is done."""
        if self.engine.remote:
            scores = self.context.needs_likelihood()
            self.forget_teacher()  # this process has no more use for it, and may share its memory with a worker
            return RemoteTeacher(self.config.llm, self.teacher_identity, self.config.relabel, scores)
        return self.loaded_teacher

    def _load(self, spec: str) -> "LanguageModel":
        from gecko.llm.registry import load_teacher

        self.context.may_ask()
        self.ui.say(f"loading the teacher ({spec})")
        return load_teacher(spec, self.config.relabel, self.ui)

    def other_teacher(self, spec: str) -> TeacherLoader:
        """A further teacher, loaded on first use in the place of the one before."""
        from gecko.llm.registry import teacher_identity

        if self.engine.remote:
            return RemoteTeacher(spec, teacher_identity(spec), self.config.relabel, scores=False)

        @cache
        def load() -> "LanguageModel":
            self.forget_teacher()
            return self._load(spec)

        def loaded(counts: Counts) -> "LanguageModel":
            with _waiting(counts):
                return load()

        return loaded

    def forget_teacher(self) -> None:
        """Free the teacher's memory."""
        self._teacher = None
        gc.collect()
