"""Stage ``choose``: which of the trained models a run keeps, as ``RUN/model``."""

from pathlib import Path

import numpy as np

from gecko.core.files import replace_folder
from gecko.core.formats import InputFormat
from gecko.evaluation.metrics import bootstrap_ci
from gecko.stages import agreement, train
from gecko.stages.context import Context
from gecko.stages.stage import Stage

LEAST_HELDOUT = 8  # held-out queries that a choice between two formats is left to


def make(context: Context) -> Path:
    """Train the start model in each input format that is asked for, and keep one; returns its folder, ``RUN/model``."""
    folders, final = train.make(context), context.run.path / "model"
    replace_folder(folders[chosen_format(context)], final)
    return final


def chosen_format(context: Context) -> InputFormat:
    """The first of the trained formats, unless another agrees better with the teacher on held-out queries.

    Better: the paired 95 % interval of the difference lies above 0, and there are eight queries or more: an interval of
    two lies above 0 whenever both differences do. A dozen queries favour one or the other by
    chance, and a format that is new to the start model loses more on a whole corpus than among the start's own
    candidates, on which agreement is measured.
    """
    config = context.config
    first, *others = config.train.formats
    if not others or not context.heldout:
        return first
    values = {label: np.array(found) for label, found in agreement.make(context).items()}
    if len(values[first]) < LEAST_HELDOUT:
        return first
    gains = {
        form: bootstrap_ci(values[form] - values[first], config.evaluate.resamples, config.seed) for form in others
    }
    clear = [form for form in others if gains[form][1] > 0]
    return max(clear, key=lambda form: gains[form][0], default=first)


CHOOSE = Stage(
    name="choose",
    version=1,
    make=make,
    reads_each=train.TRAIN,
    made="on the way",
    after=(agreement.AGREEMENT,),
    command="train",
)
