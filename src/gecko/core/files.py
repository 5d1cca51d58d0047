"""Files that exist whole or not at all, and hashes of strings, files and folders."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gecko.core.disk import disk_errors
from gecko.core.errors import RunError
from gecko.core.text import half_of_pair

if TYPE_CHECKING:
    import pyarrow as pa

CARD = "README.md"


def digest(*parts: str | bytes) -> str:
    """A hash of several strings in which their borders count; 16 hexadecimal digits."""
    return digest_of(parts)


def digest_of(parts: Iterable[str | bytes]) -> str:
    """:func:`digest` of strings that come one by one."""
    joined = hashlib.sha256()
    for part in parts:
        # surrogatepass: names of files need not be UTF-8.
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        joined.update(len(data).to_bytes(8, "little") + data)
    return joined.hexdigest()[:16]


def hash_fraction(*parts: str) -> float:
    """A number from 0 on and below 1 that these strings decide, for good: for drawing by share or weight."""
    return float(int(digest(*parts)[:12], 16) / 16**12)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it exists whole or not at all. Raises StorageError: the disk is full or read-only."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, whole or not at all."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    if half_of_pair(text):  # the name of a file that is not UTF-8; as an escape it comes back as it was
        text = json.dumps(value, indent=1)
    write_bytes(path, f"{text}\n".encode())


def write_table(path: Path, table: "pa.Table", level: int | None = None) -> bytes:
    """Write a table as Parquet in zstd of a level, whole or not at all; the bytes that were written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=level)
    data: bytes = sink.getvalue().to_pybytes()
    write_bytes(path, data)
    return data


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder. Raises RunError: it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; run the stage that writes it") from error
    except (ValueError, OSError) as error:
        raise RunError(
            f"{path} is damaged ({error}); it is kept as it is; move it away to have it made again"
        ) from error


def remove(path: Path) -> None:
    """Remove a file or a whole folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def made_aside(target: Path) -> Iterator[Path]:
    """A place beside ``target`` for a file or a folder, which is moved to ``target`` when the block ends without an error.

    What a killed process left there is removed first, since it must not be mixed with what comes.
    """
    target = target.absolute()  # "." has no name
    aside = target.with_name(f".{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        remove(aside)
        yield aside
        aside.replace(target)
    finally:
        remove(aside)


def replace_folder(source: Path, target: Path) -> None:
    """Make ``target`` an equal copy of the folder ``source``, whole or not at all; nothing is done if it is one.

    A card (``README.md``) that was written into the copy makes no difference.
    """
    if target.exists() and tree_sha256(target, besides=CARD) == tree_sha256(source, besides=CARD):
        return
    with disk_errors(target), made_aside(target) as aside:
        shutil.copytree(source, aside)
        shutil.rmtree(target, ignore_errors=True)


def tree_sha256(path: Path, besides: str = "") -> str:
    """One hash for a file, or for a folder's files with their names, without the one named ``besides``."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(entry for entry in path.rglob("*") if entry.is_file() and entry != path / besides)
    return digest(*(text for entry in files for text in (str(entry.relative_to(path)), file_sha256(entry))))
