import faiss
import numpy as np
import pytest

from gecko.core.errors import EvaluationError
from gecko.core.records import Passage
from gecko.encoder import nearest
from gecko.evaluation.bm25 import bm25_run


def slow(queries: np.ndarray, passages: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries @ passages.T), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("k", [1, 7, 50, 200])
def test_equals_sorting(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "QUERY_BLOCK", 4)
    monkeypatch.setattr(nearest, "PASSAGE_BLOCK", 13)
    generator = np.random.default_rng(0)
    # small whole numbers: inner products are exact, and many are equal
    queries, passages = (generator.integers(-2, 3, (rows, 5)).astype(np.float32) for rows in (9, 60))
    places, scores = nearest.top_k(queries, passages, k)
    assert places.dtype == np.int64
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(places, slow(queries, passages, k))
    np.testing.assert_array_equal(scores, np.take_along_axis(queries @ passages.T, places, axis=1))


def test_keys_keep_scores() -> None:
    scores = np.array([[-0.0, 0.0, 1.5, -2.25, 1e-30, -1e30]], dtype=np.float32)
    places, back = nearest.unpack(nearest.pack(scores, np.arange(3, 9)))
    assert places.tolist() == [[3, 4, 5, 6, 7, 8]]
    np.testing.assert_array_equal(back, scores)
    assert nearest.unpack(nearest.largest(nearest.pack(scores, np.arange(6)), 6))[0].tolist() == [[2, 4, 0, 1, 3, 5]]


def test_refusals() -> None:
    good = np.ones((2, 3), dtype=np.float32)
    with pytest.raises(EvaluationError, match="do not match"):
        nearest.top_k(good, np.ones((2, 4), dtype=np.float32), 1)
    with pytest.raises(EvaluationError, match="k = 0"):
        nearest.top_k(good, good, 0)
    with pytest.raises(EvaluationError, match="passages hold NaN"):
        nearest.top_k(good, good * np.float32("nan"), 1)
    assert nearest.top_k(good[:0], good, 5)[0].shape == (0, 2)
    assert nearest.top_k(good, good[:0], 5)[0].shape == (2, 0)


def test_bm25(capfd: pytest.CaptureFixture[str]) -> None:
    passages = [
        Passage("p0", "", "The cats are running in the garden"),
        Passage("p1", "Dogs", "they bark at night"),
        Passage("p2", "", "a garden of roses"),
        Passage("p3", "", "a garden of roses"),
        Passage("p4", "", ""),
    ]
    queries = [("q0", "cat run"), ("q1", "dog"), ("q2", "roses"), ("q3", "the of"), ("q4", "quasar"), ("q5", "")]
    run = bm25_run(passages, queries, 3)
    assert {key: list(row) for key, row in run.items()} == {
        "q0": ["p0"],
        "q1": ["p1"],
        "q2": ["p2", "p3"],
        "q3": [],
        "q4": [],
        "q5": [],
    }
    assert run["q0"]["p0"] > 0
    assert list(bm25_run(passages, [("q", "garden")], 1)["q"]) == ["p2"]
    assert bm25_run([Passage("p", "", "")], queries[:1], 3) == {"q0": {}}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("k", [1, 7, 60, 200])
@pytest.mark.parametrize("borders", [[30], [0, 1, 13, 13, 59], [7, 14, 21, 28, 35, 42, 49, 56]])
def test_parts_merge_to_one_search_ties_included(k: int, borders: list[int]) -> None:
    generator = np.random.default_rng(1)
    queries, passages = (generator.integers(-2, 3, (rows, 4)).astype(np.float32) for rows in (9, 60))
    parts = np.split(passages, borders)
    places, scores = nearest.top_k_parts(queries, [lambda part=part: part for part in parts], k)
    whole = nearest.top_k(queries, passages, k)
    np.testing.assert_array_equal(places, whole[0])
    np.testing.assert_array_equal(scores, whole[1])
    ties = sum(len(row) - len(set(row)) for row in whole[1].tolist())
    assert ties > 0 or k == 1


def test_parts_of_whole_blocks_are_equal_to_the_bit() -> None:
    generator = np.random.default_rng(2)
    queries = generator.normal(size=(40, 33)).astype(np.float32)
    passages = generator.normal(size=(3 * nearest.PASSAGE_BLOCK + 77, 33)).astype(np.float32)
    parts = [passages[cut] for cut in nearest.cuts(len(passages), nearest.PASSAGE_BLOCK)]
    assert [len(part) for part in parts] == [nearest.PASSAGE_BLOCK] * 3 + [77]
    places, scores = nearest.top_k_parts(queries, [lambda part=part: part for part in parts], 20)
    whole = nearest.top_k(queries, passages, 20)
    np.testing.assert_array_equal(places, whole[0])
    np.testing.assert_array_equal(scores, whole[1])


def test_parts_are_faiss_s_flat_index_over_all() -> None:
    generator = np.random.default_rng(3)
    queries, passages = (generator.normal(size=(rows, 24)).astype(np.float32) for rows in (50, 5000))
    places, scores = nearest.top_k_parts(
        queries, [lambda cut=cut: passages[cut] for cut in nearest.cuts(5000, 4096)], 20
    )
    index = faiss.IndexFlatIP(24)
    index.add(passages)
    theirs, ids = index.search(queries, 20)
    np.testing.assert_array_equal(places, ids)
    np.testing.assert_allclose(scores, theirs, atol=1e-5)


def test_no_parts() -> None:
    places, scores = nearest.top_k_parts(np.ones((2, 3), np.float32), [], 5)
    assert places.shape == scores.shape == (2, 0)
    assert nearest.cuts(0) == []
