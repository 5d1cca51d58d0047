"""A saved model in the tools that people use, with the tools themselves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import gecko
from gecko.encoder import save_model

pytestmark = pytest.mark.slow

TEXTS = ["the red cat sleeps", "a big house", "old dog eats fish"]


@pytest.fixture(scope="module")
def saved(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(SentenceTransformer(str(tiny_model), device="cpu"), folder, "unified", [32, 8])
    return folder


def test_sentence_transformers(saved: Path) -> None:
    theirs, ours = SentenceTransformer(str(saved), device="cpu"), gecko.load(str(saved), precision="float32")
    for got, expected in (
        (theirs.encode_query(TEXTS), ours.embed(TEXTS, task="RETRIEVAL_QUERY")),
        (theirs.encode_document(TEXTS), ours.embed(TEXTS)),
        (theirs.encode(TEXTS, prompt_name="clustering"), ours.embed(TEXTS, task="CLUSTERING")),
    ):
        np.testing.assert_allclose(got / np.linalg.norm(got, axis=1, keepdims=True), expected, atol=1e-5)
    short = SentenceTransformer(str(saved), device="cpu", truncate_dim=8).encode_document(TEXTS)
    np.testing.assert_allclose(
        short / np.linalg.norm(short, axis=1, keepdims=True), ours.embed(TEXTS, dim=8), atol=1e-5
    )


def test_faiss(saved: Path) -> None:
    import faiss

    model = gecko.load(str(saved))
    index = faiss.IndexFlatIP(model.dim)
    index.add(model.embed(TEXTS))
    scores, places = index.search(model.embed(TEXTS), 1)
    assert places.ravel().tolist() == [0, 1, 2]
    np.testing.assert_allclose(scores.ravel(), 1, atol=1e-3)
    bits = faiss.IndexBinaryFlat(model.dim)
    bits.add(model.embed(TEXTS, output="binary"))
    distances, places = bits.search(model.embed(TEXTS, output="binary"), 1)
    assert places.ravel().tolist() == [0, 1, 2]
    assert distances.ravel().tolist() == [0, 0, 0]


@pytest.mark.filterwarnings("ignore")  # mteb warns of every prompt that is not for it
def test_mteb(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mteb finds the prompts of queries, documents and kinds of task in the folder by itself."""
    mteb = pytest.importorskip("mteb", reason="pip install 'gecko-embed[mteb]'")
    from datasets import Dataset

    search = {
        "corpus": Dataset.from_list([{"id": f"d{n}", "title": "", "text": text} for n, text in enumerate(TEXTS)]),
        "queries": Dataset.from_list([{"id": "q", "text": "big fish"}]),
        "relevant_docs": {"q": {"d1": 1}},
        "top_ranked": None,
    }
    pairs = Dataset.from_dict({"sentence1": TEXTS, "sentence2": [*TEXTS[1:], "cat"], "score": [1.0, 2.0, 3.0]})
    tasks = [mteb.get_task("SciFact"), mteb.get_task("STSBenchmark.v2", eval_splits=["test"])]
    for task, data in zip(tasks, ({"default": {"test": search}}, {"test": pairs}), strict=True):
        task.dataset, task.data_loaded = data, True
        monkeypatch.setattr(task, "load_data", lambda **_: None)
    model = SentenceTransformer(str(saved), device="cpu")
    result = mteb.evaluate(model, tasks, cache=None, prediction_folder=tmp_path, show_progress_bar=False)
    ours = gecko.load(str(saved), precision="float32")

    cosines = ours.embed(TEXTS) @ ours.embed("big fish", task="RETRIEVAL_QUERY")
    found = _predictions(tmp_path, "SciFact")["default"]["test"]["q"]
    assert [found[f"d{n}"] for n in range(len(TEXTS))] == pytest.approx(cosines.tolist(), abs=1e-4)
    rank = 1 + int((cosines > cosines[1]).sum())
    score = next(part.get_score() for part in result if part.task_name == "SciFact")
    assert score == pytest.approx(1 / np.log2(1 + rank), abs=1e-4)  # nDCG@10 of one right answer

    left, right = (ours.embed(texts, task="SEMANTIC_SIMILARITY") for texts in (TEXTS, [*TEXTS[1:], "cat"]))
    found = _predictions(tmp_path, "STSBenchmark.v2")["default"]["test"]["cosine_scores"]
    assert found == pytest.approx((left * right).sum(axis=1).tolist(), abs=1e-4)


def _predictions(folder: Path, task: str) -> Any:
    return json.loads((folder / f"{task}_predictions.json").read_text())


def test_the_files_that_inference_servers_read(saved: Path) -> None:
    """Text Embeddings Inference and vLLM: architecture, pooling, one fast tokenizer, safetensors with BERT's names."""
    from safetensors import safe_open

    config = json.loads((saved / "config.json").read_text())
    assert config["architectures"] == ["BertModel"]
    assert config["model_type"] == "bert"
    assert config["matryoshka_dimensions"] == [32, 8]
    modules = json.loads((saved / "modules.json").read_text())
    kinds = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    assert [(module["type"], module["path"]) for module in modules] == list(zip(kinds, ["", "1_Pooling"], strict=True))
    pooling = json.loads((saved / "1_Pooling" / "config.json").read_text())
    assert [name for name, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens", "include_prompt"]
    assert pooling["pooling_mode_cls_token"] is False
    assert "pooling_mode" not in pooling
    assert json.loads((saved / "sentence_bert_config.json").read_text())["max_seq_length"] == 48
    assert json.loads((saved / "tokenizer.json").read_text())["model"]["type"] == "WordPiece"
    prompts = json.loads((saved / "config_sentence_transformers.json").read_text())["prompts"]
    assert prompts["query"] == "task: search result | query: "
    assert prompts["document"] == "title: none | text: "
    with safe_open(saved / "model.safetensors", "pt") as weights:
        assert "embeddings.word_embeddings.weight" in weights.keys()  # noqa: SIM118 - it is no dict
    assert not list(saved.rglob("*.bin"))


@pytest.mark.parametrize("pooling", ["mean", "cls", ("max", "mean")])
def test_the_older_names_mean_the_same(tiny_model: Path, tmp_path: Path, pooling: Any) -> None:
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    first = SentenceTransformer(str(tiny_model), device="cpu")[0]
    pool = Pooling(32, pooling_mode=pooling)
    dense = Dense(pool.get_embedding_dimension(), 16, activation_function=None)
    model = SentenceTransformer(modules=[first, pool, dense, Normalize()], device="cpu")
    model.max_seq_length = 20
    save_model(model, tmp_path, "unified")
    again = SentenceTransformer(str(tmp_path), device="cpu")
    assert (again.max_seq_length, again[1].pooling_mode) == (20, pooling)
    texts = [*TEXTS, "fish " * 40]
    np.testing.assert_allclose(again.encode(texts), model.encode(texts), atol=1e-6)
    assert (
        not {"module_input_name", "module_output_name"}
        & json.loads((tmp_path / "2_Dense/config.json").read_text()).keys()
    )
