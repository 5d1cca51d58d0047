"""Training end to end on a tiny random BERT: what is learned, resumed, refused and left alone."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gecko.config import BackboneConfig, PretrainConfig, TrainConfig
from gecko.encoder import load_encoder
from gecko.errors import TrainingError
from gecko.training import Sampling, train, trainer
from gecko.training.loss import GeckoLoss
from gecko.training.trainer import enough_steps

CONFIG = TrainConfig(
    epochs=3, batch=8, learning_rate=1e-3, max_tokens=16, checkpoint_steps=2, bf16=False
)  # 3 steps an epoch


class Stop(Exception):
    """Ends a training from inside, as a kill would, but without a process of its own."""


@pytest.fixture(scope="module")
def run_in(tiny_bert, examples):
    """Train in a folder; gives the report, the weights and what was said."""

    def go(folder, config=CONFIG, rows=examples, seed=3, start=tiny_bert, sampling=None):
        said: list[str] = []
        report = train(
            rows,
            str(start),
            folder / "model",
            "native",
            config,
            seed,
            checkpoints=folder / "checkpoints",
            say=said.append,
            sampling=sampling,
        )
        return report, load_file(folder / "model" / "model.safetensors"), said

    return go


@pytest.fixture
def run(run_in, tmp_path):
    """The same in ``tmp_path / name``."""
    return lambda name="run", **kwargs: run_in(tmp_path / name, **kwargs)


@pytest.fixture(scope="module")
def whole(run_in, tmp_path_factory):
    """A training that nothing disturbed."""
    return run_in(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def stop_before(monkeypatch):
    """Make the loss raise ``Stop`` at its n-th call from now, once."""
    plain = GeckoLoss.forward

    def arm(call):
        calls = iter(range(1, 1000))

        def forward(self, *args):
            if next(calls) == call:
                raise Stop
            return plain(self, *args)

        monkeypatch.setattr(GeckoLoss, "forward", forward)

    return arm


def quiet(model, folder):
    """A copy without dropout, whose training does not depend on how the batch is cut."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def assert_moved_alike(start, one, other):
    """Two trainings moved the weights by the same, but for rounding: AdamW makes a step of the smallest gradient."""
    before = load_file(start / "model.safetensors")
    # a key's bias moves all logits alike: its gradient is zero, and its step nothing but rounding
    names = [name for name in before if not name.endswith("key.bias") and before[name].is_floating_point()]
    first, second = (torch.cat([(after[name] - before[name]).flatten() for name in names]) for after in (one, other))
    assert first.norm() > 0.01
    assert (first - second).norm() < 0.02 * first.norm()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_training_learns_and_reports(whole, tiny_bert):
    report, weights, said = whole
    assert (report.rows, report.steps, report.dims, report.form) == (20, 9, [32, 16, 8], "native")
    assert [step for step, _ in report.losses] == list(range(1, 10))
    losses = [loss for _, loss in report.losses]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])  # the last epoch against the first: the same rows
    assert all(weight.dtype == torch.float32 for weight in weights.values() if weight.is_floating_point())
    assert not equal(weights, load_file(tiny_bert / "model.safetensors"))
    assert said == []


def test_a_single_step_is_taken(run, tiny_bert):
    report, weights, _ = run(config=CONFIG.model_copy(update={"epochs": 1, "batch": 32}))
    assert report.steps == 1
    assert not equal(weights, load_file(tiny_bert / "model.safetensors"))


def test_the_saved_model_tells_its_widths(run, tmp_path):
    run(config=CONFIG.model_copy(update={"epochs": 1}))
    saved = json.loads((tmp_path / "run" / "model" / "config_sentence_transformers.json").read_text())
    assert saved["matryoshka_dimensions"] == [32, 16, 8]


def test_the_seed_alone_decides(run, whole):
    again, other = run("again")[1], run("other", seed=4)[1]
    assert equal(whole[1], again)
    assert not equal(whole[1], other)


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
    monkeypatch.setattr(trainer, "has_fast_bfloat16", lambda _: False)
    stop_before(4)
    with pytest.raises(Stop):
        run("cut", config=config)
    monkeypatch.setattr(trainer, "has_fast_bfloat16", lambda _: True)  # measured anew, beside other work
    assert equal(run("cut", config=config)[1], whole[1])


