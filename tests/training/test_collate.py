"""Batches of distinct texts, cut into parts of nearly equal length."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gecko.config.training import LossConfig
from gecko.training import Collator, GeckoLoss, to_dataset
from gecko.training.collate import cuts
from gecko.training.loss import places


@pytest.fixture(scope="module")
def model(tiny_bert):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(tiny_bert), device="cpu").eval()


def features_of(batch):
    """As the trainer splits a batch."""
    names = [name.removesuffix("input_ids") for name in batch if name.endswith("_input_ids")]
    return [{key.removeprefix(name): batch[key] for key in batch if key.startswith(name)} for name in names]


@pytest.mark.parametrize("call_tokens", [0, 8, 10_000])
@pytest.mark.parametrize("part_tokens", [None, 12])
def test_loss_and_gradients_are_those_of_the_stock_collator(model, examples, call_tokens, part_tokens):
    from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

    config = LossConfig(hard_negatives="all")
    rows = list(to_dataset([*examples, examples[0]], "native", config))
    results = []
    for collator in (
        SentenceTransformerDataCollator(model.preprocess),
        Collator(model.preprocess, call_tokens=call_tokens, part_tokens=part_tokens),
    ):
        batch = collator(rows)
        labels = batch["label"]
        parts = features_of(batch)
        loss = GeckoLoss(model, config, dims=[32, 8])(parts, labels)
        gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
        results.append((loss, [gradient for gradient in gradients if gradient is not None]))
    assert places(labels) is not None
    assert sum(len(part["input_ids"]) for part in parts) < len(rows) * 3  # each text once
    if call_tokens == 0 and part_tokens is None:
        assert all(part["attention_mask"].all() for part in parts)  # no padding at all
        assert len(parts) > 1
    if part_tokens:
        assert all(part["input_ids"].numel() <= part_tokens or len(part["input_ids"]) == 1 for part in parts)
    assert max(gradient.abs().max() for gradient in results[0][1]) > 1e-3
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def cost(lengths, ends, call_tokens, part_tokens):
    parts = list(itertools.pairwise([0, *ends]))
    assert all(part_tokens is None or lengths[a] * (b - a) <= part_tokens or b - a == 1 for a, b in parts)
    return sum(lengths[a] * (b - a) + call_tokens for a, b in parts)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8).map(lambda some: sorted(some, reverse=True)),
    st.integers(0, 12),
)
def test_cuts_are_the_cheapest_there_are(lengths, call_tokens):
    found = cuts(lengths, call_tokens, None)
    assert found[-1] == len(lengths)
    assert found == sorted(set(found))
    inner = range(1, len(lengths))
    every = ([*some, len(lengths)] for n in range(len(lengths)) for some in itertools.combinations(inner, n))
    assert cost(lengths, found, call_tokens, None) == min(cost(lengths, ends, call_tokens, None) for ends in every)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=50).map(lambda some: sorted(some, reverse=True)),
    st.integers(1, 60),
)
def test_parts_keep_the_bound_and_lose_nothing(lengths, part_tokens):
    found = cuts(lengths, 5, part_tokens)
    assert found[-1] == len(lengths)
    assert found == sorted(set(found))
    cost(lengths, found, 5, part_tokens)
