"""Stage ``asked``: the queries that people asked are read from a log."""

from gecko.core.counts import Counts, drop_words, left_out
from gecko.core.errors import CorpusError
from gecko.core.files import digest
from gecko.core.records import Query
from gecko.fret.user_queries import asked_identity, read_asked
from gecko.fret.view import ASKED
from gecko.run.manifest import Manifest
from gecko.run.shards import run_local
from gecko.stages.context import Context
from gecko.stages.stage import Stage, section, value


def make(context: Context, *, again: bool = False) -> Manifest | None:
    """Read the queries that people asked, where ``asked.sources`` names some.

    With ``again`` the sources are looked at even where they were read before, as at the corpus, by the commands that do.
    Raises CorpusError: there is none, or a source is missing. TrainingError: a source cannot be read.
    """
    run, config = context.run, context.config
    if not USER_QUERIES.applies(config):
        return None
    parts = USER_QUERIES.parts(context)
    before = run.manifest(ASKED)
    if not again and before is not None and before.done and parts.items() <= before.parts.items():
        return before
    parts["sources"] = asked_identity(config.asked)
    return run_local(run, ASKED, Query, parts, [0], lambda _, counts: read(context, counts))


def read(context: Context, counts: Counts) -> list[Query]:
    """The queries as they are in their sources; none where no source is named.

    Raises CorpusError: a source is missing, or holds no query. TrainingError: a source cannot be read.
    """
    config, generate = context.config.asked, context.config.generate
    if not config.sources:
        return []
    queries = read_asked(config, generate.heldout, generate.heldout_max, context.config.seed, counts)
    if not queries:
        drops = drop_words(counts.drops) or "it is empty"
        raise CorpusError(
            f"{', '.join(config.sources)}: no query can be used ({drops}); mend or leave out asked.sources"
        )
    if left := left_out(counts):
        context.ui.say(f"of the queries that people asked:{left}")
    return queries


USER_QUERIES = Stage(
    name=ASKED,
    version=1,
    make=make,
    record=Query,
    settings={
        "names": lambda config: digest(*config.asked.sources),
        "settings": section("asked", only={"field", "task", "limit"}),
        "held out": lambda config: f"{config.generate.heldout} {config.generate.heldout_max}",
        "seed": value("seed"),
    },
    command="generate",
    called="other queries that people asked",
    applies=lambda config: bool(config.asked.sources),
)
