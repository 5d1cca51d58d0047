import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer

from gecko import formats
from gecko.device import has_fast_bfloat16
from gecko.encoder import Encoder, detect_form, load_encoder, model_identity, resolve_model, save_model
from gecko.encoder import encode as room
from gecko.errors import ConfigError
from gecko.records import Passage, Text

from .conftest import sentences


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Encoder:
    return load_encoder(str(tiny_model), bf16=False)


def test_specs(tiny_model: Path, tmp_path: Path) -> None:
    assert (Path(resolve_model("minilm")) / "modules.json").is_file()
    assert resolve_model(str(tiny_model)) == str(tiny_model)
    run = tmp_path / "run"
    (run / "ingest").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is the folder of a run; it has no model yet"):
        resolve_model(str(run))
    (run / "model").mkdir()
    with pytest.raises(ConfigError, match="is the folder of a run; its model is .*run/model"):
        resolve_model(str(run))
    assert resolve_model("hf:some/name") == "some/name"
    for wrong in ("", "hf:", "nothing-here", "MiniLM"):
        with pytest.raises(ConfigError, match="hf:NAME"):
            resolve_model(wrong)
    with pytest.raises(ConfigError, match="neither"):
        resolve_model(str(tmp_path))


def test_identity_is_of_content(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    (copy / "README.md").write_text("words")
    (copy / ".gitattributes").write_text("words")
    (copy / ".git").mkdir()
    (copy / ".git" / "config.json").write_text("{}")
    assert model_identity(str(copy)) == model_identity(str(tiny_model))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(weights))
    assert model_identity(str(copy)) != model_identity(str(tiny_model))


def test_identity_of_a_hub_model_does_not_load_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    first, second = model_identity("hf:nobody/nothing-a"), model_identity("hf:nobody/nothing-b")
    assert first != second
    assert first == model_identity("hf:nobody/nothing-a")


