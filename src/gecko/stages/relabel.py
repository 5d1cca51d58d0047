"""Stage ``relabel``: the teacher scores each query with each of its candidates (step 3 of FRet)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

from gecko.core.counts import Counts
from gecko.core.files import digest
from gecko.core.records import Candidate, Judged, Place, Query, Score, by_query
from gecko.fret.answered import order_agreement
from gecko.fret.judging import JudgeForm
from gecko.fret.view import ASKED, own_queries, relabel_folders
from gecko.llm import registry
from gecko.run.engine import Job
from gecko.run.manifest import Manifest, Shard, schema_digest
from gecko.run.shards import run_shards
from gecko.stages import plan
from gecko.stages.context import Context
from gecko.stages.costs import kept_token_counts, new_reading
from gecko.stages.generate import GENERATE, id_of
from gecko.stages.ingest import INGEST
from gecko.stages.judging import Judge, Judging, Work
from gecko.stages.mine import MINE
from gecko.stages.models import TeacherLoader
from gecko.stages.reuse import paid_scores
from gecko.stages.spending import spending_bar
from gecko.stages.stage import Stage, section
from gecko.stages.user_queries import USER_QUERIES


def make(context: Context) -> Manifest:
    """Have every pair judged by the teacher, and then by each further one; returns what the first teacher said."""
    queries = {query.id: query for query in own_queries(context.run)}
    candidates = context.run.read(MINE.name, Candidate)
    kept = _affordable(context, queries, candidates)
    chosen = [candidate for candidate in candidates if candidate.query_id in kept]
    work, models = Work(queries, context.by_id, chosen), context.models
    parts = RELABEL.parts(context)
    first, *others = RELABEL.folders_of(context.config)
    own = parts | {"teacher": models.teacher_identity}
    manifest = judge_pairs(context, first, own, context.form, work, lambda: models.teacher_loader)
    for folder, spec in zip(others, context.config.relabel.teachers, strict=True):
        own = parts | {"teacher": registry.teacher_identity(spec)}
        judge_pairs(context, folder, own, context.form_of(folder, spec), work, partial(models.other_teacher, spec))
    return manifest


def judge_pairs(
    context: Context,
    folder: str,
    parts: Mapping[str, str],
    form: JudgeForm,
    work: Work,
    teacher: Callable[[], TeacherLoader],
) -> Manifest:
    """Have pairs judged into a folder of the run; what was paid for before is used again.

    ``parts`` are what they depend on, by the names of ``RELABEL``, the teacher among them; ``teacher`` gives what loads
    it. Raises RunError: a shard on disk is damaged. TeacherError: a judgement cannot be used.
    """
    config = context.config.relabel
    shards = work.shards(form, config.shard_passages)
    kept = digest(*sorted({candidate.query_id for candidate in work.candidates}))
    parts = {**context.judging_parts(form), **parts, "queries kept": kept, "schema": schema_digest(form.record)}

    def job(_: Mapping[int, Shard]) -> Job[Judging, Judged]:
        paid = cache(
            lambda: paid_scores(context.run, parts, RELABEL.grows, work.queries, context.by_id, folder, form.record)
        )

        def ask(index: int, counts: Counts) -> Judging:
            asked = shards[index].asked
            paid().count(asked, counts)
            return replace(shards[index], known={pair: paid().scores[pair] for pair in asked if pair in paid().scores})

        return Job(Judge(teacher(), form, context.prompts, config.window), ask)

    manifest = run_shards(
        context.run,
        folder,
        form.record,
        parts,
        shards,
        job,
        context.engine,
        lambda left: spending_bar(context, work.title(form, config.shard_passages), left),
        growing=RELABEL.grows,
    )
    if form.name == "listwise" and manifest.done:
        mean, count = order_agreement(context.run.read(folder, Place))
        context.ui.say(f"the two orders of a query agree by {mean:.2f} (Kendall's tau, mean of {count:,} queries)")
    return manifest


def _affordable(context: Context, queries: Mapping[str, Query], candidates: Sequence[Candidate]) -> set[str]:
    """The queries whose exact cost fits what the plan left for relabelling.

    Those that people asked come first, one by one, then the others, neighbourhood by neighbourhood.
    """
    planned = plan.make(context)
    limit = planned.relabel_tokens
    if limit is None:
        return set(queries)
    asked = [query.id for query in queries.values() if query.asked][: planned.asked]
    retrieved = {key: [one.passage_id for one in row] for key, row in by_query(candidates).items()}
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
    depends=lambda context: context.precision_parts,  # and on how the teacher of a folder judges
    grows=frozenset({"queries", ASKED, "candidates", "queries kept", "passages", "schema", "settings.shard_passages"}),
    made="on the way",
    folders=relabel_folders,
    asks=True,
)
