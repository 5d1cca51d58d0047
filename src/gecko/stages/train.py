"""Stage ``train``: the start model, after BM25's order if it learns that, is trained in each input format asked for."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gecko.config.mixture import FRET, MixtureConfig
from gecko.config.training import TRAINING_VERSION, WITHOUT_EFFECT
from gecko.core.counts import drop_words
from gecko.core.errors import TrainingError
from gecko.core.files import digest, write_json
from gecko.core.formats import InputFormat
from gecko.core.records import Example
from gecko.encoder import model_identity, resolve_model
from gecko.run.shards import build_file
from gecko.stages import lexical
from gecko.stages.context import Context, once
from gecko.stages.lexical import LEXICAL
from gecko.stages.mixture import MIXTURE, mixture_rows
from gecko.stages.select import SELECT
from gecko.stages.stage import Stage, section, value

if TYPE_CHECKING:
    from gecko.training.batches import Sampling


def make(context: Context) -> dict[InputFormat, Path]:
    """Train the start model in each input format; the folder of each model.

    Raises TrainingError: fewer than two rows are left, or the training fails.
    """
    examples = training_rows(context)
    context.models.forget_teacher()
    if len(examples) < 2:
        drops = drop_words(context.run.finished(SELECT.name).drops)
        raise TrainingError(
            f"{len(examples)} training rows are left ({drops}); raise the budget, or lower select.min_rc"
        )
    return {form: student_folder(context, form) for form in context.config.train.formats}


@once
def training_rows(context: Context) -> list[Example]:
    """What is trained on: the rows of FRet and those of the mixture."""
    mixture = context.config.mixture
    fret = context.run.read(SELECT.name, Example) if mixture.fret_weight > 0 else []
    return without_tasks([*fret, *mixture_rows(context)], mixture.task_dropout, context.config.seed)


def sampling_of(config: MixtureConfig) -> "Sampling | None":
    """Weights and temperature for the trainer; none where FRet is alone and rows need no order of their own."""
    from gecko.training.batches import Sampling

    if not config.sets and not config.bucket:
        return None
    weights = {entry.name: entry.weight for entry in config.sets}
    if config.fret_weight > 0:
        weights[FRET] = config.fret_weight
    return Sampling(weights, config.sampling_temperature, config.bucket)


def without_tasks(rows: Sequence[Example], share: float, seed: int) -> list[Example]:
    """The rows, of which a random ``share`` has lost its task string and is read with the default one.

    So a model whose user names no task is not asked for something it never saw. The same rows for the same seed.
    """
    if not share:
        return list(rows)
    dropped = np.random.default_rng([seed, len(rows)]).random(len(rows)) < share
    return [replace(row, task="") if drop else row for row, drop in zip(rows, dropped, strict=True)]


def student_folder(context: Context, form: InputFormat) -> Path:
    """The model trained in one input format; trained now if it is not there."""
    config, folder = context.config, f"{TRAIN.name}-{form}"

    def fit(path: Path) -> None:
        from gecko.training import train
        from gecko.training.schedule import TOO_FEW

        examples = training_rows(context)
        context.ui.say(f"training on {len(examples)} rows, {form} format")
        if len(examples) < TOO_FEW and form == config.train.formats[0]:
            context.ui.say(
                f"warning: {len(examples)} rows are few to learn from, and may make the model worse; raise "
                "generate.queries or the budget, and measure the model"
            )
        checkpoints = context.run.path / folder / "checkpoints"
        report = train(
            examples,
            start_of(context),
            path,
            form,
            config.train,
            config.seed,
            checkpoints=checkpoints,
            say=context.ui.say,
            sampling=sampling_of(config.mixture),
            passages=context.by_id,
        )
        write_json(checkpoints.parent / "training.json", asdict(report))
        shutil.rmtree(checkpoints, ignore_errors=True)

    if LEXICAL.applies(config):
        lexical.make(context)  # what the training depends on must be there
    return build_file(context.run, folder, TRAIN.parts(context) | {"format": form}, "model", fit)


def start_of(context: Context) -> str:
    """The model that is trained: a folder, or a name on the hub."""
    config = context.config
    taught = lexical.make(context) if LEXICAL.applies(config) else None
    return str(taught) if taught else resolve_model(config.student or config.backbone)


def _depends(context: Context) -> dict[str, str]:
    student = context.config.student
    start = model_identity(student) if student else context.models.start_identity
    return {"start model": start, **_mixture_parts(context)}


@once
def _mixture_parts(context: Context) -> dict[str, str]:
    """What a training depends on beside FRet; nothing where FRet is alone."""
    mixture = context.config.mixture
    if mixture == MixtureConfig():
        return {}
    drawn = mixture.model_dump_json(exclude={"sets"}) + str([(entry.name, entry.weight) for entry in mixture.sets])
    return {"mixture": digest(drawn, *(repr(row) for row in training_rows(context) if row.dataset != FRET))}


TRAIN = Stage(
    name="train",
    version=TRAINING_VERSION,
    make=make,
    reads={"rows": SELECT, "lexical": LEXICAL},
    settings={"settings": section("train", without=WITHOUT_EFFECT), "seed": value("seed")},
    depends=_depends,
    after=(MIXTURE,),
    command="train",
    folders=lambda config: [f"train-{form}" for form in config.train.formats],
)
