import errno
import sqlite3
import tempfile
from pathlib import Path

import pytest

from gecko.core import disk
from gecko.core.disk import disk_errors, temporary_file
from gecko.core.errors import StorageError
from gecko.corpus.duplicates import Seen


class LibraryError(Exception):
    pass


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """The folders whose disks are full."""
    places: set[Path] = set()
    monkeypatch.setattr(disk, "is_full", lambda path: any(path.is_relative_to(place) for place in places))
    return places


def test_what_libraries_say_of_a_full_disk(tmp_path: Path, full: set[Path]) -> None:
    target, expected = tmp_path / "run" / "model", "cannot write .*run/model: .*the disk is full"
    with pytest.raises(StorageError, match=expected), disk_errors(target, LibraryError):
        raise LibraryError("while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(LibraryError), disk_errors(target, LibraryError):
        raise LibraryError("a matrix has no inverse")
    full.add(tmp_path / "run")
    with pytest.raises(StorageError, match=expected), disk_errors(target, LibraryError):
        raise LibraryError("write failed")
    with pytest.raises(StorageError, match=expected), disk_errors(target):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_sqlite_says(tmp_path: Path) -> None:
    base = sqlite3.connect(tmp_path / "base")
    base.execute("CREATE TABLE rows (text)")
    base.execute("PRAGMA max_page_count = 3")
    with (
        pytest.raises(StorageError, match="cannot write .*base: the disk is full"),
        disk_errors(tmp_path / "base"),
    ):
        base.execute("INSERT INTO rows VALUES (?)", ("x" * 100_000,))
    with pytest.raises(sqlite3.OperationalError, match="no such table"), disk_errors(tmp_path / "base"):
        base.execute("SELECT * FROM others")
    base.close()


def test_the_folder_for_temporary_files_is_named(
    tmp_path: Path, full: set[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    expected = "cannot write .*scratch, the folder for temporary files: the disk is full; .*TMPDIR"
    with pytest.raises(StorageError, match=expected), temporary_file(".pdf") as file:
        assert Path(file.name).parent == tmp_path / "scratch"
        raise OSError(errno.ENOSPC, "No space left on device")
    full.add(tmp_path / "scratch")
    with pytest.raises(StorageError, match=expected), disk_errors(tmp_path / "run"):
        raise OSError(errno.ENOSPC, "No space left on device")
    seen = Seen()
    seen._base.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StorageError, match=expected):
        for number in range(1000):
            seen.is_new(bytes(100) + number.to_bytes(4))
