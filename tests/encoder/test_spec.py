import shutil
from pathlib import Path

import pytest

from gecko.core.errors import ConfigError
from gecko.encoder import model_identity, resolve_model


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
