"""How many steps a training takes: as many as are asked for, but not by passes that do harm."""

import pytest

from gecko.config.training import TrainConfig
from gecko.training.schedule import enough_steps

from .conftest import CONFIG


@pytest.mark.parametrize(
    ("rows", "update", "batch", "epochs"),
    [
        (46, {}, 16, 10),  # 3 batches, ten times
        (20, {}, 16, 10),  # 2 batches: 30 steps would be fifteen passes, and that many through few rows do harm
        (19, {}, 64, 3),  # and so do ten through fewer
        (640, {}, 64, 3),  # 10 batches, three times
        (600, {}, 64, 3),  # the tenth is smaller
        (576, {}, 16, 3),  # 9 batches of 64 are too few; of the 36 of 16 three passes are enough
        (2, {"min_steps": 0}, 64, 3),
        (20, {"epochs": 12}, 16, 12),
        (46, {"batch": 8}, 8, 5),  # 6 batches
        (46, {"batch": 96, "devices": 3}, 18, 10),  # six rows a device
    ],
)
def test_few_rows_are_gone_through_more_often(rows, update, batch, epochs):
    config = TrainConfig(epochs=3, batch=64, min_steps=30).model_copy(update=update)
    found = enough_steps(config, rows)
    assert (found.batch, found.epochs) == (batch, epochs)
    assert found == config.model_copy(update={"batch": batch, "epochs": epochs})  # and nothing else is changed
    assert enough_steps(found, rows) == found


def test_a_training_takes_the_steps_that_are_asked_for(run, examples):
    config = CONFIG.model_copy(update={"min_steps": 11})  # 20 rows are 3 batches, so 4 passes; 3 by themselves
    assert run("few", config=config)[0].steps == 12
    assert run("fewer", config=config, rows=examples[:19])[0].steps == 9
