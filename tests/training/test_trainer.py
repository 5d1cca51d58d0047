"""Training end to end on a tiny random BERT: what is learned, resumed, refused and left alone."""

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gecko.config.training import BackboneConfig, PretrainConfig
from gecko.core.errors import TrainingError
from gecko.encoder import load_encoder
from gecko.training import Sampling, train, trainer
from gecko.training.checkpoints import FILES
from gecko.training.loss import GeckoLoss

from .conftest import CONFIG, Stop, equal


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


def test_a_batch_is_encoded_once_where_it_fits(run, whole, tiny_bert, monkeypatch):
    calls = []
    plain = GeckoLoss.forward_cached
    monkeypatch.setattr(GeckoLoss, "forward_cached", lambda self, *args: calls.append(1) or plain(self, *args))
    model = load_encoder(str(tiny_bert)).model
    monkeypatch.setattr(trainer, "device_memory", lambda _: 24 << 30)
    # a third, 8,589,934,592 bytes, in tokens of 12,800: 200 for each of 32 numbers in 2 layers
    assert trainer._part_tokens(model, CONFIG) == 671_088
    assert trainer._part_tokens(model, CONFIG.model_copy(update={"part_tokens": 99})) == 99
    assert trainer._part_tokens(model, CONFIG.model_copy(update={"devices": 2})) is None
    assert equal(run("fits")[1], whole[1])
    assert not calls
    monkeypatch.setattr(trainer, "LEAST_PART", 16)
    monkeypatch.setattr(trainer, "device_memory", lambda _: 1)
    assert run("small")[0].steps == 9
    assert len(calls) == 9


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
    assert len(list((tmp_path / "run" / "checkpoints").glob(f"*/checkpoint-*/{FILES}"))) > 0


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_told(run):
    with pytest.raises(TrainingError, match="train.batch = 9 cannot be shared by 2 devices"):
        run(config=CONFIG.model_copy(update={"devices": 2, "batch": 9}))
