"""Stage ``select``: positives and negatives are chosen from the scores (step 4 of FRet)."""

from gecko.core.counts import Counts
from gecko.core.records import Example
from gecko.fret.select import ROWS_ASKED, ROWS_FROM, select
from gecko.fret.view import ASKED, asked_queries
from gecko.run.manifest import Manifest
from gecko.run.shards import run_local
from gecko.stages.context import Context
from gecko.stages.generate import GENERATE
from gecko.stages.mine import MINE
from gecko.stages.plan import released_parts
from gecko.stages.relabel import RELABEL
from gecko.stages.stage import Stage, section, value
from gecko.stages.user_queries import USER_QUERIES


def make(context: Context) -> Manifest:
    """Choose positives and negatives from the scores."""

    def work(_: int, counts: Counts) -> list[Example]:
        config, seed = context.config.select, context.config.seed
        asked = {query.id for query in asked_queries(context.run)}
        rows = list(select(context.queries, context.labels, context.by_id, config, seed, counts))
        if taught := sum(row.query_id in asked for row in rows):
            counts.notes[ROWS_ASKED] = taught
        for released in context.released:
            counts.take_drops(released.counts.drops, released.counts.examples)
            counts.notes.update(released.counts.notes)
            ours = {query.id for query in released.queries}
            counts.notes[f"{ROWS_FROM}{released.name}"] = sum(row.query_id in ours for row in rows)
        return rows

    return run_local(context.run, SELECT.name, Example, SELECT.parts(context), [0], work)


SELECT = Stage(
    name="select",
    version=1,
    make=make,
    record=Example,
    reads={"queries": GENERATE, ASKED: USER_QUERIES, "scores": RELABEL, "candidates": MINE},
    settings={"settings": section("select"), "seed": value("seed")},
    depends=released_parts,
    made="on the way",
)
