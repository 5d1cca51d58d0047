"""The sets beside FRet as stages of a run: converted, and for those that ask for it labelled anew by the teacher.

::

    sets ─convert─▶ RUN/mixture ─▶ RUN/mine-NAME ─▶ RUN/relabel-NAME ─▶ RUN/select-NAME     for a set with ``relabel``
                          └──────────────────────────────────────────────────────────────▶ training, for the others

Relabelling a set that people labelled (RLHN) takes the steps of FRet: the human positive is the seed, the candidates are
the passages of the set that the start model ranks first, and the teacher's fused scores choose positive and negative.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from gecko.config.mixture import FeverSet, MixtureSet, RetrievalSet
from gecko.config.run import RunConfig
from gecko.core.counts import Counts, drop_words
from gecko.core.errors import ConfigError, TrainingError
from gecko.core.files import digest
from gecko.core.records import Candidate, Example, Passage, Query
from gecko.corpus.tables import source_identity
from gecko.encoder.vectors import Vectors
from gecko.fret.mine import mine
from gecko.fret.select import group_labels, select
from gecko.fret.view import judgements
from gecko.run.folder import Run
from gecko.run.manifest import schema_digest
from gecko.run.shards import run_local
from gecko.stages.context import Context
from gecko.stages.judging import Judge, Work
from gecko.stages.mine import QUERIES_A_SHARD
from gecko.stages.spending import spending_bar
from gecko.stages.stage import Stage

VERSION = 1  # raised by hand when a set gives other rows for the same source and settings
DRAWN_BY = {"weight", "relabel"}  # settings of a set that its rows do not depend on


def refuse_names(run: Run) -> None:
    """Refuse a set to be relabelled whose folder would be that of a further teacher's scores, ``relabel-2``.

    One that was paid for under such a name stays readable. Raises ConfigError: the name is a number, and nothing of the
    set is there.
    """
    for entry in run.config.mixture.sets:
        if isinstance(entry, RetrievalSet | FeverSet) and entry.relabel and entry.name.isdecimal():
            scores = run.manifest(f"relabel-{entry.name}")
            if scores is None or "rows" not in scores.parts:
                raise ConfigError(
                    f"mixture.sets: a set named {entry.name} would have the folder relabel-{entry.name}, which holds the "
                    "scores of a further teacher; take a name with a letter"
                )


def mixture_rows(context: Context) -> list[Example]:
    """The training rows of all sets of the run's mixture, set by set; none where it has no sets.

    Raises TrainingError: a set cannot be read or converted; the message names set and row. RunError: a shard on disk is
    damaged.
    """
    from gecko.training.converters import convert

    run, config = context.run, context.config
    sets = config.mixture.sets
    if not sets:
        return []
    refuse_names(run)

    def identity(entry: MixtureSet) -> str:
        source = source_identity(entry.name, entry.source, entry.config, entry.split)
        if isinstance(entry, FeverSet):
            where = (entry.passages, entry.passages_config, entry.passages_split)
            source += source_identity(f"{entry.name} (passages)", *where)
        return digest(source, entry.model_dump_json(exclude=DRAWN_BY | {"source", "passages"}))

    parts = {
        "sets": digest(*map(identity, sets)),
        "seed": str(config.seed),
        "schema": schema_digest(Example),
        "version": str(VERSION),
    }

    def work(entry: MixtureSet, counts: Counts) -> list[Example]:
        rows = convert(entry, config.seed, counts.drops)
        dropped = drop_words(counts.drops)
        context.ui.say(f"{entry.name}: {len(rows):,} rows" + (f"; dropped: {dropped}" if dropped else ""))
        return rows

    run_local(run, "mixture", Example, parts, sets, work)
    converted: dict[str, list[Example]] = {entry.name: [] for entry in sets}
    for row in run.read("mixture", Example):
        converted[row.dataset].append(row)
    rows: list[Example] = []
    for entry in sets:
        again = isinstance(entry, RetrievalSet | FeverSet) and entry.relabel
        rows += _Relabelled(context, entry.name, converted[entry.name]).rows() if again else converted[entry.name]
    return rows


class _Relabelled:
    """One set, labelled anew.

    The positives and negatives of ``human``, its rows as people labelled them, are the passages. ``context`` gives the
    start model, the teacher, the prompts and the settings of FRet's own steps.
    """

    def __init__(self, context: Context, name: str, human: Sequence[Example]) -> None:
        self.context, self.run, self.config, self.name = context, context.run, context.config, name
        texts = [text for row in human for text in (row.positive, *row.negatives)]
        self.passages = {
            (made := digest(text.title, text.text)): Passage(made, text.title, text.text, name) for text in texts
        }
        if len(self.passages) < 2:
            raise TrainingError(f"set {name!r}: it has one passage only; there is nothing to relabel")
        first = {row.query: row for row in reversed(human)}  # of several rows with one query the first
        self.queries = [
            Query(row.query_id, row.task, row.query, digest(row.positive.title, row.positive.text), "")
            for row in human
            if first[row.query] is row
        ]
        self.source = {
            "rows": digest(
                *(f"{query.id}={query.seed_id}={query.text}={query.task}" for query in self.queries), *self.passages
            )
        }

    def rows(self) -> list[Example]:
        """Mine, relabel, select."""
        self._mine()
        self._relabel()
        settings = self.config.select.model_copy(update={"task_rows": None})
        parts = {
            "candidates": self.run.finished(f"mine-{self.name}").identity,
            "scores": self.run.finished(f"relabel-{self.name}").identity,
            "settings": settings.model_dump_json(),
            "seed": str(self.config.seed),
        }

        def work(_: int, counts: Counts) -> list[Example]:
            candidates = self.run.read(f"mine-{self.name}", Candidate)
            scores = judgements(self.run, f"relabel-{self.name}")
            labels = group_labels(self.queries, candidates, scores, settings)
            chosen = select(self.queries, labels, self.passages, settings, self.config.seed, counts)
            rows = [replace(row, dataset=self.name, candidates=(), fused=()) for row in chosen]
            changed = counts.notes["positive is not the seed"]
            dropped = drop_words(counts.drops)
            self.context.ui.say(
                f"{self.name}: the teacher keeps {len(rows):,} of {len(self.queries):,} queries and gives {changed:,} "
                "another positive" + (f"; dropped: {dropped}" if dropped else "")
            )
            return rows

        self._make("select", Example, parts, [0], work)
        rows = self.run.read(f"select-{self.name}", Example)
        if not rows:
            raise TrainingError(
                f"set {self.name!r}: the teacher finds no positive relevant; lower select.min_rc, or leave the set out"
            )
        return rows

    def _mine(self) -> None:
        n = min(self.config.mine.n, len(self.passages))
        shards = [
            self.queries[start : start + QUERIES_A_SHARD] for start in range(0, len(self.queries), QUERIES_A_SHARD)
        ]
        parts = {"model": self.context.models.start_identity, "candidates": str(n)}

        def work(shard: Sequence[Query], _: Counts) -> list[Candidate]:
            asked = self.context.models.start.queries([query.text for query in shard], [query.task for query in shard])
            return list(mine(shard, asked, list(self.passages), [lambda: self._vectors], n))

        self._make("mine", Candidate, parts, shards, work)

    @cached_property
    def _vectors(self) -> "Vectors":
        return self.context.models.start.passages(list(self.passages.values()), progress=True)

    def _relabel(self) -> None:
        context, config = self.context, self.config.relabel
        form, queries = context.form, {query.id: query for query in self.queries}
        work = Work(queries, self.passages, self.run.read(f"mine-{self.name}", Candidate))
        parts = {
            **context.judging_parts(form),
            **context.precision_parts,
            "candidates": self.run.finished(f"mine-{self.name}").identity,
            "settings": config.model_dump_json(include={"passage_tokens", "shard_passages"}),
        }
        judge = Judge(context.models.loaded_teacher, form, context.prompts, config.window)
        title = f"{self.name}: {work.title(form, config.shard_passages)}"
        shards = work.shards(form, config.shard_passages)
        self._make("relabel", form.record, parts, shards, judge, lambda left: spending_bar(context, title, left))

    def _make(
        self, stage: str, kind: type, parts: dict[str, str], shards: Sequence[Any], work: Any, bar: Any = None
    ) -> None:
        """:func:`run_local` of a step, whose folder has the set's name; all of them depend on the set's rows."""
        parts = {**self.source, **parts, "schema": schema_digest(kind), "version": str(VERSION)}
        run_local(self.run, f"{stage}-{self.name}", kind, parts, shards, work, bar)


def _folders(config: RunConfig) -> list[str]:
    again = [
        entry.name for entry in config.mixture.sets if isinstance(entry, RetrievalSet | FeverSet) and entry.relabel
    ]
    return ["mixture", *(f"{stage}-{name}" for name in again for stage in ("mine", "relabel", "select"))]


MIXTURE = Stage(
    name="mixture",
    version=VERSION,
    make=mixture_rows,
    command="train",
    applies=lambda config: bool(config.mixture.sets),
    folders=_folders,
)
