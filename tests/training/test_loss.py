"""The loss against a version written loop by loop from the paper."""

import itertools
import math
import os
import subprocess
import sys
import textwrap
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import gecko
from gecko.config.training import LossConfig
from gecko.core.errors import TrainingError
from gecko.training.loss import (
    ABSENT,
    GeckoLoss,
    RowIds,
    divergence,
    gecko_loss,
    matryoshka_loss,
    places,
)

B, K, C, D = 6, 2, 3, 8


def bare_ids(rows: int) -> RowIds:
    """Rows that have nothing in common, and neither hard negatives nor candidates."""
    each, none = torch.arange(rows), torch.empty(rows, 0, dtype=torch.long)
    return RowIds(
        query=each,
        positive=each + rows,
        group=torch.full((rows,), ABSENT),
        weight=torch.ones(rows),
        same_tower=torch.ones(rows, dtype=torch.bool),
        row=each,
        negatives=none,
        candidates=none,
        fused=torch.empty(rows, 0),
    )


def cosine(a, b):
    return (a @ b) / (a.norm() * b.norm())


def slow_loss(queries, positives, negatives, ids, config, candidates=None):
    """Eq. 3 and its additions, one exponential at a time."""
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
            if config.same_tower and ids.same_tower[i] and counts(score):
                below = below + torch.exp(score / tau)
        for j in range(rows):
            for k in range(hard):
                negative = int(ids.negatives[j, k])
                if negative == ABSENT or (config.mask_groups and negative == int(ids.positive[i])):
                    continue
                score = cosine(queries[i], negatives[j, k])
                if j == i and config.hard_negatives in ("own", "all"):
                    below = below + math.exp(config.hardness * score.item()) * torch.exp(score / tau)
                is_query = config.mask_groups and negative == int(ids.query[i])
                if j != i and config.hard_negatives == "all" and not is_query and counts(score):
                    below = below + torch.exp(score / tau)
        term = -torch.log(torch.exp(own / tau) / below)
        there = [c for c in range(C) if int(ids.candidates[i, c]) != ABSENT]
        if config.distill and len(there) >= 2:
            wanted = torch.exp(ids.fused[i, there].double() / config.distill_temperature)
            given = torch.stack([torch.exp(cosine(queries[i], candidates[i, c]) / tau) for c in there])
            wanted, given = wanted / wanted.sum(), given / given.sum()
            term = term + config.distill * sum(w * torch.log(w / g) for w, g in zip(wanted, given, strict=True))
        total = total + ids.weight[i].double() * term
    return total / rows


