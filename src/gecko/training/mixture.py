"""The unified mixture (Section 3.3 of the paper): how often each set is drawn, and tasks that are left out now and then."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gecko.config.mixture import FRET, MixtureConfig
from gecko.core.records import Example

if TYPE_CHECKING:
    from gecko.training.batches import Sampling


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
