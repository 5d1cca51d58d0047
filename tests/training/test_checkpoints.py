"""A killed training, started again, ends as one that nothing disturbed; what is not its own or not whole is passed over."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

import gecko
from gecko.config.training import BackboneConfig
from gecko.training import Sampling, checkpoints, schedule

from .conftest import CONFIG, Stop, equal


# 9 steps, a checkpoint after each second: stopped in the first epoch after a checkpoint, at an epoch's border (the
# checkpoint after step 6), and in the middle of the last one.
@pytest.mark.parametrize("call", [4, 7, 9])
def test_resumed_equals_uninterrupted(run, whole, stop_before, call):
    stop_before(call)
    with pytest.raises(Stop):
        run("cut")
    resumed = run("cut")
    assert resumed[2] == [f"training continues after step {(call - 1) // 2 * 2}"]
    assert equal(resumed[1], whole[1])
    assert resumed[0].losses == whole[0].losses


def test_a_resumed_training_keeps_the_precision_that_it_began_in(run, whole, stop_before, monkeypatch):
    config = CONFIG.model_copy(update={"bf16": None})
    monkeypatch.setattr(schedule, "has_fast_bfloat16", lambda _: False)
    stop_before(4)
    with pytest.raises(Stop):
        run("cut", config=config)
    monkeypatch.setattr(schedule, "has_fast_bfloat16", lambda _: True)  # measured anew, beside other work
    assert equal(run("cut", config=config)[1], whole[1])


def test_a_finished_training_is_not_repeated(run, stop_before):
    first = run()
    stop_before(1)
    again = run()
    assert equal(first[1], again[1])
    assert again[2] == ["training continues after step 9"]
    assert again[0].losses == first[0].losses


@pytest.mark.parametrize("damage", ["no list", "cut short", "missing file"])
def test_a_checkpoint_that_is_not_whole_is_passed_over(run, whole, stop_before, tmp_path, damage):
    stop_before(6)
    with pytest.raises(Stop):
        run("cut")
    (newest,) = (tmp_path / "cut" / "checkpoints").glob("*/checkpoint-4")
    match damage:
        case "no list":
            (newest / checkpoints.FILES).unlink()
        case "cut short":
            os.truncate(newest / "optimizer.pt", (newest / "optimizer.pt").stat().st_size - 1)
        case "missing file":
            (newest / "rng_state.pth").unlink()
    resumed = run("cut")
    assert resumed[2] == [f"{newest} is not whole; it is removed", "training continues after step 2"]
    assert equal(resumed[1], whole[1])


@pytest.mark.parametrize("change", ["rows", "settings", "seed"])
def test_checkpoints_of_another_training_are_neither_resumed_nor_lost(run, whole, stop_before, examples, change):
    other = {
        "rows": {"rows": examples[:-1]},
        "settings": {"config": CONFIG.model_copy(update={"learning_rate": 5e-4})},
        "seed": {"seed": 8},
    }[change]
    expected = run("fresh", **other)
    stop_before(6)
    with pytest.raises(Stop):
        run("used")
    afresh = run("used", **other)
    assert len(afresh[2]) == 1
    assert f"checkpoint-4 is of another training ({change} differ) and is kept" in afresh[2][0]
    assert equal(afresh[1], expected[1])
    back = run("used")
    assert back[2] == ["training continues after step 4"]
    assert equal(back[1], whole[1])


def test_how_often_checkpoints_are_written_is_no_other_training(run, whole, stop_before):
    stop_before(6)
    with pytest.raises(Stop):
        run("cut")
    resumed = run("cut", config=CONFIG.model_copy(update={"checkpoint_steps": 3}))
    assert resumed[2] == ["training continues after step 4"]
    assert equal(resumed[1], whole[1])


CHILD = """
    import os, signal, sys
    from pathlib import Path
    import torch
    from gecko.config.training import TrainConfig
    from gecko.core.records import Example, Text
    from gecko.training import Sampling, train
    from gecko.training.loss import GeckoLoss

    torch.set_num_threads(1)
    start, folder, rows, sampling = sys.argv[1], Path(sys.argv[2]), eval(sys.argv[3]), eval(sys.argv[5])
    config = TrainConfig.model_validate_json(sys.argv[4])
    plain, calls = GeckoLoss.forward, iter(range(1, 100))

    def forward(self, *args):
        if next(calls) == int(sys.argv[6]):
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, *args)

    GeckoLoss.forward = forward
    checkpoints = folder / "checkpoints"
    train(rows, start, folder / "model", "native", config, 3, checkpoints=checkpoints, sampling=sampling)
"""


@pytest.fixture
def kill_at(tiny_bert, tmp_path):
    """Train in a process of its own, in ``tmp_path / "cut"``, that kills itself at the n-th call of the loss."""

    def go(call, rows, config, sampling=None):
        arguments = [str(tiny_bert), str(tmp_path / "cut"), repr(rows), config.model_dump_json(), repr(sampling)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(gecko.__file__).parents[1])}
        command = [sys.executable, "-c", textwrap.dedent(CHILD), *arguments, str(call)]
        child = subprocess.run(command, env=environment, timeout=300, check=False)
        assert child.returncode == -signal.SIGKILL

    return go


def test_killed_and_started_again_equals_uninterrupted(run, whole, kill_at, examples):
    kill_at(6, examples, CONFIG)
    resumed = run("cut")
    assert resumed[2] == ["training continues after step 4"]
    assert equal(resumed[1], whole[1])


# What carries a state of its own from step to step: gradients that are added up, the best measurement so far, weights that
# are not the model's, dropout that is drawn twice, and the sets' order.
STATEFUL = {
    "accumulation": {"accumulate": 2, "batch": 4},
    "patience": {"patience": 3, "measure_steps": 2, "heldout": 0.3},
    "low rank": {"backbone": BackboneConfig(lora_rank=2, lora_dropout=0.2, projection=40)},
    "GradCache": {"part_tokens": 32},
    "sets": {"batch": 4},
}


@pytest.mark.parametrize("option", [*(pytest.param(one, marks=pytest.mark.slow) for one in STATEFUL), "all of them"])
def test_killed_with_an_option_that_carries_state(run, stop_before, kill_at, examples, option):
    if option in ("low rank", "all of them"):
        pytest.importorskip("peft")
    chosen = STATEFUL if option == "all of them" else {option: STATEFUL[option]}
    config = CONFIG.model_copy(update={name: value for update in chosen.values() for name, value in update.items()})
    rows = [replace(row, dataset="one" if place < 13 else "two") for place, row in enumerate(examples)]
    sampling = Sampling({"two": 2.0}, bucket=2) if "sets" in chosen else None
    whole = run("whole", rows=rows, config=config, sampling=sampling)
    if option == "all of them":
        kill_at(9, rows, config, sampling)
    else:
        stop_before(6)
        with pytest.raises(Stop):
            run("cut", rows=rows, config=config, sampling=sampling)
    resumed = run("cut", rows=rows, config=config, sampling=sampling)
    assert any(line.startswith("training continues after step ") for line in resumed[2])
    assert equal(resumed[1], whole[1])
    assert resumed[0].losses == whole[0].losses
    assert resumed[0].heldout == whole[0].heldout
