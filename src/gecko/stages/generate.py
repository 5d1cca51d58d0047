"""Stage ``generate``: the teacher writes a task and a query for each seed (step 1 of FRet)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from gecko.config.stages import GenerateConfig
from gecko.core.counts import Counts
from gecko.core.records import Passage, Query
from gecko.evaluation.teacher.probe import refuse_by_parsing
from gecko.fret.generate import OF_NO_USE, generate, query_id
from gecko.fret.seeds import Seed
from gecko.prompts import Prompt
from gecko.run.engine import Job
from gecko.run.manifest import Manifest, Shard
from gecko.run.shards import run_shards
from gecko.stages import plan, user_queries
from gecko.stages.context import Context
from gecko.stages.ingest import INGEST
from gecko.stages.models import TeacherLoader
from gecko.stages.reuse import paid_queries, seeds_key
from gecko.stages.spending import booked, spending_bar
from gecko.stages.stage import Stage, section, value


@dataclass(frozen=True)
class Writing:
    """A shard: the seeds to write for, their passages, and what is written of the shard and of them."""

    seeds: Sequence[Seed]
    passages: dict[str, Passage]
    written: list[Query]
    earlier: list[Query]


@dataclass(frozen=True)
class Write:
    """What is done with a shard; it can be sent to another process, if ``teacher`` can."""

    teacher: TeacherLoader
    prompt: Prompt
    config: GenerateConfig
    seed: int

    def __call__(self, task: Writing, counts: Counts) -> list[Query]:
        """The queries of a shard."""
        if not task.seeds:
            return task.written
        teacher, before = self.teacher(counts), task.written + task.earlier
        with booked(teacher.usage, counts):
            new = generate(task.seeds, task.passages, teacher, self.prompt, self.config, self.seed, counts, before)
            return [*task.written, *new]


def make(context: Context) -> Manifest:
    """Read the queries that people asked, if there are such, and write a task and a query for each seed.

    Raises CorpusError, TrainingError: see :mod:`gecko.stages.user_queries`. TeacherRefused: too few generations parse.
    """
    config = context.config.generate
    size = config.batch or 1
    user_queries.make(context)
    seeds = [seed for block in plan.make(context).blocks for seed in block]
    shards = [seeds[start : start + size] for start in range(0, len(seeds), size)]
    parts = GENERATE.parts(context) | {"seeds": seeds_key(seeds)}
    title = f"writing {len(seeds):,} queries, {size} at a time"
    manifest = run_shards(
        context.run,
        GENERATE.name,
        Query,
        parts,
        shards,
        lambda known: _job(context, parts, shards, known),
        context.engine,
        lambda left: spending_bar(context, title, left),
        growing=GENERATE.grows,
        key=seeds_key,
    )
    if context.config.check.enabled and manifest.done and seeds:
        drops, check, name = manifest.drops, context.config.check, context.config.llm
        parsed = manifest.rows + sum(drops.pop(reason, 0) for reason in OF_NO_USE)
        context.refusing(lambda: refuse_by_parsing(parsed, len(seeds), drops, check, name))
    return manifest


def id_of(context: Context, seed: Seed) -> str:
    """The id of the query that is written for a seed."""
    return query_id(seed.passage_id, context.prompts["generate"], context.config.seed, seed.round)


def _job(
    context: Context, parts: Mapping[str, str], shards: Sequence[Sequence[Seed]], known: Mapping[int, Shard]
) -> Job[Writing, Query]:
    paid = cache(
        lambda: paid_queries(context.run, parts, GENERATE.grows, context.by_id, lambda seed: id_of(context, seed))
    )
    before = _earlier_rounds(shards)

    @cache
    def read(index: int) -> list[Query]:
        return context.run.read_shard(context.run.path / GENERATE.name, known[index], Query)

    def ask(index: int, counts: Counts) -> Writing:
        written, left = paid().take(shards[index], counts)
        again = {seed.passage_id for seed in left if seed.round}
        earlier = [row for place in before[index] if again for row in read(place) if row.seed_id in again]
        return Writing(left, {seed.passage_id: context.by_id[seed.passage_id] for seed in left}, written, earlier)

    config = context.config
    write = Write(context.models.teacher_loader, context.prompts["generate"], config.generate, config.seed)
    return Job(write, ask, before.__getitem__)


def _earlier_rounds(shards: Sequence[Sequence[Seed]]) -> list[list[int]]:
    """For each shard of seeds the shards before it that hold a passage which comes again in it."""
    places: dict[str, list[int]] = {}
    found = []
    for index, shard in enumerate(shards):
        again = {place for seed in shard if seed.round for place in places.get(seed.passage_id, ())}
        found.append(sorted(again - {index}))
        for seed in shard:
            places.setdefault(seed.passage_id, []).append(index)
    return found


GENERATE = Stage(
    name="generate",
    version=1,
    make=make,
    record=Query,
    reads={"passages": INGEST},
    settings={
        "settings": section("generate", only={"temperature", "top_p", "max_new_tokens", "batch"}),
        "passage tokens": value("relabel.passage_tokens"),
        "seed": value("seed"),
    },
    depends=lambda context: context.teacher_parts("generate"),
    grows=frozenset({"seeds", "passages", "schema", "settings.batch"}),
    made="on the way",
    after=(plan.PLAN, user_queries.USER_QUERIES),
    asks=True,
)
