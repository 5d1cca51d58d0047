from itertools import pairwise

import numpy as np
import pytest

from gecko.config.stages import GenerateConfig, MineConfig, RelabelConfig
from gecko.core.errors import CorpusError
from gecko.core.records import Passage
from gecko.fret.answered import QUERIES_A_REQUEST
from gecko.fret.seeds import (
    CONTROL_TOKENS,
    QUERY_TOKENS,
    SPREAD,
    WRITTEN_TOKENS,
    Reading,
    Seed,
    draw_seeds,
    prefix_costs,
    within_count,
)

COUNT = 83
LONG = "x" * 60
PASSAGES = [Passage(f"p{number}", "", "short" if number % 7 == 3 else LONG) for number in range(COUNT)]
ELIGIBLE = {passage.id for passage in PASSAGES if passage.text == LONG}


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    drawn = np.random.default_rng(5).normal(size=(COUNT, 6)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def draw(vectors: np.ndarray, seed: int = 0, **settings: object) -> list[list[Seed]]:
    return draw_seeds(PASSAGES, vectors, GenerateConfig(**settings), np.random.default_rng(seed))


@pytest.mark.parametrize("size", [1, 4, 10, 200])
def test_every_passage_that_can_be_a_seed_once(vectors: np.ndarray, size: int) -> None:
    blocks = draw(vectors, neighbourhood=size)
    ids = [seed.passage_id for block in blocks for seed in block]
    assert len(ids) == len(set(ids))
    assert set(ids) == ELIGIBLE
    assert 0 < len(ELIGIBLE) < COUNT
    assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert 1 <= len(blocks[-1]) <= size


def test_a_neighbourhood_is_a_passage_and_the_nearest_of_those_left(vectors: np.ndarray) -> None:
    left = set(ELIGIBLE)
    for block in draw(vectors, neighbourhood=4):
        ids = [seed.passage_id for seed in block]
        centre = int(ids[0][1:])
        others = sorted(left - {ids[0]}, key=lambda name: -float(vectors[int(name[1:])] @ vectors[centre]))
        assert ids[1:] == others[: len(ids) - 1]
        left -= set(ids)


def test_neighbourhoods_are_nearer_than_chance(vectors: np.ndarray) -> None:
    def spread(blocks: list[list[Seed]]) -> float:
        places = [[int(seed.passage_id[1:]) for seed in block] for block in blocks]
        return float(np.mean([vectors[one] @ vectors[other] for block in places for one, other in pairwise(block)]))

    single = [seed for block in draw(vectors, neighbourhood=1) for seed in block]
    chance = [single[start : start + 4] for start in range(0, len(single), 4)]
    assert spread(draw(vectors, neighbourhood=4)) > spread(chance) + 0.2


def test_draws_follow_the_generator(vectors: np.ndarray) -> None:
    assert draw(vectors, 1) == draw(vectors, 1)
    assert draw(vectors, 1) != draw(vectors, 2)
    one, two = (draw(vectors, seed, neighbourhood=1) for seed in (1, 2))
    assert one[0] != two[0]


@pytest.mark.parametrize(("share", "step"), [(0.1, 10), (0.2, 5), (0.5, 2)])
def test_held_out_share(vectors: np.ndarray, share: float, step: int) -> None:
    blocks = draw(vectors, neighbourhood=2, heldout=share)
    held = [number for number, block in enumerate(blocks) if block[0].split == "heldout"]
    assert held == list(range(1, len(blocks), step))
    for block in blocks:
        assert len({seed.split for seed in block}) == 1
    for number in range(2, len(blocks)):  # whatever the budget buys, the share is about the same
        assert abs(sum(place < number for place in held) - share * number) <= 1


def test_splitting_changes_no_draw(vectors: np.ndarray) -> None:
    def ids(blocks: list[list[Seed]]) -> list[list[str]]:
        return [[seed.passage_id for seed in block] for block in blocks]

    assert ids(draw(vectors, heldout=0)) == ids(draw(vectors, heldout=0.5))


def test_more_seeds_begin_with_fewer(vectors: np.ndarray) -> None:
    def seeds(limit: int, **settings: object) -> list[Seed]:
        config = GenerateConfig(queries=limit, neighbourhood=4, heldout=0.2, **settings)
        blocks = draw_seeds(PASSAGES, vectors, config, np.random.default_rng(0), limit)
        return [seed for block in within_count(blocks, limit) for seed in block]

    most = seeds(300)
    assert len(most) == 300
    for count in (2, 5, 13, len(ELIGIBLE), len(ELIGIBLE) + 1, 200):
        assert seeds(count) == most[:count]
    assert [seed.round for seed in most] == sorted(seed.round for seed in most)
    first, again = most[: len(ELIGIBLE)], most[len(ELIGIBLE) :]
    assert {seed.passage_id for seed in first} == ELIGIBLE
    assert not {seed.passage_id for seed in first if seed.split == "heldout"} & {seed.passage_id for seed in again}
    assert {seed.split for seed in again} == {"train"}
    assert len(set(most)) == 300  # never twice in one round
    assert seeds(300, rounds=1) == first
    assert seeds(300, rounds=2) == [seed for seed in most if seed.round < 2]


def test_a_budget_alone_takes_a_passage_once(vectors: np.ndarray) -> None:
    blocks = draw_seeds(PASSAGES, vectors, GenerateConfig(), np.random.default_rng(0), 50_000)
    assert sum(map(len, blocks)) == len(ELIGIBLE)


def test_held_out_limits(vectors: np.ndarray) -> None:
    def held(**settings: object) -> int:
        return sum(seed.split == "heldout" for block in draw(vectors, **settings) for seed in block)

    assert held(heldout=0) == 0
    assert held(heldout=0.5, heldout_max=0) == 0
    assert held(heldout=0.5, heldout_max=6, neighbourhood=2) == 6
    assert held(heldout=0.5, heldout_max=7, neighbourhood=2) == 6
    assert held(heldout=0.5, heldout_max=6, neighbourhood=1) == 6
    assert held(neighbourhood=200) == 0  # one neighbourhood is for training


def test_no_passage_is_long_enough(vectors: np.ndarray) -> None:
    with pytest.raises(CorpusError, match=r"none of the 83 passages has 61 characters; lower generate\.min_seed_chars"):
        draw(vectors, min_seed_chars=61)


def blocks_of(*sizes: int) -> list[list[Seed]]:
    return [[Seed(f"s{number}-{place}", "train") for place in range(size)] for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (3, [3]), (4, [3, 1]), (6, [3, 3]), (8, [3, 3, 2]), (100, [3, 3, 2]), (0, [])]
)
def test_within_count(count: int, sizes: list[int]) -> None:
    blocks = blocks_of(3, 3, 2)
    chosen = within_count(blocks, count)
    assert [len(block) for block in chosen] == sizes
    assert [seed for block in chosen for seed in block] == [seed for block in blocks for seed in block][:count]