@pytest.fixture
def batch():
    """Random embeddings, and ids with every kind of relation: a group, two equal texts, a crossed pair, absences."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((B, D), (B, D), (B, K, D))
    vectors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    ids = RowIds(
        query=torch.tensor([0, 1, 2, 3, 4, 0]),  # 0 and 5 ask the same
        positive=torch.tensor([10, 11, 3, 11, 14, 15]),  # 1 and 3 have the same positive; 3 asks what is 2's positive
        group=torch.tensor([ABSENT, 1, 2, 3, 2, ABSENT]),  # 2 and 4 are of one class
        weight=torch.tensor([1.0, 0.5, 2.0, 1.0, 0.25, 1.5]),
        same_tower=torch.tensor([True, False, True, True, False, True]),
        row=torch.arange(B),
        negatives=torch.tensor(
            [[20, 21], [22, ABSENT], [10, 23], [24, 1], [ABSENT, ABSENT], [26, 15]]
        ),  # 3 has 1's query
        candidates=torch.tensor(
            [[10, 20, 30], [11, 31, ABSENT], [3, 23, 32], [ABSENT] * 3, [14, 33, 34], [15, -1, -1]]
        ),
        fused=torch.rand(B, C, generator=generator) * 2,
    )
    return [vector.requires_grad_() for vector in vectors], ids


@pytest.fixture
def extra():
    """What the listwise term compares."""
    generator = torch.Generator().manual_seed(2)
    return {"candidates": torch.randn(B, C, D, generator=generator, dtype=torch.float64).requires_grad_()}


SWITCHES = {
    "same_tower": (True, False),
    "mask_groups": (True, False),
    "hard_negatives": ("own", "all", "none"),
    "false_negative_margin": (None, 0.1),
    "hardness": (0.0, 2.0),
    "distill": (0.0, 1.5),
}
COMBINATIONS = [dict(zip(SWITCHES, values, strict=True)) for values in itertools.product(*SWITCHES.values())]
SOME = COMBINATIONS[::7]  # few, of which each value of a switch still meets each of another (tested below)


@pytest.mark.parametrize("some", range(16))
def test_loss_and_gradients_equal_the_paper_written_as_loops(batch, extra, some):
    vectors, ids = batch
    for switches in COMBINATIONS[some::16]:
        config = LossConfig(temperature=0.2, **switches)
        fast, slow = gecko_loss(*vectors, ids, config, **extra), slow_loss(*vectors, ids, config, **extra)
        torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0, msg=str(switches))
        used = vectors[: 2 if config.hard_negatives == "none" else 3]
        used = [*used, extra["candidates"]] if config.distill else used
        for one, other in zip(torch.autograd.grad(fast, used), torch.autograd.grad(slow, used), strict=True):
            assert one.abs().max() > 1e-3, switches
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=str(switches))


def test_the_combinations_are_all_there():
    assert len(COMBINATIONS) == 3 * 2**5
    assert len({str(switches) for some in range(16) for switches in COMBINATIONS[some::16]}) == len(COMBINATIONS)


@pytest.mark.parametrize("switches", [{}, {"hard_negatives": "all", "distill": 1.0}])
def test_the_loss_of_some_rows_is_their_share_of_the_whole(batch, extra, switches):
    vectors, ids = batch
    config = LossConfig(temperature=0.2, **switches)
    whole = gecko_loss(*vectors, ids, config, **extra)
    parts = [
        gecko_loss(*vectors, ids, config, rows=rows, **{name: value[rows] for name, value in extra.items()})
        for rows in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close((2 * parts[0] + 4 * parts[1]) / 6, whole)
    assert not torch.allclose(parts[0], parts[1])


def test_every_switch_changes_the_value(batch, extra):
    vectors, ids = batch
    base = {name: values[0] for name, values in SWITCHES.items()}
    value = gecko_loss(*vectors, ids, LossConfig(temperature=0.2, **base)).item()
    for name, (_, *others) in SWITCHES.items():
        for other in others:
            changed = gecko_loss(*vectors, ids, LossConfig(temperature=0.2, **{**base, name: other}), **extra).item()
            assert abs(changed - value) > 1e-3, (name, other)


def test_same_tower_is_decided_row_by_row(batch):
    vectors, ids = batch
    values = [
        gecko_loss(*vectors, replace(ids, same_tower=which), LossConfig(same_tower=switch)).item()
        for which, switch in [
            (torch.ones(B, dtype=torch.bool), True),
            (ids.same_tower, "symmetric"),
            (torch.zeros(B, dtype=torch.bool), ["some set"]),
            (torch.ones(B, dtype=torch.bool), False),
        ]
    ]
    assert values[0] > values[1] > values[2]
    assert values[2] == pytest.approx(values[3])


def test_divergence_is_zero_for_the_teachers_own_shares(batch):
    _, ids = batch
    query, angles = torch.tensor([[1.0, 0.0]]), torch.tensor([1.0, 0.5, 0.2])
    candidates = torch.stack([angles.cos(), angles.sin()], dim=1)[None]
    config = LossConfig(temperature=0.1, distill=1.0, distill_temperature=0.5)
    one = replace(ids.of(slice(0, 1)), candidates=torch.tensor([[1, 2, 3]]), fused=(angles.cos() * 0.5 / 0.1)[None])
    assert divergence(query, candidates, one, config).item() == pytest.approx(0, abs=1e-6)
    assert divergence(query, candidates.flip(1), one, config).item() > 0.1


@pytest.mark.parametrize("kind", ["query", "positive", "group", "crossed"])
def test_every_kind_of_relation_masks(batch, kind):
    _, ids = batch
    rows = {"query": (0, 5), "positive": (1, 3), "group": (2, 4), "crossed": (2, 3)}[kind]
    related = ids.related()
    assert related[rows]
    assert torch.equal(related, related.T)
    assert int(related.sum()) == B + 2 * 4


def test_equation_2_is_cross_entropy_over_the_batch(batch):
    (queries, positives, negatives), ids = batch
    config = LossConfig(temperature=0.05, same_tower=False, mask_groups=False, hard_negatives="none")
    even = replace(ids, weight=torch.ones(B))
    unit = [torch.nn.functional.normalize(side, dim=-1) for side in (queries, positives)]
    expected = torch.nn.functional.cross_entropy(unit[0] @ unit[1].T / 0.05, torch.arange(B))
    torch.testing.assert_close(gecko_loss(queries, positives, negatives, even, config), expected)


def test_equation_3_with_one_negative_is_cross_entropy_over_its_candidates(batch):
    (queries, positives, negatives), _ = batch
    config = LossConfig(temperature=0.05, mask_groups=False)
    one = replace(bare_ids(B), negatives=torch.full((B, 1), 99))
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
    config = LossConfig(hard_negatives="all", distill=1.0)
    loss = gecko_loss(one, one, torch.empty(1, 0, D), bare_ids(1), config, candidates=torch.empty(1, 0, D))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(one.grad).all()


def test_matryoshka_is_the_mean_over_prefixes(batch, extra):
    vectors, ids = batch
    for switches in SOME:
        config, shares = LossConfig(temperature=0.2, **switches), {8: 2.0, 4: 1.0, 2: 1.0}
        at = {
            dim: slow_loss(
                *(vector[..., :dim] for vector in vectors), ids, config, candidates=extra["candidates"][..., :dim]
            )
            for dim in shares
        }
        assert len({round(value.item(), 3) for value in at.values()}) == 3
        fast = matryoshka_loss(*vectors, ids, config, list(shares), list(shares.values()), **extra)
        slow = sum(share * at[dim] for dim, share in shares.items()) / 4
        torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0, msg=str(switches))
        gradients = [torch.autograd.grad(one, vectors[:2], retain_graph=True) for one in (fast, slow)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12, msg=str(switches))
        torch.testing.assert_close(matryoshka_loss(*vectors, ids, config, [8, 4, 2], **extra), sum(at.values()) / 3)


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
    def bits(numbers):
        return numbers.float().contiguous().view(torch.int32).long()

    counts = [torch.full_like(ids.row, side.shape[1]) for side in (ids.negatives, ids.candidates)]
    fixed = [ids.query, ids.positive, ids.group, bits(ids.weight), ids.same_tower.long(), ids.row, *counts]
    return torch.cat([torch.stack(fixed, dim=1), ids.negatives, ids.candidates, bits(ids.fused)], dim=1)


def columns_of(vectors, candidates):
    queries, positives, negatives = vectors
    return [{"vectors": side} for side in (queries, positives, *negatives.unbind(1), *candidates.unbind(1))]


def test_labels_are_read_back_exactly(batch):
    _, ids = batch
    read = RowIds.from_labels(labels_of(ids))
    assert all(torch.equal(getattr(read, field.name), getattr(ids, field.name)) for field in fields(RowIds))
    assert places(labels_of(ids)) is None


def test_module_splits_columns_and_labels(batch, extra):
    vectors, ids = batch
    columns = columns_of(vectors, extra["candidates"])
    config = LossConfig(distill=1.0)
    loss = GeckoLoss(Lookup(), config, dims=[8, 4])
    expected = matryoshka_loss(*vectors, ids, config, [8, 4], candidates=extra["candidates"])
    assert torch.equal(loss(columns, labels_of(ids)), expected)
    with pytest.raises(TrainingError, match="6 text columns, but labels for 7"):
        loss(columns[:-1], labels_of(ids))
    with pytest.raises(TrainingError, match="shape"):
        loss(columns, labels_of(ids)[:, :3])
    with pytest.raises(TrainingError, match="shape"):
        loss(columns, labels_of(ids)[:, :-1])


def test_a_batch_without_scores_has_no_listwise_term(batch):
    vectors, ids = batch
    none = torch.zeros((len(ids.query), 0), dtype=torch.long)
    bare = replace(ids, candidates=none, fused=none.float())
    empty = torch.zeros((len(ids.query), 0, vectors[0].shape[1]))
    plain = gecko_loss(*vectors, bare, LossConfig())
    assert torch.equal(gecko_loss(*vectors, bare, LossConfig(distill=1.0), candidates=empty), plain)


def test_texts_that_are_told_by_place_equal_columns(batch, extra):
    vectors, ids = batch
    columns = columns_of(vectors, extra["candidates"])
    texts = torch.cat([column["vectors"] for column in columns])
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
    at = torch.argsort(order).view(len(columns), B).T
    parts = [{"vectors": part} for part in texts[order].split(10)]
    loss = GeckoLoss(Lookup(), LossConfig(distill=1.0))
    torch.testing.assert_close(
        loss(parts, torch.cat([labels_of(ids), at], dim=1)), loss(columns, labels_of(ids)), rtol=1e-12, atol=0
    )


class Linear(torch.nn.Module):
    """An encoder that learns; with dropout, so that the second pass of the cached loss must repeat the first's."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.weight = torch.nn.Parameter(torch.randn(D, D, generator=generator, dtype=torch.float64))

    def forward(self, features):
        kept = torch.nn.functional.dropout(features["vectors"] @ self.weight, 0.2, self.training)
        return {"sentence_embedding": kept}


