"""Stage ``mine``: each query's candidates, the N nearest passages for the initial embedder (step 2 of FRet)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

import gecko.encoder
from gecko.config.training import WITHOUT_EFFECT
from gecko.core.counts import Counts
from gecko.core.errors import ConfigError, RunError
from gecko.core.records import Candidate, Query
from gecko.encoder import model_identity, resolve_model
from gecko.encoder.nearest import cuts, top_k
from gecko.evaluation.teacher.probe import refuse_by_seeds
from gecko.fret.mine import mine
from gecko.fret.view import ASKED, own_queries
from gecko.run.engine import Job
from gecko.run.manifest import Manifest, Shard
from gecko.run.shards import build_json, run_shards
from gecko.stages import warmup
from gecko.stages.context import Context, once
from gecko.stages.embed import EMBED, embedded, vectors
from gecko.stages.generate import GENERATE
from gecko.stages.ingest import INGEST
from gecko.stages.models import EncoderLoader, RemoteEncoder
from gecko.stages.stage import Stage, section, value
from gecko.stages.user_queries import USER_QUERIES

QUERIES_A_SHARD = 512


@dataclass(frozen=True)
class Mine:
    """What is done with a shard: the encoder, the passages' ids, how to come by each part of their vectors, and N."""

    encoder: EncoderLoader
    ids: Callable[[], Sequence[str]]
    parts: Sequence[Callable[[], np.ndarray]]
    n: int

    def __call__(self, queries: Sequence[Query], counts: Counts) -> list[Candidate]:
        """The candidates of each query."""
        asked = self.encoder().queries([query.text for query in queries], [query.task for query in queries])
        return list(mine(queries, asked, self.ids(), self.parts, self.n))


def make(context: Context) -> Manifest:
    """Find each query's candidates. Raises RunError: there is no query. TeacherRefused: too few seeds are found again."""
    queries = own_queries(context.run)
    if not queries:
        raise RunError(f"{context.run.path}: no generated query can be used; see the drops in generate/manifest.json")
    written = [query for query in queries if not query.asked]
    shards = [queries[start : start + QUERIES_A_SHARD] for start in range(0, len(queries), QUERIES_A_SHARD)]

    def job(_: Mapping[int, Shard]) -> Job[Sequence[Query], Candidate]:
        encoder, found = _miner(context)
        plain, keep = np.asarray(found), context.engine.keep
        ids, parts = keep([passage.id for passage in context.passages]), [keep(plain[cut]) for cut in cuts(len(plain))]
        return Job(Mine(encoder, ids, parts, context.config.mine.n), lambda index, _: shards[index])

    manifest = run_shards(context.run, MINE.name, Candidate, MINE.parts(context), shards, job, context.engine)
    if context.config.check.enabled and manifest.done and written:
        found = seeds_found(context)
        check, n, name = context.config.check, context.config.mine.n, context.config.llm
        context.refusing(lambda: refuse_by_seeds(found, len(written), n, check, name))
    return manifest


def seeds_found(context: Context) -> int:
    """How many seeds are among the start model's first N; a model that was trained on them finds more."""
    queries = context.run.read(GENERATE.name, Query)
    if not context.config.mine.warmup_epochs and _identity(context) == context.models.start_identity:
        return len(queries) - sum(not row.natural for row in context.run.read(MINE.name, Candidate))

    def count() -> dict[str, int]:
        place = {passage.id: index for index, passage in enumerate(context.passages)}
        asked = context.models.start.queries([query.text for query in queries], [query.task for query in queries])
        found, _ = top_k(asked, np.asarray(vectors(context)), context.config.mine.n)
        hits = [place[query.seed_id] in row for query, row in zip(queries, found.tolist(), strict=True)]
        return {"found": sum(hits), "asked": len(hits)}

    return build_json(context.run, SEEDS.name, SEEDS.parts(context), "found.json", count)["found"]


def _identity(context: Context) -> str:
    """Hash of the model that mines, before it is trained by ``warmup``."""
    spec = context.config.mine.model
    if not spec:
        return context.models.start_identity
    final = (context.run.path / "model").resolve()
    if Path(resolve_model(spec)).resolve() == final:
        raise ConfigError(
            f"mine.model = {spec!r} is the run's own model, which the next training replaces; copy it first: "
            f"cp -r {final} {final.parent / 'round-1'}"
        )
    return model_identity(spec)


def _miner(context: Context) -> tuple[EncoderLoader, np.ndarray]:
    """The model that mines, and its embeddings of the corpus."""
    if context.config.mine.warmup_epochs:
        return warmup.loader(context), warmup.vectors(context)
    if context.config.mine.model:
        return _own_model(context), _own_vectors(context)
    return context.models.start_loader, vectors(context)


def _own_model(context: Context) -> EncoderLoader:
    """The model that ``mine.model`` names, where the work is done."""
    spec, identity = context.config.mine.model, _identity(context)
    if context.engine.remote:
        return RemoteEncoder(spec, identity)
    return context.once("mine.model", lambda: cache(lambda: gecko.encoder.load_encoder(spec)))


@once
def _own_vectors(context: Context) -> np.ndarray:
    """That model's embeddings of the corpus: float32 (passages, d), unit rows."""
    return embedded(context, EMBED_MINER, _identity(context), _own_model(context))


def _depends(context: Context) -> dict[str, str]:
    found = {"model": _identity(context)}
    if context.config.mine.warmup_epochs:
        found["training"] = context.config.train.model_dump_json(exclude=WITHOUT_EFFECT | {"epochs"})
    return found


EMBED_MINER = replace(
    EMBED, name="embed-miner", make=_own_vectors, command="mine", applies=lambda config: bool(config.mine.model)
)

MINE = Stage(
    name="mine",
    version=1,
    make=make,
    record=Candidate,
    reads={"queries": GENERATE, ASKED: USER_QUERIES, "passages": INGEST},
    settings={"settings": section("mine")},
    depends=_depends,
    made="on the way",
    after=(warmup.EMBED_WARMUP, EMBED_MINER),
)

# Beside ``mine``, where another model mines than the start model.
SEEDS = Stage(
    name="seeds",
    version=1,
    make=seeds_found,
    reads={"candidates": MINE},
    settings={"n": value("mine.n")},
    depends=lambda context: {"start model": context.models.start_identity},
    command="mine",
)
