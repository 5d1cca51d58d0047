import math
import tracemalloc

import numpy as np
import pytest
import pytrec_eval

from gecko.core.errors import EvaluationError
from gecko.evaluation.metrics import bootstrap_ci, macro_ci, per_query, share_ci


def test_by_hand() -> None:
    qrels = {"a": {"x": 2, "y": 1, "z": 0}, "b": {"w": 1}, "c": {"x": 1}}
    run = {"a": {"z": 0.9, "y": 0.8, "x": 0.7}, "b": {"x": 1.0}}
    got = per_query(run, qrels)
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    assert got["ndcg@10"] == pytest.approx([(1 / math.log2(3) + 2 / math.log2(4)) / ideal, 0, 0])
    assert got["recall@20"] == pytest.approx([1, 0, 0])
    assert got["mrr@10"] == pytest.approx([0.5, 0, 0])
    assert per_query({}, qrels)["ndcg@10"].tolist() == [0, 0, 0]


def test_graded_judgements_count_as_in_trec_eval() -> None:
    generator = np.random.default_rng(0)
    qrels = {f"q{n}": {f"d{d}": int(generator.integers(0, 4)) for d in generator.choice(300, 25)} for n in range(20)}
    run = {key: {f"d{d}": float(generator.random()) for d in range(150)} for key in qrels}
    top = {key: dict(sorted(row.items(), key=lambda one: -one[1])[:10]) for key, row in run.items()}
    oracle = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.20,100", "map_cut.1000"}).evaluate(run)
    first = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(top)
    names = {"ndcg@10": "ndcg_cut_10", "recall@20": "recall_20", "recall@100": "recall_100", "map@1000": "map_cut_1000"}
    got = per_query(run, qrels, (*names, "mrr@10"))
    for name, key in names.items():
        assert got[name] == pytest.approx([oracle[query][key] for query in qrels])
    assert got["mrr@10"] == pytest.approx([first[query]["recip_rank"] for query in qrels])
    flat = {key: {one: min(1, grade) for one, grade in row.items()} for key, row in qrels.items()}
    assert per_query(run, flat, ("ndcg@10",))["ndcg@10"] != pytest.approx(got["ndcg@10"])


def test_depth() -> None:
    run = {"q": {f"d{place}": 1.0 - place / 1000 for place in range(150)}}
    at = {place: per_query(run, {"q": {f"d{place}": 1}}) for place in (9, 10, 19, 20, 99, 100)}
    assert at[9]["mrr@10"] == pytest.approx([0.1])
    assert at[10]["mrr@10"] == [0]
    assert [at[place]["ndcg@10"][0] > 0 for place in (9, 10)] == [True, False]
    assert [at[place]["recall@20"][0] for place in (19, 20)] == [1, 0]
    assert [at[place]["recall@100"][0] for place in (99, 100)] == [1, 0]


@pytest.mark.parametrize("ids", [("a", "b"), ("b", "a")])
def test_ties_rank_as_listed(ids: tuple[str, str]) -> None:
    assert per_query({"q": dict.fromkeys(ids, 0.5)}, {"q": {ids[1]: 1}})["mrr@10"] == [0.5]


def test_close_scores_are_told_apart() -> None:
    assert per_query({"q": {"a": 1.0, "b": 1.0 + 1e-12}}, {"q": {"b": 1}})["mrr@10"] == [1.0]


def test_unknown_measure() -> None:
    for name in ("map", "ndcg@0", "ndcg@x", "hits@3"):
        with pytest.raises(EvaluationError, match="not known"):
            per_query({}, {"q": {"d": 1}}, [name])


def test_bootstrap() -> None:
    assert bootstrap_ci(np.full(20, 0.25), 200, 0) == pytest.approx((0.25, 0.25, 0.25))
    values = np.random.default_rng(1).normal(0.1, 0.3, 400)
    mean, low, high = bootstrap_ci(values, 4000, 7)
    error = values.std() / math.sqrt(len(values))
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)
    assert bootstrap_ci(values, 500, 7) == bootstrap_ci(values, 500, 7)
    assert bootstrap_ci(values, 500, 7) != bootstrap_ci(values, 500, 8)
    with pytest.raises(EvaluationError, match="at least one"):
        bootstrap_ci(np.array([]), 100, 0)


def test_macro_weighs_sets_alike() -> None:
    mean, low, high = macro_ci([np.full(3, 0.2), np.full(300, 0.4)], 100, 0)
    assert (mean, low, high) == pytest.approx((0.3, 0.3, 0.3))


def test_share_of_another_difference() -> None:
    rng = np.random.default_rng(0)
    wholes = [rng.normal(0.1, 0.2, size=200), rng.normal(0.2, 0.2, size=50)]
    half = share_ci([values / 2 for values in wholes], wholes)
    assert half == pytest.approx((0.5, 0.5, 0.5))  # the same queries are drawn above and below
    parts = [values / 2 + rng.normal(0, 0.1, size=len(values)) for values in wholes]
    share, low, high = share_ci(parts, wholes) or (0, 0, 0)
    means = [np.mean([values.mean() for values in side]) for side in (parts, wholes)]
    assert share == pytest.approx(means[0] / means[1]) and low < share < high
    assert share_ci(parts, [values - values.mean() for values in wholes]) is None
    with pytest.raises(EvaluationError, match="of the same queries"):
        share_ci(parts, wholes[::-1])


def test_bootstrap_memory_is_bounded() -> None:
    tracemalloc.start()
    try:
        bootstrap_ci(np.zeros(20_000), 300, 0)
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()
