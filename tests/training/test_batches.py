"""Batches of one set each, by weight and temperature, the same for the same seed and epoch."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from gecko.config.training import TrainConfig
from gecko.core.errors import TrainingError
from gecko.training import Sampling, train
from gecko.training.batches import SetBatches, batches_by_set
from gecko.training.loss import GeckoLoss

SIZES = {"a": 40, "b": 11, "c": 4}
SETS = [name for name, size in SIZES.items() for _ in range(size)]
LENGTHS = np.random.default_rng(0).integers(1, 1000, len(SETS)).tolist()


def sampler(sampling=Sampling(), batch=4, seed=1, epoch=0, **kwargs):  # noqa: B008
    made = SetBatches(SETS, LENGTHS, batch, sampling, seed, **kwargs)
    made.set_epoch(epoch)
    return made


def sets_of(batches):
    return Counter(SETS[batch[0]] for batch in batches)


@pytest.mark.parametrize("bucket", [0, 3])
def test_plain_sampling_sees_each_row_once_and_each_batch_is_of_one_set(bucket):
    batches = list(sampler(Sampling(bucket=bucket)))
    assert sorted(row for batch in batches for row in batch) == list(range(len(SETS)))
    assert all(len({SETS[row] for row in batch}) == 1 for batch in batches)
    assert len(batches) == len(sampler()) == 10 + 3 + 1
    assert [SETS[batch[0]] for batch in batches] != sorted(SETS[batch[0]] for batch in batches)  # sets are mixed


def test_seed_and_epoch_decide_and_nothing_else():
    first = list(sampler())
    assert first == list(sampler())
    assert first != list(sampler(epoch=1))
    assert first != list(sampler(seed=2))


def test_weights_are_passes():
    made = sampler(Sampling(weights={"a": 0.5, "b": 2.0}))
    assert made.counts == {"a": 6, "b": 7, "c": 1}  # 5 : 6 : 1, stretched to the 14 batches of one pass
    batches = list(made)
    assert sets_of(batches) == made.counts
    seen = Counter(row for batch in batches for row in batch)
    assert {seen[row] for row, name in enumerate(SETS) if name == "a"} == {0, 1}
    assert {seen[row] for row, name in enumerate(SETS) if name == "b"} <= {2, 3}
    made.set_epoch(1)
    assert {row for batch in made for row in batch} != set(seen)  # another part of the set that is not seen whole


def test_temperature_flattens_the_shares():
    flat = sampler(Sampling(temperature=1e9)).counts
    half = sampler(Sampling(temperature=2.0)).counts
    assert flat == {"a": 5, "b": 5, "c": 4}
    assert 10 > half["a"] > flat["a"]
    assert sum(half.values()) == sum(flat.values()) == 14


@given(
    st.lists(st.integers(1, 10_000), min_size=1, max_size=8),
    st.integers(2, 512),
    st.floats(0.1, 1e6),
    st.lists(st.floats(0.01, 100), min_size=8, max_size=8),
)
def test_the_counts_add_up(sizes, batch, temperature, weights):
    named = {str(place): size for place, size in enumerate(sizes)}
    weighted = Sampling({name: weights[int(name)] for name in named}, temperature)
    counts = batches_by_set(named, batch, weighted)
    natural = sum(-(-size // batch) for size in sizes)
    assert min(counts.values()) >= 1
    assert natural <= sum(counts.values()) <= natural + len(sizes)
    assert batches_by_set(named, batch, Sampling()) == {name: -(-size // batch) for name, size in named.items()}


def test_a_weight_of_0_leaves_a_set_out():
    assert sets_of(sampler(Sampling(weights={"a": 0.0}))).keys() == {"b", "c"}


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"a": 0.0, "b": 0.0, "c": 0.0}, "all sets"), ({"d": 1.0}, "weights for d, but the sets are a, b, c")],
)
def test_weights_that_draw_nothing_are_refused(weights, message):
    with pytest.raises(TrainingError, match=message):
        sampler(Sampling(weights=weights))


def test_buckets_hold_rows_of_like_length():
    def spread(batches):
        return np.mean([np.ptp([LENGTHS[row] for row in batch]) for batch in batches])

    assert spread(sampler(Sampling(bucket=10))) < 0.35 * spread(sampler())


def test_processes_share_a_batch_of_one_set():
    batches = list(sampler(processes=3))
    assert len(batches) % 3 == 0
    for start in range(0, len(batches), 3):
        together = batches[start : start + 3]
        assert len({SETS[row] for part in together for row in part}) == 1
        assert len({len(part) for part in together}) == 1
        assert len({row for part in together for row in part}) == sum(map(len, together))


def test_a_set_smaller_than_the_processes_is_refused():
    with pytest.raises(TrainingError, match="set 'c' has 4 rows for 5 processes"):
        sampler(processes=5)


CONFIG = TrainConfig(epochs=2, batch=4, learning_rate=1e-3, max_tokens=16, checkpoint_steps=2, bf16=False)


def test_training_by_sets_resumes_exactly(tiny_bert, examples, tmp_path, monkeypatch):
    rows = [replace(row, dataset="one" if place < 13 else "two") for place, row in enumerate(examples)]
    plain, seen = GeckoLoss.forward, []

    def run(name, stop=0):
        calls = iter(range(1, 100))

        def forward(self, features, labels):
            if next(calls) == stop:
                raise KeyboardInterrupt
            seen.append(labels[:, 2].tolist())  # the groups: in these rows, one a positive
            return plain(self, features, labels)

        monkeypatch.setattr(GeckoLoss, "forward", forward)
        folder = tmp_path / name
        report = train(
            rows,
            str(tiny_bert),
            folder / "model",
            "native",
            CONFIG,
            3,
            checkpoints=folder / "checkpoints",
            sampling=Sampling(weights={"two": 2.0}, bucket=2),
        )
        return report.steps, load_file(folder / "model" / "model.safetensors")

    steps, whole = run("whole")
    assert steps == len(seen) == 2 * 6
    assert all(max(batch) < 13 or min(batch) >= 13 for batch in seen)
    for stop in (4, 8, 10):
        with pytest.raises(KeyboardInterrupt):
            run(f"cut{stop}", stop)
        resumed = run(f"cut{stop}")[1]
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
