"""The loss against a version written loop by loop from the paper."""

import itertools
import math

import pytest
import torch

from gecko.config import LossConfig
from gecko.errors import TrainingError
from gecko.training.loss import ABSENT, GeckoLoss, RowIds, gecko_loss, matryoshka_loss

B, K, D = 7, 2, 8


def cosine(a, b):
    return (a @ b) / (a.norm() * b.norm())


def slow_loss(queries, positives, negatives, ids, config):
    """Eq. 3, one exponential at a time."""
    tau, margin = config.temperature, config.false_negative_margin
    rows, hard = ids.negatives.shape

    def are_related(i, j):
        if not config.mask_groups:
            return False
        mine, theirs = {int(ids.query[i]), int(ids.positive[i])}, {int(ids.query[j]), int(ids.positive[j])}
        return bool(mine & theirs) or (ids.group[i] == ids.group[j] != ABSENT)

    total = 0.0
    for i in range(rows):
        own = cosine(queries[i], positives[i])

        def counts(score, own=own):
            return margin is None or score <= own + margin

        below = torch.exp(own / tau)
        for j in range(rows):
            if j == i or are_related(i, j):
                continue
            score = cosine(queries[i], positives[j])
            if counts(score):
                below = below + torch.exp(score / tau)
            score = cosine(queries[i], queries[j])
            if config.same_tower and counts(score):
                below = below + torch.exp(score / tau)
        for j in range(rows):
            for k in range(hard):
                negative = int(ids.negatives[j, k])
                if negative == ABSENT or (config.mask_groups and negative == int(ids.positive[i])):
                    continue
                score = cosine(queries[i], negatives[j, k])
                if j == i and config.hard_negatives in ("own", "all"):
                    below = below + math.exp(config.hardness * score.item()) * torch.exp(score / tau)
                if j != i and config.hard_negatives == "all" and counts(score):
                    below = below + torch.exp(score / tau)
        total = total - ids.weight[i].double() * torch.log(torch.exp(own / tau) / below)
    return total / rows


@pytest.fixture
def batch():
    """Random embeddings, and ids with every kind of relation: a group, two equal texts, a crossed pair, absences."""
    generator = torch.Generator().manual_seed(1)
    vectors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((B, D), (B, D), (B, K, D))]
    ids = RowIds(
        query=torch.tensor([0, 1, 2, 3, 4, 0, 15]),  # 0 and 5 ask the same; 6 asks what is 5's positive
        positive=torch.tensor([10, 11, 12, 11, 14, 15, 16]),  # 1 and 3 have the same positive
        group=torch.tensor([ABSENT, 1, 2, 3, 2, ABSENT, ABSENT]),  # 2 and 4 are of one class
        negatives=torch.tensor([[20, 21], [22, ABSENT], [10, 23], [24, 25], [ABSENT, ABSENT], [26, 15], [27, 28]]),
        weight=torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0, 1.5, 1.0]),
    )
    return [vector.requires_grad_() for vector in vectors], ids


SWITCHES = {
    "same_tower": (True, False),
    "mask_groups": (True, False),
    "hard_negatives": ("own", "all", "none"),
    "false_negative_margin": (None, 0.1),
    "hardness": (0.0, 2.0),
}
COMBINATIONS = [dict(zip(SWITCHES, values, strict=True)) for values in itertools.product(*SWITCHES.values())]


@pytest.mark.parametrize("switches", COMBINATIONS, ids=lambda s: "-".join(map(str, s.values())))
def test_loss_and_gradients_equal_the_paper_written_as_loops(batch, switches):
    vectors, ids = batch
    config = LossConfig(temperature=0.2, **switches)
    fast, slow = gecko_loss(*vectors, ids, config), slow_loss(*vectors, ids, config)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    no_negatives = config.hard_negatives == "none"
    used = vectors[:2] if no_negatives else vectors
    for one, other in zip(torch.autograd.grad(fast, used), torch.autograd.grad(slow, used), strict=True):
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_every_switch_changes_the_value(batch):
    vectors, ids = batch
    base = {name: values[0] for name, values in SWITCHES.items()}
    value = gecko_loss(*vectors, ids, LossConfig(temperature=0.2, **base)).item()
    for name, (_, *others) in SWITCHES.items():
        for other in others:
            changed = gecko_loss(*vectors, ids, LossConfig(temperature=0.2, **{**base, name: other})).item()
            assert abs(changed - value) > 1e-3, (name, other)


@pytest.mark.parametrize("kind", ["query", "positive", "group", "crossed"])
def test_every_kind_of_relation_masks(batch, kind):
    _, ids = batch
    rows = {"query": (0, 5), "positive": (1, 3), "group": (2, 4), "crossed": (5, 6)}[kind]
    related = ids.related()
    assert related[rows]
    assert torch.equal(related, related.T)
    assert int(related.sum()) == B + 2 * 4


