"""Files that exist whole or not at all, and hashes of strings, files and folders."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gecko.core.disk import disk_errors
from gecko.core.errors import RunError
from gecko.core.text import half_of_pair

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
    """Write a file so that it exists whole or not at all.

    Raises:
        StorageError: the disk is full or read-only.
    """
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


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder.

    Raises:
        RunError: it is missing or damaged.
    """
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


def replace_folder(source: Path, target: Path) -> None:
    """Make ``target`` an equal copy of the folder ``source``, whole or not at all; nothing is done if it is one.

    A card (``README.md``) that was written into the copy makes no difference.
    """
    if target.exists() and tree_sha256(target, besides=CARD) == tree_sha256(source, besides=CARD):
        return
    aside = target.with_name(f".{target.name}.partial")
    with disk_errors(target):
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
        shutil.rmtree(target, ignore_errors=True)
        aside.replace(target)


def tree_sha256(path: Path, besides: str = "") -> str:
    """One hash for a file, or for a folder's files with their names, without the one named ``besides``."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(entry for entry in path.rglob("*") if entry.is_file() and entry != path / besides)
    return digest(*(text for entry in files for text in (str(entry.relative_to(path)), file_sha256(entry))))
