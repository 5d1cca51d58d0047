"""A cross-encoder behind a retriever, and one that the recipe trains on a run's rows."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import gecko
from gecko.cli.main import app
from gecko.core.errors import ConfigError, NonFiniteError
from gecko.core.records import Passage
from gecko.evaluation import rerank as room
from gecko.evaluation.beir import RetrievalSet
from gecko.evaluation.evaluate import RERANKED, dense_run, eval_json, evaluate_retrieval
from gecko.evaluation.metrics import bootstrap_ci, per_query
from gecko.evaluation.rerank import Reranker
from gecko.evaluation.sets import eval_notes, eval_table
from gecko.fret.export_rows import export_rows
from gecko.fret.view import RunView
from gecko.run.folder import Run

from ..conftest import load_script

HERE = Path(__file__).parents[1]
KEPT = HERE / "golden" / "kept" / "run"


class Overlap:
    """Scores a pair by the words that it shares; counts what it is asked."""

    num_labels = 1

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def predict(self, pairs: list[tuple[str, str]], **_: Any) -> np.ndarray:
        self.asked += pairs
        return np.array([len(set(query.split()) & set(text.split())) for query, text in pairs], np.float32)


@pytest.fixture
def data(words: list[str]) -> RetrievalSet:
    rng = np.random.default_rng(3)
    passages = [Passage(f"p{n}", words[n % 5], " ".join(rng.choice(words, 6)), "x") for n in range(60)]
    queries = [(f"q{n}", " ".join(passages[n * 4].text.split()[:3])) for n in range(12)]
    return RetrievalSet("small", "test", passages, queries, {f"q{n}": {f"p{n * 4}": 1} for n in range(12)})


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> Overlap:
    made = Overlap()
    monkeypatch.setattr(room, "_load", lambda _: made)
    return made


def test_the_first_passages_are_put_in_order_and_no_other(
    data: RetrievalSet, scorer: Overlap, tiny_model: Path
) -> None:
    run = dense_run(data, gecko.load_encoder(str(tiny_model)), 30)
    reranker = Reranker("any", 7)
    found = reranker(data, run)
    by_id = {passage.id: passage.content for passage in data.passages}
    for key, text in data.queries:
        before, after = list(run[key]), sorted(found[key], key=lambda one: -found[key][one])
        assert after[7:] == before[7:] and set(after[:7]) == set(before[:7])
        scores = {one: len(set(text.split()) & set(by_id[one].split())) for one in before[:7]}
        assert after[:7] == sorted(before[:7], key=lambda one: -scores[one])  # stable: equal ones keep their order
    assert len(scorer.asked) == 7 * len(data.queries)
    reranker(data, run)
    assert len(scorer.asked) == 7 * len(data.queries)


def test_both_models_are_measured_behind_it(
    data: RetrievalSet, scorer: Overlap, tiny_model: Path, words: list[str]
) -> None:
    encoder = gecko.load_encoder(str(tiny_model))
    models = {"model": encoder, "baseline": encoder.truncated(4)}
    scores = evaluate_retrieval([data], models, rerank=Reranker("any", 20))
    result = eval_json(scores, "model", "baseline", resamples=200)
    row = result["sets"]["small"]
    values = {label: per_query(dense_run(data, model), data.qrels)["ndcg@10"] for label, model in models.items()}
    behind = {label: scores["small"].per_query[label + RERANKED]["ndcg@10"] for label in models}
    assert row["ndcg@10"] == pytest.approx(values["model"].mean())
    assert row["rerank"]["ndcg@10"] == pytest.approx(behind["model"].mean())
    assert row["rerank"]["baseline"] == pytest.approx(behind["baseline"].mean())
    for name, low in (("delta", None), ("ci95", 1)):
        expected = bootstrap_ci(behind["model"] - behind["baseline"], 200)
        assert row["rerank"][name] == pytest.approx(expected[0] if low is None else list(expected[1:]))
        own = bootstrap_ci(behind["baseline"] - values["baseline"], 200)
        assert row["rerank"]["gain"]["baseline"][name] == pytest.approx(own[0] if low is None else list(own[1:]))
    assert behind["baseline"].mean() > values["baseline"].mean() + 0.1
    table, notes = eval_table(result), eval_notes(result)
    assert [line[0] for line in table] == ["set", "small", "small, reranked"]
    gains = [100 * gain["delta"] for gain in row["rerank"]["gain"].values()]
    assert notes[0].startswith(f"small: reranking changes the model by {gains[0]:+.1f} [")
    assert f"], the baseline by {gains[1]:+.1f} [" in notes[0]
    plain = eval_json(evaluate_retrieval([data], models), "model", "baseline", resamples=200)["sets"]["small"]
    assert plain == {key: value for key, value in row.items() if key != "rerank"}


def test_a_score_that_is_no_number(data: RetrievalSet, scorer: Overlap, tiny_model: Path) -> None:
    scorer.predict = lambda pairs, **_: np.array([1.0, np.nan] * (len(pairs) // 2))  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match="query q0 and passage p.* of small a score that is no number"):
        Reranker("any", 4)(data, dense_run(data, gecko.load_encoder(str(tiny_model)), 30))


def test_what_reranks_nothing(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--top 1: give at least 2"):
        Reranker(str(tiny_model), 1)
    with pytest.raises(ConfigError, match="BertModel scores no pair of texts; give a cross-encoder"):
        Reranker(str(tiny_model))
    with pytest.raises(ConfigError, match="is not known"):
        Reranker(str(tmp_path / "none"))


@pytest.mark.slow
def test_the_recipe_trains_one_that_eval_reads(
    tiny_model: Path, data: RetrievalSet, tmp_path: Path, own_cache: Path
) -> None:
    recipe = load_script(HERE.parent / "recipes" / "cross_encoder.py")
    with Run(shutil.copytree(KEPT, tmp_path / "run")) as run:
        export_rows(RunView(run), tmp_path / "rows", "cross-encoder")
    common = ["--start", str(tiny_model), "--batch", "8", "--max-tokens", "48", "--learning-rate", "1e-3"]
    recipe.main([str(tmp_path / "rows"), str(tmp_path / "steps"), *common, "--steps", "2"])
    recipe.main([str(tmp_path / "rows"), str(tmp_path / "epochs"), *common, "--epochs", "2"])
    assert not any(path.is_dir() and path.name.startswith("checkpoint") for path in (tmp_path / "epochs").iterdir())
    with pytest.raises(SystemExit):
        recipe.main([str(tmp_path / "rows"), str(tmp_path / "steps")])
    with pytest.raises(SystemExit):
        recipe.main([str(tmp_path), str(tmp_path / "new")])

    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": one.id, "title": one.title, "text": one.text} for one in data.passages]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": k, "text": t}) + "\n" for k, t in data.queries))
    pairs = [f"{query}\t{key}\t1\n" for query, row in data.qrels.items() for key in row]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(pairs))
    result = CliRunner().invoke(
        app,
        ["eval", str(tiny_model), str(folder), "--baseline", "minilm", "--rerank", str(tmp_path / "epochs"), "--json"],
    )
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)["sets"]["set"]
    assert {"ndcg@10", "baseline", "delta", "ci95", "gain"} <= row["rerank"].keys()
    # The trained model's own scores, pair by pair.
    from sentence_transformers.cross_encoder import CrossEncoder

    run_ = dense_run(data, gecko.load_encoder(str(tiny_model)))
    model = CrossEncoder(str(tmp_path / "epochs"))
    by_id, texts = {one.id: one.content for one in data.passages}, dict(data.queries)
    wanted = {}
    for key, found in run_.items():
        first, rest = list(found)[:20], list(found)[20:]
        scores = {one: float(model.predict([(texts[key], by_id[one])])[0]) for one in first}
        order = [*sorted(first, key=lambda one: -scores[one]), *rest]
        wanted[key] = {one: float(-place) for place, one in enumerate(order)}
    assert row["rerank"]["ndcg@10"] == pytest.approx(per_query(wanted, data.qrels)["ndcg@10"].mean(), abs=0.02)
