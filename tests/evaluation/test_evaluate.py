import json
from pathlib import Path

import numpy as np
import pytest

from gecko.core.errors import EvaluationError
from gecko.core.records import Passage
from gecko.encoder import load_encoder
from gecko.evaluation import RetrievalSet, SetScores, eval_json, evaluate_retrieval
from gecko.evaluation.bm25 import bm25_run
from gecko.evaluation.evaluate import dense_run
from gecko.evaluation.metrics import METRICS, per_query
from gecko.evaluation.sets import eval_notes, eval_table

TEXTS = ["the red cat sleeps", "a big dog runs", "blue fish in the river", "old house and tree", "fast green car"]


def small(name: str, count: int = 5) -> RetrievalSet:
    passages = [Passage(f"p{place}", "", text) for place, text in enumerate(TEXTS)]
    queries = [(f"q{place}", text) for place, text in enumerate(TEXTS[:count])]
    return RetrievalSet(name, "test", passages, queries, {f"q{place}": {f"p{place}": 1} for place in range(count)})


def scored(name: str, model: list[float], base: list[float]) -> SetScores:
    def row(values: list[float]) -> dict[str, np.ndarray]:
        return {metric: np.array(values) for metric in METRICS}

    return SetScores(small(name, len(model)), {"new": row(model), "old": row(base)})


def test_end_to_end(tiny_model: Path) -> None:
    encoder = load_encoder(str(tiny_model), bf16=False)
    scores = evaluate_retrieval([small("one"), small("two", 3)], {"new": encoder, "old": encoder.truncated(4)})
    assert scores["one"].per_query["new"]["ndcg@10"].tolist() == [1.0] * 5  # each text finds itself
    assert scores["one"].per_query["bm25"]["mrr@10"].tolist() == [1.0] * 5
    result = json.loads(json.dumps(eval_json(scores, "new", "old", resamples=100, seed=0)))
    assert result["sets"]["two"]["queries"] == 3
    assert result["sets"]["one"]["bm25"] == 1.0


def test_shape_without_a_baseline() -> None:
    result = eval_json({"s": scored("s", [1.0, 0.5], [0.0, 0.0])}, "new")
    assert result == {
        "sets": {
            "s": {
                "queries": 2,
                "ndcg@10": 0.75,
                "baseline": None,
                "delta": None,
                "ci95": None,
                "bm25": None,
                "recall@20": 0.75,
                "recall@100": 0.75,
                "mrr@10": 0.75,
            }
        }
    }


def test_baseline_and_macro() -> None:
    scores = {"s": scored("s", [0.9, 0.5], [0.5, 0.1]), "t": scored("t", [0.2] * 3, [0.4] * 3)}
    result = eval_json(scores, "new", "old", resamples=100, seed=0)
    one = result["sets"]["s"]
    assert one["baseline"] == pytest.approx(0.3)
    assert one["delta"] == pytest.approx(0.4)
    assert one["ci95"] == pytest.approx([0.4, 0.4])
    macro = result["macro"]
    assert macro["queries"] == 5
    assert macro["ndcg@10"] == pytest.approx(0.45)
    assert macro["delta"] == pytest.approx(0.1)
    assert macro["ci95"] == pytest.approx([0.1, 0.1])


def test_people_read_points() -> None:
    scores = {"s": scored("s", [0.9, 0.5], [0.5, 0.1]), "t": scored("t", [0.2] * 3, [0.4] * 3)}
    result = eval_json(scores, "new", "old", resamples=100, seed=0)
    rows = {row[0]: row[2:] for row in eval_table(result)[1:]}
    assert rows["s"] == ("2", "70.0", "30.0", "+40.0 [+40.0, +40.0]", "", "70.0", "70.0")
    assert rows["t"] == ("3", "20.0", "40.0", "-20.0 [-20.0, -20.0]", "", "20.0", "20.0")
    assert rows["macro mean"][1:4] == ("45.0", "35.0", "+10.0 [+10.0, +10.0]")
    assert eval_table(eval_json({"s": scores["s"]}, "new"))[1][3:6] == ("70.0", "", "")


def test_refusals(tiny_model: Path) -> None:
    with pytest.raises(EvaluationError, match="several test sets are named one"):
        evaluate_retrieval([small("one"), small("one")], {})
    with pytest.raises(EvaluationError, match="bm25"):
        evaluate_retrieval([small("one")], {"bm25": load_encoder(str(tiny_model))})
    with pytest.raises(EvaluationError, match="'x' was not measured; there are new, old"):
        eval_json({"s": scored("s", [1.0], [1.0])}, "x")


def test_hybrid_is_the_fusion_that_search_makes(tiny_model: Path, words: list[str]) -> None:
    rng = np.random.default_rng(5)
    passages = [Passage(f"p{n:03}", "", " ".join(rng.choice(words, 8)), "x") for n in range(150)]
    queries = [(f"q{n}", " ".join(passages[n * 7].text.split()[2:6])) for n in range(15)]
    data = RetrievalSet("small", "test", passages, queries, {f"q{n}": {f"p{n * 7:03}": 1} for n in range(15)})
    encoder = load_encoder(str(tiny_model))
    models = {"model": encoder, "baseline": encoder.truncated(4)}
    scores = evaluate_retrieval([data], models, hybrid=True)
    row = eval_json(scores, "model", "baseline", resamples=200)["sets"]["small"]
    words_alone = bm25_run(passages, queries, 100)
    for label, model in models.items():
        found, every = {}, dense_run(data, model, len(passages))
        for key, ranked in dense_run(data, model).items():
            by_words = words_alone[key]
            best = max(by_words.values())
            summed = {one: every[key][one] + 0.3 * by_words.get(one, 0.0) / best for one in {*ranked, *by_words}}
            found[key] = dict(sorted(summed.items(), key=lambda item: (-item[1], item[0]))[:100])
        expected = per_query(found, data.qrels)["ndcg@10"].mean()
        assert row["hybrid"]["ndcg@10" if label == "model" else "baseline"] == pytest.approx(expected)
    assert row["hybrid"]["gain"]["model"]["delta"] == pytest.approx(row["hybrid"]["ndcg@10"] - row["ndcg@10"])
    result = {"sets": {"small": row}}
    assert [line[0] for line in eval_table(result)] == ["set", "small", "small, with BM25"]
    assert eval_notes(result)[0].startswith("small: BM25 beside it changes the model by ")
    plain = eval_json(evaluate_retrieval([data], models), "model", "baseline", resamples=200)["sets"]["small"]
    assert plain == {key: value for key, value in row.items() if key != "hybrid"}
