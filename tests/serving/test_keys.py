import hashlib
import stat
from pathlib import Path

import pytest

from gecko.core.errors import ConfigError
from gecko.serving.keys import ApiKeys, is_loopback, load_keys, new_key


def test_a_key_is_shown_once_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    first, second = new_key("alice", path), new_key("bob", path)
    assert first != second and len(first) > 40
    kept = path.read_text()
    assert first not in kept and second not in kept
    assert kept.splitlines()[0] == f"alice sha256:{hashlib.sha256(first.encode()).hexdigest()}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    keys = load_keys(path, {})
    assert keys and keys.accept(first.encode()) and keys.accept(second.encode())
    for wrong in (b"", b"gecko-", first[:-1].encode(), first.encode() + b"x", b"\xff\x00"):
        assert not keys.accept(wrong)
    with pytest.raises(ConfigError, match="in .* already"):
        new_key("alice", path)
    for label in ("", "two words", "line\nbreak", "x" * 65):
        with pytest.raises(ConfigError, match="label"):
            new_key(label, path)


def test_a_key_file_without_final_newline_is_continued_on_a_new_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# people\n\nold sha256:" + "0" * 64)
    key = new_key("new", path)
    assert load_keys(path, {}).accept(key.encode())


def test_environment() -> None:
    keys = load_keys(None, {"GECKO_API_KEYS": " a-key-of-twenty-chars , another-key-of-twenty "})
    assert keys.accept(b"a-key-of-twenty-chars") and keys.accept(b"another-key-of-twenty")
    assert not load_keys(None, {}) and not load_keys(None, {"GECKO_API_KEYS": " , "})
    with pytest.raises(ConfigError, match="key 2 has 5 characters") as caught:
        load_keys(None, {"GECKO_API_KEYS": "a-key-of-twenty-chars,short"})
    assert "short" not in str(caught.value).replace("shorter", "")


@pytest.mark.parametrize(
    "line", ["plain-key-in-the-file", "alice plain-key", "alice sha256:12", "alice md5:" + "0" * 64]
)
def test_a_plain_key_in_a_file_is_refused_and_not_repeated(tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# one\n{line}\n")
    with pytest.raises(ConfigError, match="keys:2: .*--new-key") as caught:
        load_keys(path, {})
    assert "plain-key" not in str(caught.value)


def test_a_file_without_keys_is_an_error_not_an_open_door(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# nobody yet\n")
    with pytest.raises(ConfigError, match="holds no key"):
        load_keys(path, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_keys(tmp_path / "missing", {})
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_keys(path, {})


def test_no_keys_accept_nothing() -> None:
    assert not ApiKeys([]).accept(b"")


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.0.1", "localhost", "LOCALHOST", "::1", "[::1]")))
    assert not any(map(is_loopback, ("", "0.0.0.0", "::", "192.168.1.1", "localhost.evil.org", "127.0.0.1.evil.org")))