@pytest.mark.parametrize("passes", [1, 2])
def test_prefix_costs_equal_counting_from_scratch(passes: int) -> None:
    rng = np.random.default_rng(3)
    blocks = blocks_of(3, 1, 4, 2)
    mine, relabel = MineConfig(n=5), RelabelConfig(passage_tokens=40)
    tokens = rng.integers(5, 90, size=12)
    assert (tokens > 40).any()
    neighbours = {seed.passage_id: rng.permutation(12)[:5].tolist() for block in blocks for seed in block}
    costs = prefix_costs(blocks, neighbours, tokens, relabel, mine, passes)
    assert len(costs) == 4
    for number, cost in enumerate(costs, start=1):
        seeds = [seed for block in blocks[:number] for seed in block]
        lengths = [min(int(value), 40) for value in tokens]
        judged = {place for seed in seeds for place in neighbours[seed.passage_id]}
        # Every candidate is read once under each prompt, every pair's query as well.
        passages = passes * int(SPREAD * sum(lengths[place] for place in judged))
        pairs = passes * len(seeds) * 5 * (QUERY_TOKENS + CONTROL_TOKENS)
        writing = sum(lengths[neighbours[seed.passage_id][0]] + CONTROL_TOKENS for seed in seeds)
        assert (cost.read, cost.generate_read) == (passages + pairs + writing, writing)
        assert cost.written == len(seeds) * WRITTEN_TOKENS