def test_a_batch_is_encoded_once_where_it_fits(run, whole, tiny_bert, monkeypatch):
    calls = []
    plain = GeckoLoss.forward_cached
    monkeypatch.setattr(GeckoLoss, "forward_cached", lambda self, *args: calls.append(1) or plain(self, *args))
    model = load_encoder(str(tiny_bert)).model
    shape = model.transformers_model.config
    monkeypatch.setattr(trainer, "device_memory", lambda _: 24 << 30)
    found = trainer._part_tokens(model, CONFIG)
    assert found == int((24 << 30) / 3 / (trainer.KEPT * shape.num_hidden_layers * shape.hidden_size))
    assert trainer._part_tokens(model, CONFIG.model_copy(update={"part_tokens": 99})) == 99
    assert trainer._part_tokens(model, CONFIG.model_copy(update={"devices": 2})) is None
    assert equal(run("fits")[1], whole[1])
    assert not calls
    monkeypatch.setattr(trainer, "LEAST_PART", 16)
    monkeypatch.setattr(trainer, "device_memory", lambda _: 1)
    assert run("small")[0].steps == 9
    assert len(calls) == 9


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
            (newest / trainer.FILES).unlink()
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


def test_fewer_rows_than_a_batch_and_no_negatives(run, examples):
    report, _, _ = run(rows=[examples[0], examples[5]], config=CONFIG.model_copy(update={"batch": 64}))
    assert report.steps == 3


@pytest.mark.parametrize(
    ("update", "dims"),
    [({"matryoshka": False}, [32]), ({"dims": [4, 12], "dim_weights": [2.0, 1.0, 1.0]}, [32, 12, 4])],
)
def test_widths(run, update, dims):
    assert run(config=CONFIG.model_copy(update={"epochs": 1, **update}))[0].dims == dims


@pytest.mark.parametrize(
    ("update", "message"), [({"dims": [32]}, "train.dims"), ({"dim_weights": [1.0]}, "dim_weights")]
)
def test_widths_that_do_not_fit_are_refused(run, update, message):
    with pytest.raises(TrainingError, match=message):
        run(config=CONFIG.model_copy(update=update))


def test_more_tokens_than_the_model_has_places_are_said(run):
    _, _, said = run(config=CONFIG.model_copy(update={"epochs": 1, "max_tokens": 256}))
    assert len(said) == 1
    assert "at most 64" in said[0]


def test_a_start_model_that_is_not_there_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TrainingError, match="nowhere"):
        run(start=tmp_path / "nowhere")


def test_a_loss_that_is_not_a_number_ends_the_training_and_keeps_the_checkpoint(run, monkeypatch, tmp_path):
    plain, calls = GeckoLoss.forward, iter(range(1, 100))

    def forward(self, *args):
        return plain(self, *args) * (float("nan") if next(calls) == 6 else 1.0)

    monkeypatch.setattr(GeckoLoss, "forward", forward)
    with pytest.raises(
        TrainingError, match=r"the loss is nan after step 5; the last good checkpoint is .*checkpoint-4"
    ):
        run()
    assert not (tmp_path / "run" / "model").exists()


def test_a_weight_that_is_not_a_number_is_never_saved(run, monkeypatch, tmp_path):
    plain, calls = GeckoLoss.forward, iter(range(1, 100))

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("nan")

    def forward(self, *args):
        loss = plain(self, *args)
        return Poison.apply(loss) if next(calls) == 4 else loss

    monkeypatch.setattr(GeckoLoss, "forward", forward)
    with pytest.raises(TrainingError, match=r"the weight .* is nan after step 4; .*checkpoint-2"):
        run()


def test_collapsed_embeddings_are_refused(run, monkeypatch, tmp_path):
    def pull_together(self, features, labels):
        vectors = torch.cat([self.model(side)["sentence_embedding"] for side in features])
        unit = torch.nn.functional.normalize(vectors, dim=-1)
        return -(unit @ unit.T).mean()

    monkeypatch.setattr(GeckoLoss, "forward", pull_together)
    with pytest.raises(TrainingError, match=r"collapsed.*checkpoint-\d"):
        run(config=CONFIG.model_copy(update={"epochs": 30, "learning_rate": 3e-3}))
    assert not (tmp_path / "run" / "model").exists()
    assert len(list((tmp_path / "run" / "checkpoints").glob(f"*/checkpoint-*/{trainer.FILES}"))) > 0


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        (0.3, 0.99, True),
        (0.99, 0.985, False),
        (0.999, 0.9999, False),  # a raw language model: its embeddings are all alike before the training
        (0.3, 0.9, False),
        (0.3, float("nan"), True),
        (0.999, float("nan"), True),
    ],
)
def test_what_counts_as_collapse(run, monkeypatch, before, after, refused):
    cosines = iter([before, *[after] * 9])
    monkeypatch.setattr(trainer, "_mean_cosine", lambda *_: next(cosines))
    if refused:
        with pytest.raises(TrainingError, match=r"collapsed.* is (0.99|nan).* after step 2; no checkpoint"):
            run()
    else:
        run()


