"""One process at a time in a folder."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gecko.core.disk import disk_errors
from gecko.core.errors import RunError

_ASIDE = re.compile(r"\..+\.\d+")  # the names that write_bytes uses until a file is whole


@contextmanager
def lock_folder(path: Path, wait: float = 0) -> Iterator[None]:
    """Make a folder if need be, and keep other processes out of it for the length of a block.

    Another process has ``wait`` seconds to end. Raises RunError: one works there, or it is a file. StorageError: it
    cannot be made or written.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; give the path of a folder")
    try:
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            held = FileLock(path / ".lock").acquire(timeout=wait)
    except Timeout:
        raise RunError(f"another process works in {path}; wait for it to end, or use another folder") from None
    with held:
        yield


def sweep(path: Path) -> None:
    """Remove what killed writes left in a folder that is held: nobody else can be writing."""
    for file in [*path.glob(".*"), *path.glob("*/.*")]:
        if _ASIDE.fullmatch(file.name) and file.is_file() and not file.is_symlink():
            file.unlink()