def test_a_teacher_that_shares_nothing_reads_each_pair_in_full() -> None:
    blocks = blocks_of(2, 2)
    near = {seed.passage_id: [0, 1, 2] for block in blocks for seed in block}
    tokens = np.array([10, 20, 30])
    costs = prefix_costs(blocks, near, tokens, RelabelConfig(), MineConfig(n=3), 2, (100, 40))
    writing = 4 * (10 + CONTROL_TOKENS + 100)
    pairs = 4 * 2 * (60 + 3 * (QUERY_TOKENS + CONTROL_TOKENS)) + 4 * 3 * 40
    assert (costs[-1].read, costs[-1].generate_read) == (writing + pairs, writing)


def test_a_teacher_that_grades_gets_the_queries_of_a_passage_in_one_request() -> None:
    blocks = blocks_of(2, 2)
    near = {seed.passage_id: [0, 1, 2] for block in blocks for seed in block}
    tokens, rest = np.array([10, 20, 30, *[50] * 9]), (RelabelConfig(), MineConfig(n=3), 1, (100, 40))
    found = prefix_costs(blocks, near, tokens, *rest, shared=True)[-1]
    writing, requests = 4 * (10 + CONTROL_TOKENS + 100), round(SPREAD * 3)
    tails = 4 * 3 * (QUERY_TOKENS + CONTROL_TOKENS)
    assert (found.read, found.requests) == (writing + int(SPREAD * 60) + tails + requests * 40, requests)
    assert prefix_costs(blocks, near, tokens[:3], *rest, shared=True)[-1].requests == 3  # there are no others
    apart = {name: [3 * place, 3 * place + 1, 3 * place + 2] for place, name in enumerate(near)}
    one, other = (prefix_costs(blocks, apart, np.full(12, 50), *rest, shared=shared)[-1] for shared in (True, False))
    assert (one.read, one.requests) == (other.read, 12)  # where no passage is met twice there is nothing to share
    crowd = blocks_of(*[10] * 6)
    many = {seed.passage_id: [0, 1] for block in crowd for seed in block}
    rest = (RelabelConfig(), MineConfig(n=2), 1, (100, 40))
    assert prefix_costs(crowd, many, tokens, *rest, shared=True)[-1].requests == 2 * 60 / QUERIES_A_REQUEST

    reading = Reading(1, 40, shared=True)
    lengths = {"a": 10, "b": 20, "c": 30}
    asked = [(5, ["a", "b"]), (7, ["b", "c"])]
    assert reading.add(asked, lengths) == 60 + 2 * (5 + 7 + 2 * CONTROL_TOKENS) + 3 * 40
    assert Reading(1, 40).add(asked, lengths) == 80 + 2 * (5 + 7 + 2 * CONTROL_TOKENS) + 4 * 40


def test_prefix_costs_grow() -> None:
    blocks = blocks_of(*[2] * 6)
    shared = {seed.passage_id: [0, 1, 2] for block in blocks for seed in block}
    apart = {name: [3 * place, 3 * place + 1, 3 * place + 2] for place, name in enumerate(shared)}
    tokens = np.full(36, 50)
    together, alone = (
        prefix_costs(blocks, near, tokens, RelabelConfig(), MineConfig(n=3), 1) for near in (shared, apart)
    )
    for costs in (together, alone):
        for one, two in pairwise(costs):
            assert one.read < two.read
            assert one.generate_read < two.generate_read
            assert one.written < two.written
    assert together[-1].read < alone[-1].read  # a shared candidate is read once
    assert together[-1].written == alone[-1].written
