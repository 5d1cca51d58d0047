"""GGUF files: llama.cpp gives the model's vectors, and what it cannot run is refused by name."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from typer.testing import CliRunner

import gecko
from gecko.cli.main import app
from gecko.core.errors import ConfigError
from gecko.encoder import gguf_export, save_model
from gecko.encoder.export import CHECKED
from gecko.encoder.gguf_export import FILE, export_gguf, llama_vectors

pytestmark = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs the extra gguf")

TEXTS = ["the red cat sleeps", "a Big-house, eats?", "fish " * 20, "old dog eats (fast)", "Äpfel und 猫 🙂", "zzz"]


def modules(model: Path, *more: Any, pooling: str = "mean") -> SentenceTransformer:
    return SentenceTransformer(
        modules=[Transformer(str(model), max_seq_length=48), Pooling(32, pooling_mode=pooling), *more], device="cpu"
    )


def field(reader: Any, name: str) -> Any:
    return reader.get_field(name).contents()


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["f16", "q8_0"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_llama_cpp_gives_the_models_vectors(tiny_model: Path, tmp_path: Path, quantize: Any, pooling: str) -> None:
    from gguf import GGUFReader, PoolingType

    source = tmp_path / "model"
    save_model(modules(tiny_model, Normalize(), pooling=pooling), source, "unified")
    card = export_gguf(str(source), tmp_path / "out", quantize)
    assert card.cosine >= gguf_export.MIN_COSINE[quantize] and (card.dim, card.max_tokens) == (32, 48)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {FILE, "Modelfile", "README.md"}

    model = gecko.load(str(source), precision="float32")
    prompts = SentenceTransformer(str(source), device="cpu").prompts
    expected = model.embed(TEXTS, task="RETRIEVAL_QUERY")
    got = llama_vectors(tmp_path / "out" / FILE, [prompts["query"] + text for text in TEXTS], 48)
    assert (expected * got).sum(axis=1).min() >= gguf_export.MIN_COSINE[quantize]
    assert np.linalg.norm(expected[0] - expected[1]) > 0.01  # it is no model that says the same of all

    reader = GGUFReader(tmp_path / "out" / FILE)
    assert field(reader, "general.architecture") == "bert"
    assert field(reader, "bert.pooling_type") == PoolingType[pooling.upper()].value
    assert field(reader, "bert.context_length") == 48 and field(reader, "gecko.normalize") is True
    assert field(reader, "gecko.prompt.query") == prompts["query"]
    assert field(reader, "gecko.source") == model.identity
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.ffn_up.weight"] == quantize.upper() and kinds["blk.0.ffn_up.bias"] == "F32"
    assert "num_ctx 48" in (tmp_path / "out" / "Modelfile").read_text()
    card_text = (tmp_path / "out" / "README.md").read_text()
    assert prompts["query"] in card_text and str(tmp_path) not in card_text


@pytest.mark.slow
def test_a_real_model_in_many_scripts(tmp_path: Path) -> None:
    export_gguf("minilm", tmp_path / "out", "q8_0")
    texts = [*filter(None, CHECKED), "naïve façade: Straße?", "1,024 + 2 = …", "หนังสือ", "e\u0301tude"]
    expected = gecko.load("minilm", precision="float32").embed(texts)
    assert (expected * llama_vectors(tmp_path / "out" / FILE, texts, 256)).sum(axis=1).min() > 0.995
    with pytest.raises(ConfigError, match="not empty"):
        export_gguf("minilm", tmp_path / "out")


@pytest.mark.slow
def test_what_gives_other_vectors_is_not_written(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = gguf_export._write_file

    def harmed(encoder: Any, file: Path, *rest: Any) -> None:
        import torch

        with torch.no_grad():
            weights = encoder.model[0].auto_model.embeddings.word_embeddings.weight
            kept = weights.clone()
            weights.copy_(kept.roll(1, 0))
            write(encoder, file, *rest)
            weights.copy_(kept)

    monkeypatch.setattr(gguf_export, "_write_file", harmed)
    with pytest.raises(
        ConfigError, match=r"q8_0 GGUF file .* gives other vectors .* nothing was written; use --quantize f16"
    ):
        export_gguf(str(tiny_model), tmp_path / "out", "q8_0")
    monkeypatch.setattr(gguf_export, "_write_file", lambda _, file, *rest: file.write_bytes(b"GGUF nonsense"))
    with pytest.raises(ConfigError, match=r"llama.cpp cannot use model.gguf .*; nothing was written"):
        export_gguf(str(tiny_model), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda model: modules(model, Dense(32, 16)), "has the modules Transformer, Pooling, Dense"),
        (lambda model: modules(model, pooling="max"), "pools by max; gguf knows mean, cls"),
    ],
)
def test_modules_that_it_lacks_are_refused(tiny_model: Path, tmp_path: Path, made: Any, said: str) -> None:
    made(tiny_model).save_pretrained(str(tmp_path / "model"), create_model_card=False)
    with pytest.raises(ConfigError, match=said):
        export_gguf(str(tmp_path / "model"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_architecture_is_refused_by_name(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

    raw = tmp_path / "raw"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_layers=1, n_heads=2, hidden_dim=64)
    DistilBertModel(config).save_pretrained(raw)
    tokenizer.save_pretrained(raw)
    modules(raw).save_pretrained(str(tmp_path / "model"), create_model_card=False)
    with pytest.raises(ConfigError, match="of the architecture 'distilbert'; only 'bert' can be exported to gguf"):
        export_gguf(str(tmp_path / "model"), tmp_path / "out")


def test_options_of_one_kind_alone(tiny_model: Path, tmp_path: Path) -> None:
    def error(*options: str) -> str:
        arguments = ["export", str(tiny_model), "-o", str(tmp_path / "out"), *options]
        return str(CliRunner().invoke(app, arguments).exception)

    assert "write --quantize q8_0" in error("--to", "gguf", "--int8")
    assert "--quantize f16: for --to gguf only" in error("--to", "onnx", "--quantize", "f16")
    with pytest.raises(ConfigError, match="quantize q2_k: give one of f16, q8_0"):
        export_gguf(str(tiny_model), tmp_path / "out", "q2_k")  # type: ignore[arg-type]