def test_the_callers_random_state_is_left_alone_and_nothing_is_printed(run, capfd):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    run()
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert capfd.readouterr() == ("", "")


def test_bfloat16_computes_but_is_not_stored(run, whole):
    _, half, _ = run(config=CONFIG.model_copy(update={"bf16": True}))
    assert all(weight.dtype == torch.float32 for weight in half.values() if weight.is_floating_point())
    assert not equal(half, whole[1])


def test_a_batch_of_one_group_is_refused_by_name(run, examples):
    mixed = [replace(row, negatives=(), group="g" if i < 19 else "other") for i, row in enumerate(examples)]
    with pytest.raises(TrainingError, match=r"set 'toy', rows \d+, .* 3 more: all of this batch are of one group"):
        run(rows=mixed)


def test_a_set_smaller_than_a_batch_that_has_no_negative_is_refused(run, examples):
    few = [replace(row, dataset="few", negatives=(), group="g") for row in examples[:3]]
    with pytest.raises(TrainingError, match=r"set 'few', rows \d+, \d+, \d+: all of this batch are of one group"):
        run(rows=[*examples[3:], *few], sampling=Sampling())
    told_apart = [*few[:2], replace(few[2], group="other")]
    assert run("apart", rows=[*examples[3:], *told_apart], sampling=Sampling())[0].rows == 20


def test_errors_call_settings_as_the_command_does(run, examples, monkeypatch):
    config = PretrainConfig(**CONFIG.model_dump(exclude={"loss", "backbone", "formats"}))
    same = [replace(row, negatives=(), group="g" if i < 19 else "other") for i, row in enumerate(examples)]
    with pytest.raises(TrainingError, match=r"of one group .*; raise pretrain.batch, which is 8, so") as found:
        run(rows=same, config=config)
    assert "hard negatives" not in str(found.value)
    with pytest.raises(TrainingError, match=r"pretrain.dims = \[99\]"):
        run(config=config.model_copy(update={"dims": [99]}))
    plain = GeckoLoss.forward
    monkeypatch.setattr(GeckoLoss, "forward", lambda *args: plain(*args) * torch.nan)
    with pytest.raises(
        TrainingError, match=r"loss is nan .*Lower pretrain.learning_rate .*raise pretrain.loss.temperat"
    ):
        run(config=config)
    with pytest.raises(TrainingError, match=r"loss is nan .*Lower train.learning_rate .*raise train.loss.temperature"):
        run()


def test_cached_gradients_train_the_same_model(run, tiny_bert, tmp_path):
    update = {"epochs": 1, "loss": CONFIG.loss.model_copy(update={"hard_negatives": "all"})}
    calm = quiet(tiny_bert, tmp_path / "calm")
    plain = run("plain", start=calm, config=CONFIG.model_copy(update=update))
    cached = run("cached", start=calm, config=CONFIG.model_copy(update={**update, "part_tokens": 32}))
    assert_moved_alike(tiny_bert, plain[1], cached[1])
    assert [loss for _, loss in cached[0].losses] == pytest.approx([loss for _, loss in plain[0].losses], abs=1e-3)


def test_accumulation_takes_fewer_steps_and_says_what_it_is_not(run):
    report, _, said = run(config=CONFIG.model_copy(update={"accumulate": 3}))
    assert report.steps == 3
    assert said == ["3 batches a step; that adds no negatives: a row sees those of its 8 rows"]


