"""Early stopping on held-out rows, and TensorBoard logs: what is measured, kept, resumed and refused."""

import sys

import pytest
import torch

from gecko.config.training import TrainConfig
from gecko.core.errors import TrainingError
from gecko.training.heldout import hold_out
from gecko.training.loss import GeckoLoss

from .conftest import Stop, equal

CONFIG = TrainConfig(
    epochs=40,
    batch=8,
    learning_rate=3e-3,
    max_tokens=16,
    measure_steps=2,
    patience=2,
    heldout=0.3,
    bf16=False,
    loss={"same_tower": False},
)


@pytest.fixture
def run(run_in, tmp_path):
    return lambda name="run", config=CONFIG: run_in(tmp_path / name, config)


def test_it_stops_keeps_the_best_and_never_trains_on_what_is_held_out(run, examples, monkeypatch):
    plain, trained, measured = GeckoLoss.forward, set(), []

    def forward(self, features, labels):
        rows = labels[:, 5].tolist()
        trained.update(rows) if torch.is_grad_enabled() else measured.append(rows)
        return plain(self, features, labels)

    monkeypatch.setattr(GeckoLoss, "forward", forward)
    report, weights, said = run()
    kept, held = hold_out(examples, 0.3, 3)
    assert trained == set(kept)
    assert measured == [held] * len(report.heldout)
    assert report.rows == len(kept) == 14
    losses = [loss for _, loss in report.heldout]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 2  # two measurements that were no better
    assert report.steps == report.heldout[-1][0] < 80
    assert [step for step, _ in report.heldout] == list(range(2, report.steps + 1, 2))
    step = report.heldout[best][0]
    assert said == [f"kept the model after step {step} of {report.steps}: held-out loss {min(losses):.4f}"]
    again = run("again")
    assert equal(again[1], weights)
    assert again[0].heldout == report.heldout


def test_the_kept_weights_are_those_of_the_best_measurement(run, monkeypatch, tiny_bert):
    from gecko.training import trainer

    saved = {}
    plain = trainer._Trainer._save_checkpoint

    def save(self, *args, **kwargs):
        saved[self.state.global_step] = {name: value.clone() for name, value in self.model.state_dict().items()}
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(trainer._Trainer, "_save_checkpoint", save)
    report, weights, _ = run()
    best = min(report.heldout, key=lambda entry: entry[1])[0]
    named = {name.split(".", 2)[-1]: value for name, value in saved[best].items()}
    last = {name.split(".", 2)[-1]: value for name, value in saved[report.steps].items()}
    shared = [name for name in weights if name in named]
    assert shared
    assert all(torch.equal(weights[name], named[name]) for name in shared)
    assert not all(torch.equal(weights[name], last[name]) for name in shared)


@pytest.mark.parametrize("when", ["early", "after the stop"])
def test_resumed_equals_uninterrupted(run, monkeypatch, when):
    report, weights, _ = run("whole")
    plain, calls = GeckoLoss.forward, iter(range(1, 1000))

    def forward(self, *args):
        if when == "early" and next(calls) == 8:
            raise Stop
        return plain(self, *args)

    from gecko.training import trainer

    with monkeypatch.context() as patch:
        if when == "early":
            patch.setattr(GeckoLoss, "forward", forward)
        else:  # killed when all is trained, before the model is saved

            def stop(self):
                raise Stop

            patch.setattr(trainer._Trainer, "_load_best_model", stop)
        with pytest.raises(Stop):
            run("cut")
    resumed = run("cut")
    assert equal(resumed[1], weights)
    assert resumed[0].heldout[: len(report.heldout)] == report.heldout


def test_without_patience_nothing_is_held_out(run, examples):
    report, _, said = run(config=CONFIG.model_copy(update={"patience": None, "epochs": 1}))
    assert (report.rows, report.heldout, said) == (len(examples), [], [])


def test_several_devices_are_refused(run):
    from gecko.training.trainer import _parts

    with pytest.raises(TrainingError, match=r"train\.patience = 2 and train\.devices = 2"):
        _parts([], CONFIG.model_copy(update={"devices": 2}), 0)


def test_tensorboard_logs_are_written_only_if_asked_for(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    short = CONFIG.model_copy(update={"epochs": 1})
    report, weights, _ = run("with", short.model_copy(update={"tensorboard": True}))
    _, plain, _ = run("without", short)
    assert equal(weights, plain)
    assert not (tmp_path / "without" / "tensorboard").exists()
    events = EventAccumulator(str(tmp_path / "with" / "tensorboard"))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("eval/loss")}
    assert logged == pytest.approx(dict(report.heldout))
    assert {event.step for event in events.Scalars("train/loss")} == {step for step, _ in report.losses}


def test_tensorboard_without_its_package_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match="pip install tensorboard"):
        run(config=CONFIG.model_copy(update={"tensorboard": True, "epochs": 1}))
