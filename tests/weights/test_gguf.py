from pathlib import Path

import pytest

from gecko.core.errors import TeacherError
from gecko.core.progress import Silent
from gecko.weights import gguf as gguf_files
from gecko.weights.gguf import to_safetensors


def test_a_file_is_converted_once(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        converted.append(gguf)
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(gguf_files, "_convert", convert)
    gguf = tmp_path / "some.gguf"
    folder = to_safetensors(gguf, "1234", Silent())
    assert folder.is_relative_to(own_cache)
    assert to_safetensors(gguf, "1234", Silent()) == folder
    assert converted == [gguf]
    assert to_safetensors(gguf, "5678", Silent()) != folder
    assert len(converted) == 2


def test_what_is_no_gguf_model(tmp_path: Path, own_cache: Path) -> None:
    gguf = tmp_path / "some.gguf"
    gguf.write_bytes(b"GGUF, or so it says")
    with pytest.raises(TeacherError, match=f"{gguf} cannot be loaded as a GGUF model: "):
        to_safetensors(gguf, "1234", Silent())
    assert not [path for path in (own_cache / "converted").iterdir() if path.is_dir()]