def as_parts(vectors, ids, candidates):
    """A batch as the collator makes it, in parts of 4 and 2 texts; the places say where each text is."""
    columns = columns_of([vector.detach() for vector in vectors], candidates.detach())
    parts = [part for column in columns for part in [{"vectors": half} for half in column["vectors"].split(4)]]
    at = torch.arange(B * len(columns)).view(len(columns), B).T
    return parts, torch.cat([labels_of(ids), at], dim=1)


def assert_cached_equals_plain(parts, labels, switches):
    results = []
    for part_tokens in (None, 0):
        model = Linear()
        torch.manual_seed(5)
        config = LossConfig(temperature=0.2, **switches)
        loss = GeckoLoss(model, config, dims=[8, 4], part_tokens=part_tokens)(parts, labels)
        (3 * loss).backward()
        results.append((loss.detach(), model.weight.grad))
    assert results[0][1].abs().max() > 1e-3, switches
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12, msg=str(switches))
    return results[0]


@pytest.mark.parametrize("block", [1, 4, 100])
def test_cached_equals_plain(batch, extra, block, monkeypatch):
    vectors, ids = batch
    monkeypatch.setattr("gecko.training.loss.BLOCK", block)
    parts, labels = as_parts(vectors, ids, extra["candidates"])
    for switches in SOME if block == 4 else ({}, COMBINATIONS[-1]):
        assert_cached_equals_plain(parts, labels, switches)


