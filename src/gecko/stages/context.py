"""What a stage works with: the run as it is read, its models, who does the work, and where sentences go."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from gecko.core.errors import ConfigError, RunError, TeacherRefused
from gecko.core.progress import Silent, Ui
from gecko.fret.judging import FORMS, JudgeForm, form_of
from gecko.fret.view import RunView
from gecko.llm import registry
from gecko.llm.base import LanguageModel
from gecko.run.engine import LOCAL, Executor
from gecko.run.folder import Run
from gecko.stages.models import Models

T = TypeVar("T")
C = TypeVar("C", bound="Context")


class Context(RunView):
    """All that the stages of one run share.

    Args:
        run: the run folder, held.
        ui: where sentences and progress go.
        force: go on with a teacher that the check refuses.
        asks: whether a teacher may be loaded; what would ask one is an error otherwise.
        engine: embeds the corpus, generates, mines and relabels.
    """

    def __init__(
        self, run: Run, ui: Ui | None = None, *, force: bool = False, asks: bool = True, engine: Executor = LOCAL
    ) -> None:
        super().__init__(run)
        self.ui: Ui = ui or Silent()
        self.engine = engine
        self.models = Models(self)
        self._form: JudgeForm | None = None  # that was found by asking the teacher
        # Whoever changes settings has not yet seen what the teacher check says of them.
        self.override_check = force and not run.changed
        self.command = ""  # of the stage that is being made
        self._asks = asks
        self._kept: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What is dear to load and the same for the whole call: made when it is first asked for by this name."""
        if name not in self._kept:
            self._kept[name] = make()
        return cast(T, self._kept[name])

    def teacher_parts(self, *roles: str) -> dict[str, str]:
        """What a result of the teacher depends on: its weights and the prompts of these roles."""
        prompts = {f"prompt {role}": self.prompts[role].hash for role in roles}
        return {"teacher": self.models.teacher_identity} | prompts

    # --- how the teacher judges

    @property
    def form(self) -> JudgeForm:
        """How the teacher judges. Where the settings leave that to a server, it is asked once, and the run goes on so.

        Raises ConfigError: the settings name a form that this kind of teacher does not have. TeacherError: it can judge
        in none.
        """
        found = self._known_form("relabel", self.config.llm) or self._form
        if found is None:
            self.can_judge(self.models.teacher)  # it was not asked where it was not loaded here
            assert self._form is not None
            found = self._form
        return found

    def form_of(self, folder: str, spec: str) -> JudgeForm:
        """The same of a further teacher, whose judgements are in a folder; one without answers judges as it can."""

        def ask() -> JudgeForm:
            teacher = registry.load_teacher(spec, self.config.relabel, self.ui)
            return self._asked_form(teacher)

        return self.once(f"form of {spec}", lambda: self._known_form(folder, spec) or ask())

    def judging_parts(self, form: JudgeForm) -> dict[str, str]:
        """What judgements in a form depend on: the teacher's weights, the prompts, and how they are asked for."""
        config, found = self.config.relabel, self.teacher_parts(*form.roles) | form.parts
        if form.name == "listwise":
            found["window"] = str(config.window)
        if form.name != "logprobs" and config.thinking_tokens:
            found["thinking tokens"] = str(config.thinking_tokens)
        return found

    def _known_form(self, folder: str, spec: str) -> JudgeForm | None:
        """The form where the settings, the kind of teacher or what the run has already made decide it."""
        wanted = self.config.relabel.judge
        if not registry.known(spec).answers:
            if wanted not in ("auto", "logprobs") and folder == "relabel":
                raise ConfigError(
                    f"relabel.judge = {wanted!r}, but {spec} gives log-probabilities and no answers in words; leave the "
                    "setting out, or serve the model and name the server: --llm openai:URL#MODEL"
                )
            return FORMS["logprobs"]
        if wanted != "auto":
            return FORMS[wanted]
        if not registry.known(spec).asked:
            return FORMS["logprobs"]
        identity = registry.teacher_identity(spec)
        for stage in (folder, "plan", "check") if folder == "relabel" else (folder,):
            manifest = self.run.manifest(stage)
            if manifest is not None and manifest.shards and manifest.parts.get("teacher") == identity:
                return form_of(manifest.parts)
        return None

    def can_judge(self, teacher: LanguageModel) -> None:
        """Decide how the teacher judges, if nothing has decided it, and make sure that it can.

        Raises TeacherError: it cannot.
        """
        known, relevance = self._known_form("relabel", self.config.llm) or self._form, self.prompts["relevance"]
        if known is None:
            self._form = known = self._asked_form(teacher)
        elif known.name == "logprobs":
            registry.check_labels(teacher, relevance)
        else:
            registry.check_answers(teacher, [self.prompts[role] for role in known.roles], known.name)
        if known.name == "logprobs" and self.config.select.fusion != "rc":
            registry.check_scores(teacher)

    def _asked_form(self, teacher: LanguageModel) -> JudgeForm:
        """The form that a teacher is asked for, and says."""
        relevance, graded = self.prompts["relevance"], self.prompts["graded"]
        likelihood = self.config.select.fusion != "rc"
        name, said = registry.judging_form(teacher, relevance, graded, likelihood=likelihood)
        self.ui.say(said)
        return FORMS[name]

    def needs_likelihood(self) -> bool:
        """Whether the teacher must return the log-probabilities of a given text."""
        return self.form.name == "logprobs" and self.config.select.fusion != "rc"

    @property
    def precision_parts(self) -> dict[str, str]:
        """What a choice of ``relabel.precision`` adds to what a score depends on; nothing where it is left to the machine."""
        precision = self.config.relabel.precision
        return {} if precision == "auto" else {"precision": precision}

    def refusing(self, check: Callable[[], None]) -> None:
        """Run a check of the teacher; what it refuses is a warning with ``force``."""
        try:
            check()
        except TeacherRefused as refusal:
            if not self.override_check:
                raise
            self.ui.say(f"warning, going on because of --accept-teacher: {refusal}")

    def may_ask(self) -> None:
        """Called before a teacher is loaded. Raises RunError: none may be."""
        if not self._asks:
            raise RunError(
                f"{self.run.path}: the stage {self.command} has to ask the teacher (its settings changed, or it is not "
                f"finished); run: gecko {self.command} {self.run.path}"
            )


def once(make: Callable[[C], T]) -> Callable[[C], T]:
    """A function of the context whose result is dear: made when it is first asked for, and the same for the whole call."""

    @wraps(make)
    def kept(context: C) -> T:
        return context.once(f"{make.__module__}.{make.__qualname__}", lambda: make(context))

    return kept