def test_listwise_distillation_needs_the_passages_and_changes_what_is_learned(tiny_bert, examples, whole, tmp_path):
    passages = {row.positive.id: row.positive for row in examples}
    names = list(passages)
    rows = [
        replace(row, candidates=tuple(names[(i + 5 * k) % 20] for k in range(4)), fused=(2.0, 1.5, 0.6, 0.4))
        for i, row in enumerate(examples)
    ]
    config = CONFIG.model_copy(update={"loss": CONFIG.loss.model_copy(update={"distill": 1.0})})
    model, checkpoints = tmp_path / "model", tmp_path / "checkpoints"
    with pytest.raises(TrainingError, match="set 'toy', row 0 .*candidate 'p0' is not among the 0 passages"):
        train(rows, str(tiny_bert), model, "native", config, 3, checkpoints=checkpoints)
    report = train(rows, str(tiny_bert), model, "native", config, 3, checkpoints=checkpoints, passages=passages)
    assert report.losses[0][1] > whole[0].losses[0][1] + 0.01  # the divergence is on top
    assert not equal(load_file(model / "model.safetensors"), whole[1])


def test_low_rank_updates_are_resumed_and_merged(run, stop_before, tiny_bert, tmp_path):
    pytest.importorskip("peft")
    config = CONFIG.model_copy(update={"epochs": 1, "backbone": BackboneConfig(lora_rank=2, projection=40)})
    whole = run("whole", config=config)
    assert whole[0].dims == [40, 20, 10]
    stop_before(3)
    with pytest.raises(Stop):
        run("cut", config=config)
    (file,) = (tmp_path / "cut" / "checkpoints").glob(f"*/checkpoint-2/{trainer.LORA}")
    kept = load_file(file)
    assert {"lora" in name or "linear" in name for name in kept} == {True}
    resumed = run("cut", config=config)
    assert resumed[2] == ["training continues after step 2"]
    assert equal(resumed[1], whole[1])
    start = load_file(tiny_bert / "model.safetensors")
    changed = [name for name in start if not torch.equal(start[name], whole[1][name])]
    assert changed
    assert all(name.endswith("weight") and start[name].ndim == 2 for name in changed)
    assert start.keys() == whole[1].keys()


def test_two_processes_train_what_one_does(run, tiny_bert, examples, tmp_path):
    calm = quiet(tiny_bert, tmp_path / "calm")
    loss = CONFIG.loss.model_copy(update={"hard_negatives": "all"})
    config = CONFIG.model_copy(update={"loss": loss, "epochs": 1, "part_tokens": 40})
    rows = [*examples, *examples[:4]]  # 24: full batches only
    one = run("one", start=calm, config=config, rows=rows)
    two = run("two", start=calm, config=config.model_copy(update={"devices": 2}), rows=rows)
    assert two[0].steps == one[0].steps == 3
    assert two[2] == ["training in 2 processes that share each batch of 8 rows"]
    assert_moved_alike(calm, one[1], two[1])
    assert [loss for _, loss in two[0].losses] == pytest.approx([loss for _, loss in one[0].losses], abs=2e-3)


def test_what_goes_wrong_in_a_process_is_told(run):
    with pytest.raises(TrainingError, match="train.batch = 9 cannot be shared by 2 devices"):
        run(config=CONFIG.model_copy(update={"devices": 2, "batch": 9}))


CHILD = """
    import os, signal, sys
    from pathlib import Path
    import torch
    from gecko.config import TrainConfig
    from gecko.records import Example, Text
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
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(trainer.__file__).parents[2])}
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


@pytest.mark.parametrize("option", [*STATEFUL, "all of them"])
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


def test_few_rows_are_gone_through_more_often() -> None:
    config = TrainConfig(epochs=3, batch=64, min_steps=30)
    small = enough_steps(config, 46)
    assert (small.batch, small.epochs) == (16, 10)
    assert small.epochs * -(-46 // small.batch) >= 30
    assert enough_steps(config, 640) is config
    assert enough_steps(config.model_copy(update={"min_steps": 0}), 2).epochs == 3
    assert enough_steps(config, 600).epochs == 3  # small batches alone are enough
    assert enough_steps(small, 46) == small
    few = enough_steps(config, 20)
    assert (few.batch, few.epochs) == (16, 10)  # thirty passes through few rows do harm
    assert enough_steps(few, 20) == few
    assert enough_steps(config, 19) is config  # and so do ten through fewer
    assert enough_steps(config.model_copy(update={"epochs": 12}), 20).epochs == 12
    assert enough_steps(config.model_copy(update={"batch": 96, "devices": 3}), 46).batch == 18  # six rows a device