def test_every_switch_counts_in_the_cached_loss(batch, extra):
    parts, labels = as_parts(*batch, extra["candidates"])
    base = {name: values[0] for name, values in SWITCHES.items()}
    value, gradient = assert_cached_equals_plain(parts, labels, base)
    for name, (_, *others) in SWITCHES.items():
        for other in others:
            changed = assert_cached_equals_plain(parts, labels, {**base, name: other})
            assert abs(changed[0] - value) > 1e-3, (name, other)
            assert (changed[1] - gradient).abs().max() > 1e-3, (name, other)


TWO = """
    import sys
    import torch
    from gecko.config.training import LossConfig
    from gecko.training.loss import GeckoLoss

    rank, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    given = torch.load(f"{folder}/given.pt")
    half = slice(rank * len(given["labels"]) // 2, (rank + 1) * len(given["labels"]) // 2)

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(given["weight"].clone())

        def forward(self, features):
            return {"sentence_embedding": features["vectors"] @ self.weight}

    found = []
    for switches in given["switches"]:
        for part_tokens in (None, 0):
            model = Linear()
            config = LossConfig(temperature=0.2, **switches)
            loss = GeckoLoss(model, config, dims=[8, 4], part_tokens=part_tokens)
            value = loss([{"vectors": column[half]} for column in given["columns"]], given["labels"][half])
            value.backward()
            sums = torch.cat([value.detach()[None], model.weight.grad.flatten()])
            torch.distributed.all_reduce(sums)
            found.append(sums / 2)  # as DistributedDataParallel averages
    if rank == 0:
        torch.save(torch.stack(found), f"{folder}/found.pt")
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_have_the_loss_and_gradients_of_one(batch, extra, tmp_path):
    vectors, ids = batch
    columns = [column["vectors"].detach() for column in columns_of(vectors, extra["candidates"])]
    given = {
        "columns": columns,
        "labels": labels_of(ids),
        "weight": Linear().weight.detach(),
        "switches": SOME,
    }
    torch.save(given, tmp_path / "given.pt")
    path = {**os.environ, "PYTHONPATH": str(Path(gecko.__file__).parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(TWO)]
    with subprocess.Popen([*command, "0", str(tmp_path)], env=path) as first:
        second = subprocess.run([*command, "1", str(tmp_path)], env=path, timeout=300, check=False)
        assert (first.wait(timeout=300), second.returncode) == (0, 0)
    found = torch.load(tmp_path / "found.pt").view(len(SOME), 2, -1)
    differences = []
    for switches, (plain, cached) in zip(SOME, found, strict=True):
        values = []
        for rows in (slice(None), slice(3)):
            model = Linear().eval()  # without dropout, which no two processes share
            loss = GeckoLoss(model, LossConfig(temperature=0.2, **switches), dims=[8, 4])
            value = loss([{"vectors": column[rows]} for column in columns], given["labels"][rows])
            value.backward()
            values.append(torch.cat([value.detach()[None], model.weight.grad.flatten()]))
        for one in (plain, cached):
            torch.testing.assert_close(one, values[0], rtol=1e-9, atol=1e-12, msg=str(switches))
        differences.append((values[0] - values[1]).abs().max())
    assert min(differences) > 1e-2  # half of the rows, without the others', is something else


def test_the_chosen_combinations_hold_every_pair_of_values():
    for one, other in itertools.combinations(SWITCHES, 2):
        met = {(switches[one], switches[other]) for switches in SOME}
        assert len(met) == len(SWITCHES[one]) * len(SWITCHES[other])


def test_module_compares_half_precision_in_float32(batch):
    vectors, ids = batch
    half = [vector.detach().bfloat16() for vector in vectors]
    bare = replace(ids, candidates=ids.candidates[:, :0], fused=ids.fused[:, :0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = GeckoLoss(Lookup(), LossConfig())(columns_of(half, torch.empty(B, 0, D)), labels_of(bare))
    torch.testing.assert_close(loss, gecko_loss(*(side.float() for side in half), ids, LossConfig()))
