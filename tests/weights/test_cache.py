import hashlib
import os
from pathlib import Path

import pytest

from gecko.compute import kernels
from gecko.config.stages import RelabelConfig
from gecko.core.errors import ConfigError
from gecko.core.progress import Silent
from gecko.llm.openai import OpenAILM
from gecko.llm.registry import load_teacher
from gecko.weights import cache
from gecko.weights.cache import cache_folder, cache_room, file_identity


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home folder, as of a number that the system does not know."""

    def unknown(*_: object) -> str:
        raise KeyError("uid not found")

    for name in ("HOME", "GECKO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


@pytest.mark.usefixtures("homeless")
def test_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no home folder; set GECKO_CACHE .*--index, .*--no-cache"):
        cache_folder()
    (tmp_path / "file").write_bytes(b"abc")
    assert file_identity(tmp_path / "file") == "ba7816bf8f01cfea"
    monkeypatch.setenv("GECKO_CACHE", str(tmp_path / "given"))
    assert cache_room("checks") == tmp_path / "given" / "checks"
    assert file_identity(tmp_path / "file") == "ba7816bf8f01cfea"


def test_a_cache_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    monkeypatch.setenv("GECKO_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"file/index cannot be made: .*; set GECKO_CACHE"):
        cache_room("index")
    assert file_identity(tmp_path / "file") == "ba7816bf8f01cfea"
    monkeypatch.setenv("GECKO_CACHE", str(tmp_path))
    monkeypatch.setattr(cache.os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="index cannot be written; set GECKO_CACHE"):
        cache_room("index")


@pytest.mark.usefixtures("homeless")
def test_a_server_teaches_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenAILM, "probe", lambda _: None)
    said: list[str] = []

    class Listener(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    teacher = load_teacher("openai:http://lakes.example/v1#m", RelabelConfig(), Listener())
    assert teacher.name == "m"
    assert said[0].startswith("answers of work that is stopped are not kept for the next run: ")
    assert "no home folder" in said[0]


@pytest.mark.usefixtures("homeless")
def test_kernels_are_kept_where_that_can_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels.config, "CACHE_DIR", "")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert not kernels._has_place()
    monkeypatch.setenv("GECKO_CACHE", str(tmp_path))
    assert kernels._has_place()
    assert tmp_path / "numba" == Path(kernels.config.CACHE_DIR)


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.gguf"
    path.write_bytes(b"one")
    first = file_identity(path)
    assert first == hashlib.sha256(b"one").hexdigest()[:16]
    with monkeypatch.context() as patched:
        patched.setattr(cache, "file_sha256", lambda _: pytest.fail("it was hashed before"))
        assert file_identity(path) == first
    path.write_bytes(b"other")
    assert file_identity(path) == hashlib.sha256(b"other").hexdigest()[:16]


def test_the_cache_folder_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GECKO_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("GECKO_CACHE")
    assert cache_folder().name == "gecko"
