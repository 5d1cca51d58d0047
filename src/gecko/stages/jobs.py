"""What the stages do with a shard, in a form that can be sent to another process: see :mod:`gecko.run.engine`.

``Write``, ``Mine`` and ``Judge`` hold what all shards of a stage need, and are called with a shard's task.
Models are had by calling a loader: in this process the pipeline's own, elsewhere one that was sent along
(:class:`SentTeacher`, :mod:`gecko.run.remote_model`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gecko.config.stages import GenerateConfig, RelabelConfig
from gecko.core.counts import Counts
from gecko.core.errors import TeacherError
from gecko.core.progress import Silent
from gecko.core.records import Candidate, Passage, Query, Score
from gecko.fret.seeds import Seed
from gecko.prompts import Prompt
from gecko.run.engine import another_model

if TYPE_CHECKING:
    import numpy as np

    from gecko.encoder import Encoder
    from gecko.llm.base import LanguageModel

TeacherLoader = Callable[[Counts], "LanguageModel"]
EncoderLoader = Callable[[], "Encoder"]


@dataclass
class SentTeacher:
    """A teacher that is loaded where the work is.

    Attributes:
        spec: an LLM SPEC.
        identity: that its weights must have.
        config: how it reads.
        scores: whether it must return the log-probabilities of a given text.
    """

    spec: str
    identity: str
    config: RelabelConfig
    scores: bool
    _loaded: "LanguageModel | None" = field(default=None, init=False, repr=False)

    def __call__(self, counts: Counts) -> "LanguageModel":
        """The teacher; the time that loading it takes is not counted as work.

        Raises:
            TeacherError: it cannot be loaded, or is another one here.
        """
        if self._loaded is None:
            from gecko.llm.registry import check_scores, load_teacher

            began = time.perf_counter()
            loaded = load_teacher(self.spec, self.config, Silent())
            if loaded.identity != self.identity:
                raise TeacherError(another_model(self.spec, loaded.identity, self.identity))
            if self.scores:
                check_scores(loaded)
            self._loaded = loaded
            counts.waited += time.perf_counter() - began
        return self._loaded


@dataclass(frozen=True)
class Writing:
    """A shard of ``generate``: the seeds to write for, their passages, and what is written of the shard and of them."""

    seeds: Sequence[Seed]
    passages: dict[str, Passage]
    written: list[Query]
    earlier: list[Query]


@dataclass(frozen=True)
class Write:
    """Stage ``generate``."""

    teacher: TeacherLoader
    prompt: Prompt
    config: GenerateConfig
    seed: int

    def __call__(self, task: Writing, counts: Counts) -> list[Query]:
        """The queries of a shard."""
        from gecko.fret.generate import generate

        if not task.seeds:
            return task.written
        teacher, before = self.teacher(counts), task.written + task.earlier
        new = generate(task.seeds, task.passages, teacher, self.prompt, self.config, self.seed, counts, before)
        return [*task.written, *new]


@dataclass(frozen=True)
class Mine:
    """Stage ``mine``: the encoder, the passages' ids, how to come by each part of their vectors, and N."""

    encoder: EncoderLoader
    ids: Callable[[], Sequence[str]]
    parts: Sequence[Callable[[], "np.ndarray"]]
    n: int

    def __call__(self, queries: Sequence[Query], counts: Counts) -> list[Candidate]:
        """The candidates of each query."""
        from gecko.fret.mine import mine

        asked = self.encoder().queries([query.text for query in queries], [query.task for query in queries])
        return list(mine(queries, asked, self.ids(), self.parts, self.n))


@dataclass(frozen=True)
class Judging:
    """A shard of ``relabel``: passages, each with the queries that retrieved it, and the scores that are known."""

    pairs: Sequence[tuple[Passage, Sequence[Query]]]
    known: Mapping[tuple[str, str], Score]


@dataclass(frozen=True)
class Judge:
    """Stage ``relabel``."""

    teacher: TeacherLoader
    likelihood: Prompt
    relevance: Prompt

    def __call__(self, task: Judging, counts: Counts) -> list[Score]:
        """The scores of a shard."""
        from gecko.fret.relabel import relabel

        asked = [(query.id, passage.id) for passage, queries in task.pairs for query in queries]
        if all(pair in task.known for pair in asked):
            return [task.known[pair] for pair in asked]
        return list(relabel(task.pairs, self.teacher(counts), self.likelihood, self.relevance, counts, task.known))
