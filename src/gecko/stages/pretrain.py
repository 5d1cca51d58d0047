"""The first stage of the paper as one run: pairs in, a sentence-transformers model out (Section 3.1)."""

import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from gecko.config.training import WITHOUT_EFFECT
from gecko.core.counts import drop_words
from gecko.core.errors import RunError, TrainingError
from gecko.core.files import digest, replace_folder, write_json
from gecko.core.progress import Silent, Ui
from gecko.core.records import Example
from gecko.run.folder import Run
from gecko.run.shards import build_file

VERSION = 2  # raised by hand when the same pairs and settings give other weights


def pretrain(run: Run, ui: Ui | None = None) -> Path:
    """Train the run's backbone on its pairs by Eq. 2, each batch from one source, as ``run.config.pretrain`` says.

    Returns the folder of the model, ``RUN/model``. A killed call is continued by the same call. Raises GeckoError: a
    source, a setting or the training is not usable, or the folder holds a run with other settings.
    """
    from gecko.corpus.tables import source_identity
    from gecko.encoder import model_identity, resolve_model
    from gecko.training import Sampling, train
    from gecko.training.pairs import pair_sources

    ui = ui or Silent()
    config = run.config.pretrain
    if (run.path / "ingest").exists():
        raise RunError(f"{run.path} holds a run of gecko distill; give stage 1 a folder of its own")
    sources = pair_sources(config)
    parts = {
        "pairs": digest(*(text for name, source in sources.items() for text in (name, source_identity(name, source)))),
        "start model": model_identity(run.config.backbone),
        "settings": config.model_dump_json(exclude=(WITHOUT_EFFECT - {"formats"}) | {"sources"}),
        "seed": str(run.config.seed),
        "version": str(VERSION),
    }

    def make(path: Path) -> None:
        rows = _read(sources, run, ui)
        checkpoints = run.path / "pretrain" / "checkpoints"
        report = train(
            rows,
            resolve_model(run.config.backbone),
            path,
            config.formats[0],
            config,
            run.config.seed,
            checkpoints=checkpoints,
            say=ui.say,
            sampling=Sampling(config.weights, config.sampling_temperature, config.bucket),
        )
        write_json(checkpoints.parent / "training.json", asdict(report))
        shutil.rmtree(checkpoints, ignore_errors=True)

    final = run.path / "model"
    replace_folder(build_file(run, "pretrain", parts, "model", make), final)
    return final


def _read(sources: dict[str, str], run: Run, ui: Ui) -> "list[Example]":
    from gecko.training.pairs import read_pairs

    rows: list[Example] = []
    for name, source in sources.items():
        drops: Counter[str] = Counter()
        pairs = read_pairs(name, source, run.config.pretrain, run.config.seed, drops)
        dropped = drop_words(drops)
        if len(pairs) < 2 and run.config.pretrain.weights.get(name, 1.0) > 0:
            raise TrainingError(
                f"set {name!r}: {source} has 1 pair; give two or more, which are each other's negatives"
                + (f"; dropped: {dropped}" if dropped else "")
            )
        ui.say(f"{name}: {len(pairs):,} pairs, task {pairs[0].task!r}" + (f"; dropped: {dropped}" if dropped else ""))
        rows += pairs
    return rows
