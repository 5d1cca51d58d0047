import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from gecko.core import formats
from gecko.core.errors import ConfigError
from gecko.core.records import Passage, Text
from gecko.encoder import detect_form, load_encoder, save_model


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
