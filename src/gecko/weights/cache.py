"""The user's cache folder, and hashes of files that are remembered there. ``GECKO_CACHE`` moves it."""

import contextlib
import os
from pathlib import Path

from platformdirs import user_cache_path

from gecko.core.errors import ConfigError, StorageError
from gecko.core.files import digest, file_sha256, read_json, write_json


def cache_folder() -> Path:
    """Where weights, indices and teacher checks are kept between runs; it may not be there yet.

    Raises ConfigError: nothing says where: GECKO_CACHE is not set, and the user has no home folder.
    """
    if given := os.environ.get("GECKO_CACHE"):
        return Path(given)
    with contextlib.suppress(RuntimeError):  # who has no home
        folder = user_cache_path("gecko")
        if folder.is_absolute():
            return folder
    raise _no_cache("this user has no home folder")


def cache_room(name: str) -> Path:
    """A folder of the cache in which files can be made.

    Raises ConfigError: there is no cache, or it cannot be written.
    """
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_cache(f"{folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _no_cache(f"{folder} cannot be written")
    return folder


def _no_cache(why: str) -> ConfigError:
    return ConfigError(
        f"no cache folder: {why}; set GECKO_CACHE to a folder that can be written (gecko search does without one with "
        "--index, gecko eval with --no-cache)"
    )


def file_identity(path: Path) -> str:
    """Hash of a file's bytes, remembered in the cache, where there is one, by size and time of change."""
    stat = path.stat()
    name = f"{digest(str(path.resolve()), str(stat.st_size), str(stat.st_mtime_ns))}.json"
    try:
        memo = cache_folder() / "hashes" / name
    except ConfigError:
        return file_sha256(path)[:16]
    if memo.exists():
        return str(read_json(memo)["sha256"])[:16]
    found = file_sha256(path)
    with contextlib.suppress(StorageError, OSError):
        write_json(memo, {"sha256": found})
    return found[:16]
