"""Stage ``relabel``: the teacher scores each query with each of its candidates (step 3 of FRet)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from gecko.core.counts import Counts
from gecko.core.files import digest
from gecko.core.records import Candidate, Passage, Query, Score
from gecko.fret.relabel import relabel
from gecko.fret.view import ASKED, own_queries, relabel_folders
from gecko.llm import registry
from gecko.prompts import Prompt
from gecko.run.engine import Job
from gecko.run.manifest import Manifest, Shard
from gecko.run.shards import run_shards
from gecko.stages import plan
from gecko.stages.context import Context
from gecko.stages.costs import kept_token_counts, new_reading
from gecko.stages.generate import GENERATE, id_of
from gecko.stages.ingest import INGEST
from gecko.stages.mine import MINE
from gecko.stages.models import TeacherLoader
from gecko.stages.reuse import paid_scores
from gecko.stages.stage import Stage, section
from gecko.stages.user_queries import USER_QUERIES


@dataclass(frozen=True)
class Judging:
    """A shard: passages, each with the queries that retrieved it, and the scores that are known."""

    pairs: Sequence[tuple[Passage, Sequence[Query]]]
    known: Mapping[tuple[str, str], Score]


@dataclass(frozen=True)
class Judge:
    """What is done with a shard; it can be sent to another process, if ``teacher`` can."""

    teacher: TeacherLoader
    likelihood: Prompt
    relevance: Prompt

    def __call__(self, task: Judging, counts: Counts) -> list[Score]:
        """The scores of a shard."""
        asked = [(query.id, passage.id) for passage, queries in task.pairs for query in queries]
        if all(pair in task.known for pair in asked):
            return [task.known[pair] for pair in asked]
        return list(relabel(task.pairs, self.teacher(counts), self.likelihood, self.relevance, counts, task.known))


@dataclass(frozen=True)
class Work:
    """What there is to judge: all queries by id, and by passage the queries that retrieved it."""

    queries: Mapping[str, Query]
    by_passage: Mapping[str, Sequence[Query]]


def make(context: Context) -> Manifest:
    """Score every pair with the teacher, passage by passage, and then with each further one.

    Returns:
        what the first teacher said.
    """
    queries = {query.id: query for query in own_queries(context.run)}
    candidates = context.run.read(MINE.name, Candidate)
    kept = _affordable(context, queries, candidates)
    by_passage: dict[str, list[Query]] = {}
    for candidate in candidates:
        if candidate.query_id in kept:
            by_passage.setdefault(candidate.passage_id, []).append(queries[candidate.query_id])
    parts = RELABEL.parts(context) | {"queries kept": digest(*sorted(kept))}
    work, models = Work(queries, by_passage), context.models
    first, *others = RELABEL.folders_of(context.config)
    manifest = judge_pairs(context, first, parts | {"teacher": models.teacher_identity}, models.teacher_loader, work)
    for folder, spec in zip(others, context.config.relabel.teachers, strict=True):
        own = parts | {"teacher": registry.teacher_identity(spec)}
        judge_pairs(context, folder, own, models.other_teacher(spec), work)
    return manifest


def judge_pairs(context: Context, folder: str, parts: dict[str, str], teacher: TeacherLoader, work: Work) -> Manifest:
    """Score pairs into a folder of the run, passage by passage; what was paid for before is used again.

    Args:
        context: of the run.
        folder: of the scores.
        parts: what they depend on, by the names of ``RELABEL``.
        teacher: loads the teacher.
        work: the pairs.

    Raises:
        RunError: a shard on disk is damaged.
        TeacherError: a score is no number.
    """
    config, by_passage = context.config.relabel, work.by_passage
    order = [passage.id for passage in context.passages if passage.id in by_passage]
    shards = [order[start : start + config.shard_passages] for start in range(0, len(order), config.shard_passages)]

    def job(_: Mapping[int, Shard]) -> Job[Judging, Score]:
        paid = cache(lambda: paid_scores(context.run, parts, RELABEL.grows, work.queries, context.by_id, folder))

        def ask(index: int, counts: Counts) -> Judging:
            asked = [(query.id, identifier) for identifier in shards[index] for query in by_passage[identifier]]
            paid().count(asked, counts)
            known = {pair: paid().scores[pair] for pair in asked if pair in paid().scores}
            return Judging([(context.by_id[one], by_passage[one]) for one in shards[index]], known)

        return Job(Judge(teacher, context.prompts["likelihood"], context.prompts["relevance"]), ask)

    pairs, size = sum(map(len, by_passage.values())), min(config.shard_passages, len(order))
    title = f"judging {pairs:,} pairs, {size:,} of {len(order):,} passages at a time"
    return run_shards(
        context.run,
        folder,
        Score,
        parts,
        shards,
        job,
        context.engine,
        lambda left: context.ui.bar(title, left),
        growing=RELABEL.grows,
    )


def _affordable(context: Context, queries: Mapping[str, Query], candidates: Sequence[Candidate]) -> set[str]:
    """The queries whose exact cost fits what the plan left for relabelling.

    Those that people asked come first, one by one, then the others, neighbourhood by neighbourhood.
    """
    planned = plan.make(context)
    limit = planned.relabel_tokens
    if limit is None:
        return set(queries)
    asked = [query.id for query in queries.values() if query.asked][: planned.asked]
    retrieved: dict[str, list[str]] = {}
    for candidate in candidates:
        retrieved.setdefault(candidate.query_id, []).append(candidate.passage_id)
    used = sorted({candidate.passage_id for candidate in candidates})
    texts = [context.by_id[identifier].content for identifier in used]
    length = kept_token_counts(context, "passage-tokens", texts, used)
    words = kept_token_counts(context, "query-tokens", [query.text for query in queries.values()], list(queries))
    written = [[id_of(context, seed) for seed in block] for block in planned.blocks]
    reading = new_reading(context)
    kept: list[str] = []
    for number, block in enumerate([*([identifier] for identifier in asked), *written]):
        members = [identifier for identifier in block if identifier in queries]
        if reading.add([(words[one], retrieved[one]) for one in members], length) > limit and number >= 2:
            break
        kept += members
    return set(kept)


RELABEL = Stage(
    name="relabel",
    version=1,
    make=make,
    record=Score,
    reads={"passages": INGEST, "queries": GENERATE, ASKED: USER_QUERIES, "candidates": MINE},
    settings={"settings": section("relabel", only={"passage_tokens", "shard_passages"})},
    depends=lambda context: context.teacher_parts("likelihood", "relevance") | context.precision_parts,
    grows=frozenset({"queries", ASKED, "candidates", "queries kept", "passages", "schema", "settings.shard_passages"}),
    made="on the way",
    folders=relabel_folders,
    asks=True,
)
