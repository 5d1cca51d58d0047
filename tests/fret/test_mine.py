import numpy as np
import pytest

from gecko.core.records import Candidate, Query
from gecko.fret.mine import mine


def unit(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


PASSAGES = list("abcde")
VECTORS = [lambda: unit(0, 10), lambda: unit(20, 30, 90)]


def query(name: str, seed_id: str) -> Query:
    return Query(name, "task", name, seed_id, "fake")


def test_by_hand() -> None:
    found = list(mine([query("q", "b")], unit(12), PASSAGES, VECTORS, 3))
    assert [(row.query_id, row.passage_id, row.rank, row.natural) for row in found] == [
        ("q", "b", 1, True),
        ("q", "c", 2, True),
        ("q", "a", 3, True),
    ]
    assert [row.score for row in found] == pytest.approx(np.cos(np.deg2rad([2, 8, 12])))


def test_a_seed_that_was_not_found_takes_the_last_place_with_its_own_score() -> None:
    found = list(mine([query("q", "e")], unit(1), PASSAGES, VECTORS, 3))
    assert [(row.passage_id, row.rank, row.natural) for row in found] == [
        ("a", 1, True),
        ("b", 2, True),
        ("e", 3, False),
    ]
    assert found[2].score == pytest.approx(np.cos(np.deg2rad(89)))


def test_a_seed_at_the_last_place_by_itself_is_natural() -> None:
    found = list(mine([query("q", "c")], unit(1), PASSAGES, VECTORS, 3))
    assert [(row.passage_id, row.natural) for row in found] == [("a", True), ("b", True), ("c", True)]


@pytest.mark.parametrize("n", [5, 6, 100])
def test_more_candidates_than_passages(n: int) -> None:
    found = list(mine([query("q", "e")], unit(0), PASSAGES, VECTORS, n))
    assert [row.passage_id for row in found] == ["a", "b", "c", "d", "e"]
    assert [row.rank for row in found] == [1, 2, 3, 4, 5]
    assert all(row.natural for row in found)


def test_it_equals_a_sort_for_each_query() -> None:
    rng = np.random.default_rng(0)
    vectors, asked = (rng.normal(size=(count, 8)).astype(np.float32) for count in (50, 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    passages = [f"p{number}" for number in range(50)]
    queries = [query(f"q{number}", f"p{number}") for number in range(12)]
    expected: list[tuple[str, str, int, bool]] = []
    for row, one in enumerate(queries):
        order = sorted(range(50), key=lambda place: -float(asked[row] @ vectors[place]))[:7]
        seed = passages.index(one.seed_id)
        natural = seed in order
        if not natural:
            order[-1] = seed
        expected += [
            (one.id, passages[place], rank, natural or place != seed) for rank, place in enumerate(order, start=1)
        ]
    found: list[Candidate] = list(mine(queries, asked, passages, [lambda: vectors], 7))
    assert [(row.query_id, row.passage_id, row.rank, row.natural) for row in found] == expected
    assert {row.natural for row in found} == {True, False}  # both cases are among them
    for row in found:
        pair = asked[int(row.query_id[1:])] @ vectors[int(row.passage_id[1:])]
        assert row.score == pytest.approx(float(pair), abs=1e-6)


def test_no_queries() -> None:
    assert list(mine([], np.empty((0, 2), np.float32), PASSAGES, VECTORS, 3)) == []