def test_equation_2_is_cross_entropy_over_the_batch(batch):
    (queries, positives, negatives), ids = batch
    config = LossConfig(temperature=0.05, same_tower=False, mask_groups=False, hard_negatives="none")
    even = RowIds(ids.query, ids.positive, ids.group, ids.negatives, torch.ones(B))
    unit = [torch.nn.functional.normalize(side, dim=-1) for side in (queries, positives)]
    expected = torch.nn.functional.cross_entropy(unit[0] @ unit[1].T / 0.05, torch.arange(B))
    torch.testing.assert_close(gecko_loss(queries, positives, negatives, even, config), expected)


def test_equation_3_with_one_negative_is_cross_entropy_over_its_candidates(batch):
    (queries, positives, negatives), ids = batch
    config = LossConfig(temperature=0.05, mask_groups=False)
    one = RowIds(ids.query, ids.positive, ids.group, torch.full((B, 1), 99), torch.ones(B))
    q, p, n = (torch.nn.functional.normalize(side, dim=-1) for side in (queries, positives, negatives[:, 0]))
    others = (q @ q.T)[~torch.eye(B, dtype=torch.bool)].reshape(B, B - 1)
    candidates = torch.cat([q @ p.T, others, (q * n).sum(1, keepdim=True)], dim=1)
    expected = torch.nn.functional.cross_entropy(candidates / 0.05, torch.arange(B))
    torch.testing.assert_close(gecko_loss(queries, positives, negatives[:, :1], one, config), expected)


def test_absent_negatives_have_no_influence_whatever_they_are(batch):
    (queries, positives, negatives), ids = batch
    poisoned = negatives.detach().clone()
    poisoned[ids.negatives == ABSENT] = 1e6
    for mode in ("own", "all"):
        config = LossConfig(hard_negatives=mode)
        value = gecko_loss(queries, positives, negatives, ids, config)
        assert torch.equal(value, gecko_loss(queries, positives, poisoned, ids, config))


def test_a_single_row_and_no_negatives_cost_nothing():
    one = torch.ones(1, D, requires_grad=True)
    ids = RowIds(*(torch.zeros(1, dtype=torch.long),) * 3, torch.empty(1, 0, dtype=torch.long), torch.ones(1))
    loss = gecko_loss(one, one, torch.empty(1, 0, D), ids, LossConfig(hard_negatives="all"))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(one.grad).all()


def test_matryoshka_is_the_mean_over_prefixes(batch):
    vectors, ids = batch
    config = LossConfig(temperature=0.2)
    at = {dim: slow_loss(*(vector[..., :dim] for vector in vectors), ids, config) for dim in (8, 4, 2)}
    torch.testing.assert_close(matryoshka_loss(*vectors, ids, config, [8, 4, 2]), sum(at.values()) / 3)
    weighted = matryoshka_loss(*vectors, ids, config, [8, 4, 2], [2.0, 1.0, 1.0])
    torch.testing.assert_close(weighted, (2 * at[8] + at[4] + at[2]) / 4)
    assert len({round(value.item(), 4) for value in at.values()}) == 3


@pytest.mark.parametrize(("dims", "weights"), [([9], []), ([0], []), ([], []), ([8, 4], [1.0])])
def test_matryoshka_refuses_widths_that_do_not_fit(batch, dims, weights):
    vectors, ids = batch
    with pytest.raises(TrainingError, match="width"):
        matryoshka_loss(*vectors, ids, LossConfig(), dims, weights)


class Lookup(torch.nn.Module):
    """An encoder that is given its embeddings."""

    def forward(self, features):
        return {"sentence_embedding": features["vectors"]}


def labels_of(ids: RowIds) -> torch.Tensor:
    bits = ids.weight.view(torch.int32).long()
    return torch.cat([torch.stack([ids.query, ids.positive, ids.group, bits], dim=1), ids.negatives], dim=1)


def test_module_splits_columns_and_labels(batch):
    (queries, positives, negatives), ids = batch
    columns = [{"vectors": side} for side in (queries, positives, negatives[:, 0], negatives[:, 1])]
    loss = GeckoLoss(Lookup(), LossConfig(), dims=[8, 4])
    expected = matryoshka_loss(queries, positives, negatives, ids, LossConfig(), [8, 4])
    assert torch.equal(loss(columns, labels_of(ids)), expected)
    with pytest.raises(TrainingError, match="3 text columns, but labels for 4"):
        loss(columns[:3], labels_of(ids))
    with pytest.raises(TrainingError, match="shape"):
        loss(columns, labels_of(ids)[:, :3])


def test_module_compares_half_precision_in_float32(batch):
    vectors, ids = batch
    half = [vector.detach().bfloat16() for vector in vectors]
    columns = [{"vectors": side} for side in (half[0], half[1], half[2][:, 0], half[2][:, 1])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = GeckoLoss(Lookup(), LossConfig())(columns, labels_of(ids))
    torch.testing.assert_close(loss, gecko_loss(*(side.float() for side in half), ids, LossConfig()))
