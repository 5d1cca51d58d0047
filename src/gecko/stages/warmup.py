"""Stage ``warmup``: the initial embedder is trained on (q, p_seed) first, as in the paper (Section 3.2)."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

import gecko.encoder
from gecko.config.training import WITHOUT_EFFECT, TrainConfig
from gecko.core.errors import ConfigError
from gecko.core.records import Query
from gecko.encoder import Encoder, resolve_model
from gecko.fret.fuse import Label
from gecko.fret.select import make_row
from gecko.run.shards import build_file
from gecko.stages.context import Context, once
from gecko.stages.embed import EMBED, embedded
from gecko.stages.generate import GENERATE
from gecko.stages.models import EncoderLoader, RemoteEncoder
from gecko.stages.stage import Stage, value


@once
def make(context: Context) -> "Encoder":
    """The start model after training on (q, p_seed) with in-batch negatives: the paper's initial embedder.

    Raises ConfigError: no query is written.
    """
    from gecko.training import train

    run, config = context.run, context.config
    queries = [query for query in run.read(GENERATE.name, Query) if query.split == "train"]
    if not queries:
        raise ConfigError("mine.warmup_epochs trains on written queries, and there are none; set it to 0")
    alone = config.select.model_copy(update={"positive": "seed", "negative": "none"})
    rows = [
        make_row(query, [Label(query.seed_id, 1, 0, 0, 1, 1, 2.0)], context.by_id, alone, config.seed)
        for query in queries
    ]

    def fit(path: Path) -> None:
        context.ui.say(f"training the initial embedder on {len(rows)} pairs of query and seed")
        checkpoints = run.path / WARMUP.name / "checkpoints"
        train(
            rows,
            resolve_model(config.backbone),
            path,
            context.models.start.form,
            _settings(config.train, config.mine.warmup_epochs),
            config.seed,
            checkpoints=checkpoints,
            say=context.ui.say,
        )
        shutil.rmtree(checkpoints, ignore_errors=True)

    return gecko.encoder.load_encoder(str(build_file(run, WARMUP.name, WARMUP.parts(context), "model", fit)))


def _settings(train: TrainConfig, epochs: int) -> TrainConfig:
    """The settings of the training: those of ``train`` with in-batch negatives alone, and to the end."""
    plain = {"hard_negatives": "none", "same_tower": False, "distill": 0.0}
    loss = train.loss.model_copy(update=plain)
    return train.model_copy(update={"epochs": epochs, "loss": loss, "patience": None})


def loader(context: Context) -> EncoderLoader:
    """The trained embedder where the work is done."""
    model = make(context)
    if context.engine.remote:
        return RemoteEncoder(model.spec, model.identity)
    return lambda: model


@once
def vectors(context: Context) -> np.ndarray:
    """The trained embedder's embeddings of the corpus: float32 (passages, d), unit rows."""
    return embedded(context, EMBED_WARMUP, make(context).identity, loader(context))


WARMUP = Stage(
    name="warmup",
    version=2,
    make=make,
    reads={"queries": GENERATE},
    settings={
        "settings": lambda config: _settings(config.train, config.mine.warmup_epochs).model_dump_json(
            exclude=WITHOUT_EFFECT
        ),
        "seed": value("seed"),
    },
    depends=lambda context: {"start model": context.models.start_identity},
    command="mine",
    applies=lambda config: config.mine.warmup_epochs > 0,
)

EMBED_WARMUP = replace(
    EMBED, name="embed-warmup", make=vectors, command="mine", applies=WARMUP.applies, after=(WARMUP,)
)
