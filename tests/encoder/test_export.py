import importlib.util
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import gecko
from gecko.encoder import export, load_encoder, save_model
from gecko.encoder.export import export_model
from gecko.errors import ConfigError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra openvino")

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
