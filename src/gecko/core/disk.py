"""What a disk refuses, as errors that name the place and the mend."""

import contextlib
import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gecko.core.errors import GeckoError, StorageError

LEAST = 1 << 20  # bytes: a disk with fewer is full
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (*_NO_ROOM, errno.EROFS, errno.EACCES, errno.EPERM)
_FULL = "the disk is full"


@contextlib.contextmanager
def disk_errors(path: Path, *libraries: type[Exception]) -> Iterator[None]:
    """Turn what a disk refuses while ``path`` is written into an error that names the place and the mend.

    ``libraries`` are errors by which a library says anything: they are the disk's where that is full. Raises
    StorageError: the disk is full or read-only, or the place is not to be written.
    """
    others: tuple[type[Exception], ...] = (sqlite3.OperationalError, *libraries)
    try:
        yield
    except GeckoError:
        raise
    except OSError as error:
        elsewhere = isinstance(error.filename, str) and not Path(error.filename).is_relative_to(path.parent)
        if elsewhere and error.errno in (errno.EACCES, errno.EPERM):  # not what was to be written
            raise StorageError(
                f"{error.filename}: {error.strerror}; mend that, and run the same command again"
            ) from error
        if error.errno in _REFUSED or (isinstance(error, libraries) and is_full(path)):
            raise _refused(path, error.strerror or _FULL, error.errno in _NO_ROOM) from error
        raise
    except others as error:
        told = [os.strerror(code) for code in (*_NO_ROOM, errno.EROFS) if os.strerror(code) in str(error)]
        if told:  # as the libraries that write models say it
            raise _refused(path, told[0], told[0] != os.strerror(errno.EROFS)) from error
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_FULL or is_full(path) or (code is not None and is_full(Path(tempfile.gettempdir()))):
            raise _refused(path, _FULL, True) from error
        if code is not None and code & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise _refused(path, str(error), False) from error
        raise


def is_full(path: Path) -> bool:
    """Whether the disk that a path lies on, or would, is full."""
    there = next((place for place in (path, *path.absolute().parents) if place.exists()), Path())
    return shutil.disk_usage(there).free < LEAST


def _refused(path: Path, why: str, full: bool) -> StorageError:
    temporary = Path(tempfile.gettempdir())
    if full and (path == temporary or (not is_full(path) and is_full(temporary))):
        return _no_temporary_room()
    full_too = f", {_FULL}" if full and why != _FULL else ""
    return StorageError(
        f"cannot write {path}: {why}{full_too}; what was finished before is kept, run the same command again"
    )


def _no_temporary_room() -> StorageError:
    return StorageError(
        f"cannot write {tempfile.gettempdir()}, the folder for temporary files: {_FULL}; make room there, or set TMPDIR to "
        "another folder"
    )


@contextlib.contextmanager
def temporary_file(ending: str) -> Iterator[IO[bytes]]:
    """A file that vanishes with the block.

    Raises StorageError: the disk for temporary files is full, or there is no folder for them.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise StorageError(f"{error.strerror}; set TMPDIR to a folder that can be written") from error
    try:
        with tempfile.NamedTemporaryFile(suffix=ending) as file:
            yield file
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise _no_temporary_room() from error
        raise