@pytest.mark.parametrize("budget", [1, 64, 100_000])
def test_equals_sentence_transformers(plain: Encoder, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WINDOW", 7)
    texts = sentences(30)
    expected = plain.model.encode(texts, normalize_embeddings=True)
    got = room.encode_texts(plain.model, texts, 32, batch_tokens=budget)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2  # the model does tell texts apart


def test_left_padding_is_cut_on_the_left(tiny_model: Path) -> None:
    model = SentenceTransformer(str(tiny_model), device="cpu")
    model.tokenizer.padding_side = "left"
    features = model.preprocess(["cat", "the red cat sleeps in a house", "the fish"])
    cut = list(room._batches(dict(features), 3, 5, model.device))
    assert [rows for rows, _ in cut] == [[1], [2], [0]]
    for _, batch in cut:
        assert batch["attention_mask"].all()
        assert batch["input_ids"][0, 0] == model.tokenizer.cls_token_id


def test_batches_stay_in_budget(plain: Encoder) -> None:
    texts = sentences(40)
    features = plain.model.preprocess(texts)
    cut = list(room._batches(features, len(texts), 100, plain.model.device))
    assert sorted(row for rows, _ in cut for row in rows) == list(range(len(texts)))
    assert max(batch["input_ids"].numel() for _, batch in cut) <= 100
    assert len(cut) < len(texts)


def test_bf16_is_close_and_follows_the_weights(tiny_model: Path) -> None:
    texts = sentences(12)
    half = load_encoder(str(tiny_model), bf16=True)
    expected = half.model.encode(texts, normalize_embeddings=True)
    got = half.queries(texts)
    assert np.sum(got * expected, axis=1).min() >= 0.999
    assert np.abs(got - expected).max() > 0  # it was bfloat16
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    assert half.model.dtype == torch.float32
    with torch.no_grad():
        half.model[0].model.encoder.layer[0].output.dense.weight.mul_(-3)
    changed = half.model.encode(texts, normalize_embeddings=True)
    assert np.sum(changed * expected, axis=1).min() < 0.99
    assert np.sum(half.queries(texts) * changed, axis=1).min() >= 0.999


def test_bf16_probe_answers() -> None:
    assert has_fast_bfloat16("cpu") in (True, False)


def test_forms(tiny_model: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(tiny_model), device="cpu")
    save_model(model, tmp_path / "unified", "unified", [32, 8])
    save_model(model, tmp_path / "native", "native")
    unified, native = (load_encoder(str(tmp_path / name), bf16=False) for name in ("unified", "native"))
    assert (unified.form, native.form) == ("unified", "native")
    assert load_encoder(str(tmp_path / "unified"), form="native").form == "native"
    passage = Passage("1", "", "the red cat")
    np.testing.assert_allclose(
        unified.passages([passage])[0],
        SentenceTransformer(str(tmp_path / "unified")).encode_document(passage.text, normalize_embeddings=True),
        atol=1e-5,
    )
    np.testing.assert_allclose(
        unified.queries(["the cat"], "fact checking")[0],
        model.encode("task: fact checking | query: the cat", normalize_embeddings=True),
        atol=1e-5,
    )
    np.testing.assert_allclose(
        native.passages([Text("1", "old", "fish")])[0], model.encode("old\nfish", normalize_embeddings=True), atol=1e-5
    )
    each = unified.queries(["cat", "cat"], ["fact checking", "search result"])
    assert np.abs(each[0] - each[1]).max() > 1e-3
    with pytest.raises(ConfigError, match="2 queries but 1 tasks"):
        unified.queries(["cat", "dog"], ["search result"])


def test_native_form_uses_and_keeps_the_makers_prompts(tiny_model: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(tiny_model), device="cpu", prompts={"query": "search ", "passage": "text "})
    save_model(model, tmp_path / "kept", "native")
    kept = load_encoder(str(tmp_path / "kept"), bf16=False)
    assert kept.model.prompts["query"] == "search "
    assert kept.form == "native"
    plain = kept.model.encode(["search cat", "text cat"], normalize_embeddings=True)
    np.testing.assert_allclose(kept.queries(["cat"])[0], plain[0], atol=1e-5)
    np.testing.assert_allclose(kept.passages([Text("1", "", "cat")])[0], plain[1], atol=1e-5)
    save_model(model, tmp_path / "unified", "unified")
    assert model.prompts["query"] == "search "  # the model itself is not changed
    model.prompts = {**formats.prompts("unified")}
    save_model(model, tmp_path / "back", "native")
    assert detect_form(SentenceTransformer(str(tmp_path / "back")).prompts) == "native"


def test_saved_dimensions(tiny_model: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(tiny_model), device="cpu")
    save_model(model, tmp_path / "m", "unified", [8, 32])
    for name in ("config_sentence_transformers.json", "config.json"):
        assert json.loads((tmp_path / "m" / name).read_text())["matryoshka_dimensions"] == [32, 8]
    assert (tmp_path / "m" / "model.safetensors").is_file()
    with pytest.raises(ConfigError, match="33"):
        save_model(model, tmp_path / "n", "unified", [33])


def test_truncation(plain: Encoder) -> None:
    short = plain.truncated(8)
    assert (plain.dim, short.dim) == (32, 8)
    full, cut = plain.queries(["the cat"]), short.queries(["the cat"])
    np.testing.assert_allclose(cut, full[:, :8] / np.linalg.norm(full[:, :8]), atol=1e-6)
    assert short.model is plain.model
    for wrong in (0, 33):
        with pytest.raises(ConfigError, match="32 dimensions"):
            plain.truncated(wrong)


def test_window(tiny_model: Path) -> None:
    texts = ["the cat " * 40, "the cat " * 60]
    same = load_encoder(str(tiny_model), bf16=False).queries(texts)
    np.testing.assert_allclose(same[0], same[1], atol=1e-6)
    cut = load_encoder(str(tiny_model), max_tokens=8, bf16=False)
    np.testing.assert_allclose(*cut.queries(["red cat fish dog house bird tree", "red cat fish dog house bird car"]))
    with pytest.raises(ConfigError, match="1 to 64"):
        load_encoder(str(tiny_model), max_tokens=65)


def test_nothing_in_nothing_out(plain: Encoder) -> None:
    assert plain.queries([]).shape == (0, 32)
    assert plain.passages([]).shape == (0, 32)


def test_progress_bar_only_for_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(terminal: bool) -> bool:
        console = Console(file=io.StringIO(), force_terminal=terminal)
        with room.running_bar(100, True, console) as advance:
            advance(50)
        return "embedding" in console.file.getvalue()

    assert not shown(terminal=True)
    monkeypatch.setattr(room, "_WAIT", 0.0)
    assert shown(terminal=True)
    assert not shown(terminal=False)


def test_what_cannot_be_loaded(tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_encoder(str(broken))
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="pickled"):
        load_encoder(str(broken))
