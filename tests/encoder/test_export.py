import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import gecko
from gecko.core.errors import ConfigError
from gecko.encoder import export, load_encoder, save_model
from gecko.encoder.export import export_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra openvino"),
]

TEXTS = ["the red cat sleeps", "", "fish " * 60, "a big house", "old dog eats"]


@pytest.fixture(scope="module")
def source(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    save_model(SentenceTransformer(str(tiny_model), device="cpu"), folder, "unified")
    return folder


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_an_exported_model_is_the_model(source: Path, tmp_path: Path, target, int8: bool) -> None:
    card = export_model(str(source), tmp_path / "out", target, int8=int8)
    ours = gecko.load(str(tmp_path / "out"))
    model = gecko.load(str(source), precision="float32")
    assert (ours.form, ours.dim, ours.max_tokens) == ("unified", 32, 48)
    assert ours.precision == ("int8" if int8 else "float32")
    assert (card.source, card.int8) == (model.identity, int8)
    assert ours.identity != model.identity
    for options in ({"task": "CLUSTERING"}, {"title": "red"}, {"dim": 8}):
        expected, got = model.embed(TEXTS, **options), ours.embed(TEXTS, **options)
        assert (expected * got).sum(axis=1).min() > (0.98 if int8 else 0.99999)
    alone = np.stack([ours.embed(text) for text in TEXTS])
    np.testing.assert_allclose(ours.embed(TEXTS), alone, atol=0.02 if int8 else 1e-5)
    with pytest.raises(ConfigError, match="fixed"):
        gecko.load(str(tmp_path / "out"), precision="bfloat16")
    with pytest.raises(ConfigError, match="not empty"):
        export_model(str(source), tmp_path / "out", target)


def test_an_export_into_the_working_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    export_model(str(source), Path(), "onnx")
    assert gecko.load(str(folder)).dim == 32
    with pytest.raises(ConfigError, match="is an exported model, which gecko embed, search and serve read"):
        load_encoder(str(folder))


def test_the_graph_runs_without_gecko(source: Path, tmp_path: Path) -> None:
    import onnxruntime
    from tokenizers import Tokenizer

    export_model(str(source), tmp_path / "out", "onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    ids = np.array([tokenizer.encode("title: none | text: the red cat").ids], dtype=np.int64)
    got = session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
    expected = SentenceTransformer(str(source), device="cpu").encode_document(
        ["the red cat"], normalize_embeddings=True
    )
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_wrong_graph_is_not_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MIN_COSINE", {False: 1.1, True: 1.1})
    with pytest.raises(ConfigError, match="other vectors"):
        export_model(str(source), tmp_path / "out", "openvino")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_says_what_to_install(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"nncf; install with: pip install 'gecko-embed\[openvino\]'"):
        export_model(str(source), tmp_path / "out", "openvino", int8=True)


@pytest.fixture(scope="module")
def narrow(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer file cuts and pads to 11 tokens, as its makers once did, and whose window is 48."""
    from tokenizers import Tokenizer

    folder = shutil.copytree(source, tmp_path_factory.mktemp("narrow") / "model")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(11)
    tokenizer.enable_padding(length=11)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_the_written_files_alone_give_the_models_vectors(narrow: Path, tmp_path: Path, target) -> None:
    import onnxruntime
    import openvino
    from tokenizers import Tokenizer

    out = tmp_path / "out"
    export_model(narrow, str(out), target)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    texts = ["fish", "the red cat sleeps " * 30, "die großen Bäume", "у реки 🙂", "a big house and a dog"]
    model = SentenceTransformer(str(narrow), device="cpu")
    expected = model.encode(texts, normalize_embeddings=True)
    lengths = [model.preprocess([text])["input_ids"].shape[1] for text in texts]
    assert [len(tokenizer.encode(text).ids) for text in texts] == lengths
    assert (min(lengths), max(lengths)) == (3, 48)
    if target == "onnx":
        session = onnxruntime.InferenceSession(str(out / "model.onnx"))
        run = lambda fed: session.run(None, fed)[0]  # noqa: E731
    else:
        graph = openvino.Core().compile_model(str(out / "model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        run = lambda fed: graph(fed)[0]  # noqa: E731
    for batch in ([[text] for text in texts], [texts]):
        found = []
        for rows in batch:
            read = tokenizer.encode_batch(rows)
            fed = {"input_ids": np.array([row.ids for row in read], dtype=np.int64)}
            found.append(run({**fed, "attention_mask": np.array([row.attention_mask for row in read], np.int64)}))
        np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-4)
    np.testing.assert_allclose(
        gecko.load(out).queries(texts), model.encode_query(texts, normalize_embeddings=True), atol=1e-4
    )


def test_a_wrong_tokenizer_is_not_written(narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = (narrow / "tokenizer.json").read_text(encoding="utf-8")
    monkeypatch.setattr(export, "written_tokenizer", lambda *_: saved)
    with pytest.raises(ConfigError, match="makes other tokens of a text"):
        export_model(narrow, tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cuts_texts_at_their_start(source: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(source), device="cpu")
    model.tokenizer.truncation_side = "left"
    save_model(model, tmp_path / "model", "native")
    export_model(tmp_path / "model", tmp_path / "out", "onnx")
    text = "the red cat sleeps " * 20 + "and a big fish"
    expected = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(text, normalize_embeddings=True)
    for folder in ("model", "out"):
        got = gecko.load(tmp_path / folder, **({"precision": "float32"} if folder == "model" else {})).embed(text)
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_an_unknown_target(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="target tflite: give one of onnx, openvino"):
        export_model(source, tmp_path / "out", "tflite")  # type: ignore[arg-type]


def test_a_saved_model_has_the_tokenizer_of_one_that_was_used(narrow: Path, tmp_path: Path) -> None:
    unused, used = (SentenceTransformer(str(narrow), device="cpu") for _ in range(2))
    used.encode(["the red cat", "fish"])
    for name, model in (("unused", unused), ("used", used)):
        save_model(model, str(tmp_path / name), "unified")
    saved = [json.loads((tmp_path / name / "tokenizer.json").read_text()) for name in ("unused", "used")]
    assert saved[0] == saved[1]
    assert (saved[0]["truncation"]["max_length"], saved[0]["padding"]["strategy"]) == (48, "BatchLongest")
