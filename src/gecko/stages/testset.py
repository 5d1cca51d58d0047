"""Stage ``testset``: candidates of held-out or logged queries are pooled and judged: ``gecko testset``.

The scores lie in the run and so does what ``relabel`` was paid for: a pair that the same teacher judged before, there or
for an earlier test set, is not judged again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gecko.encoder
from gecko.config.stages import AskedConfig
from gecko.core.arguments import whole
from gecko.core.counts import Counts, left_out
from gecko.core.errors import ConfigError, CorpusError, RunError
from gecko.core.files import digest
from gecko.core.records import Candidate, Place, Query, Score
from gecko.evaluation.beir import DEFAULT_SPLIT, RetrievalSet
from gecko.evaluation.bm25 import bm25_run
from gecko.evaluation.cache import KeptEmbeddings, SupportsEmbedding
from gecko.evaluation.evaluate import BM25, dense_run
from gecko.evaluation.testset import Judged, judged, pool, write_testset
from gecko.fret.user_queries import asked_id, likeness, read_asked
from gecko.fret.view import own_queries
from gecko.report.cards import public_name
from gecko.run.manifest import Manifest
from gecko.stages.context import Context
from gecko.stages.generate import GENERATE
from gecko.stages.ingest import INGEST
from gecko.stages.judging import Work
from gecko.stages.relabel import RELABEL, judge_pairs
from gecko.stages.stage import Stage

START, STUDENT = "start", "student"


@dataclass(frozen=True)
class Request:
    """What a test set is made of.

    Attributes:
        out: the folder of the test set; it is made.
        log: a file of queries, as for ``asked.sources``; none: the run's held-out queries.
        models: pooled beside BM25, the start model and the student: a folder, ``hf:NAME`` or ``minilm``.
        depth: passages of each ranking that are judged.
        limit: at most so many queries, drawn at random.
        kept: a folder that keeps the models' vectors of the corpus; none: they are not kept.
    """

    out: Path
    log: str | None = None
    models: tuple[str, ...] = ()
    depth: int = 10
    limit: int = 300
    kept: Path | None = None

    def __post_init__(self) -> None:
        if self.out.exists():
            raise ConfigError(f"{self.out} is there already; name a folder that is not")
        for name, value in (("depth", self.depth), ("limit", self.limit)):
            if whole(f"--{name}", value) < 1:
                raise ConfigError(f"--{name} {value}: give at least 1")


def write(context: Context, request: Request) -> Judged:
    """Make a test set of the corpus of a run whose queries are judged, or, for a log, written.

    Raises ConfigError: a model cannot be used, or the pools hold one candidate each. RunError: the run holds out no
    query. CorpusError: the log has no query that can be used. EvaluationError: the teacher finds nothing relevant.
    """
    queries, source = _queries(context, request)
    rankings = _rankings(context, request, queries)
    pooled = pool(rankings, request.depth)
    make(context, queries, pooled)
    scores = [one for one in context.run.read(TESTSET.name, context.form.record) if not isinstance(one, Place)]
    found = judged(queries, pooled, scores, rankings, request.depth)
    about = [
        f"The queries are {source}.",
        f"The teacher is `{public_name(context.config.llm)}`; it judged the first {request.depth} passages of each ranking.",
    ]
    write_testset(request.out, context.passages, found, scores, about)
    return found


def make(
    context: Context, queries: Sequence[Query] = (), pooled: Mapping[str, Sequence[str]] | None = None
) -> Manifest:
    """Have the teacher judge every pooled pair."""
    form, models = context.form, context.models
    if form.name == "listwise":
        raise ConfigError(
            "relabel.judge = 'listwise' puts the candidates of a query in order and judges no pair by itself, as a test set "
            "needs; take a run whose teacher judges by grades or log-probabilities"
        )
    pairs = [
        Candidate(query.id, identifier, rank, 0.0)
        for query in queries
        for rank, identifier in enumerate((pooled or {}).get(query.id, ()), start=1)
    ]
    names = sorted((pair.query_id, pair.passage_id) for pair in pairs)
    parts = TESTSET.parts(context) | {
        "candidates": digest(*(text for pair in names for text in pair)),
        "teacher": models.teacher_identity,
    }
    work = Work({query.id: query for query in queries}, context.by_id, pairs)
    return judge_pairs(context, TESTSET.name, parts, form, work, lambda: models.teacher_loader)


def _queries(context: Context, request: Request) -> tuple[list[Query], str]:
    """What is asked, in a random order that more of them begin with, and what to call it."""
    run, seed = context.run, context.config.seed
    if request.log is None:
        own = {query.id for query in own_queries(run)}
        found = [
            # A query of released rows gets the id by which scores of it are found again.
            query if query.id in own else replace(query, id=asked_id(query.text), seed_id="")
            for query in context.heldout
        ]
        if not found:
            raise RunError(
                f"{run.path} holds out no query (generate.heldout = {context.config.generate.heldout:g}); name a log with "
                "--queries, or make a run that holds out some"
            )
        found = list({query.id: query for query in found}.values())
        found.sort(key=lambda query: digest(str(seed), query.text))
        written = sum(not query.asked for query in found[: request.limit])
        return found[: request.limit], f"the run's held-out queries, {written:,} of them written by the teacher"
    counts = Counts()
    asked = read_asked(AskedConfig(sources=[request.log], limit=1 << 31), 0.0, 0, seed, counts)
    taught = {likeness(query.text) for query in context.queries if query.split == "train"}
    found = []
    for query in asked:
        if likeness(query.text) in taught:
            counts.drop("that the run was trained on", query.text)
        else:
            found.append(query)
    if len(found) > request.limit:
        counts.drops[f"beyond the first {request.limit:,} (--limit)"] += len(found) - request.limit
    if said := left_out(counts):
        context.ui.say(f"of the queries of {request.log}:{said}")
    if not found:
        raise CorpusError(f"{request.log} holds no query that can be used; give one that the run was not trained on")
    return found[: request.limit], f"those of a log, `{Path(request.log).name}`"


def _rankings(context: Context, request: Request, queries: Sequence[Query]) -> dict[str, dict[str, dict[str, float]]]:
    """The first passages of BM25, the start model, the student and the models that are named, by label and query id."""
    student = context.run.path / "model"
    specs = {START: context.config.backbone} | ({STUDENT: str(student)} if student.is_dir() else {})
    for spec in request.models:
        label = public_name(spec)
        if label in (BM25, *specs):
            raise ConfigError(f"--model {spec}: another model is called {label!r} already; give each once")
        specs[label] = spec
    asked = [(query.id, query.text) for query in queries]
    data = RetrievalSet(context.run.path.name, DEFAULT_SPLIT, context.passages, asked, {})
    found = {BM25: bm25_run(data.passages, data.queries, request.depth)}
    loaded = {
        label: context.models.start if label == START else gecko.encoder.load_encoder(spec)
        for label, spec in specs.items()
    }  # all of them first: a mistake in the last one should show before the first has embedded a corpus
    for label, encoder in loaded.items():
        context.ui.say(f"{label}: ranks {len(data.passages):,} passages for {len(queries):,} queries")
        model: SupportsEmbedding = KeptEmbeddings(encoder, request.kept)
        found[label] = dense_run(data, model, request.depth, progress=True)
    return found


TESTSET = Stage(
    name="testset",
    version=RELABEL.version,
    make=make,
    record=Score,
    reads={"passages": INGEST, "queries": GENERATE},
    settings=RELABEL.settings,
    depends=RELABEL.depends,
    grows=RELABEL.grows,
    made="by its command",
    asks=True,
)
