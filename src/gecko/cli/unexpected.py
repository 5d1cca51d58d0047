"""What the command line says of an exception that nobody raised on purpose: one sentence, with the mend where one is known.

The traceback is shown where ``GECKO_TRACEBACK`` is set.
"""

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import gecko

TRACEBACK = "GECKO_TRACEBACK"
LONGEST = 400  # characters of an exception's own message
LITTLE = 1 << 22  # bytes: a disk with less is as good as full
SMALLER = (
    "give less at a time (a smaller batch or model, --set train.part_tokens=4096), or end other programs, and run the same "
    "command again"
)
_OS: dict[int, tuple[str, str]] = {
    errno.ENOENT: ("does not exist", "check the path"),
    errno.EACCES: ("may not be read or written", "change its rights, or give another path"),
    errno.EPERM: ("may not be changed", "change its rights, or give another path"),
    errno.EROFS: ("is on a disk that is read-only", "give a folder on another disk"),
    errno.EISDIR: ("is a folder", "give a file"),
    errno.ENOTDIR: ("has a file in its path where a folder must be", "give another path"),
    errno.EEXIST: ("exists already", "give another path, or move it away"),
    errno.ENOTEMPTY: ("is a folder with files in it", "give another path, or move it away"),
    errno.ENAMETOOLONG: ("has too long a name", "give a shorter one"),
    errno.EFBIG: ("grew larger than files may be here", "give a folder on another disk"),
    errno.EIO: ("could not be read or written: the disk or its connection fails", "check the disk"),
}


def sentence(error: BaseException) -> str:
    """What happened, and what to do."""
    root = error
    while isinstance(root, RuntimeError) and root.__cause__ is not None and not str(root):
        root = root.__cause__
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(root).__mro__}
    what = " ".join(str(root).split())
    if isinstance(root, MemoryError):
        return f"this machine's memory is full{f' ({_cut(what)})' if what else ''}; {SMALLER}"
    if "torch.OutOfMemoryError" in names or (
        isinstance(root, RuntimeError) and ("out of memory" in what or "can't allocate memory" in what)
    ):
        return f"the device's memory is full ({_cut(what)}); {SMALLER}"
    if isinstance(root, OSError) and not names & {"requests.RequestException", "urllib3.HTTPError"}:
        return _of_system(root, what)
    if isinstance(root, sqlite3.Error):
        return (
            f"a database cannot be used ({_cut(what)}); check its path, its rights, and that nobody else writes to it"
        )
    if "safetensors_rust.SafetensorError" in names or "safetensors.SafetensorError" in names:
        return f"a file of weights (.safetensors) is damaged ({_cut(what)}); fetch or copy the model's folder again"
    if "pyarrow.ArrowException" in names:
        return f"a table (Parquet or Arrow) cannot be read or written ({_cut(what)}); write it anew{_hint()}"
    if isinstance(root, json.JSONDecodeError):
        return f"a file that must be JSON is not ({_cut(what)}){_near(root)}; write or fetch it anew{_hint()}"
    if isinstance(root, UnicodeError):
        return f"a text cannot be written in, or read from, bytes ({_cut(what)}); save it as UTF-8{_hint()}"
    if isinstance(root, RecursionError):
        return f"something is nested too deep to be read ({_cut(what)}){_hint()}"
    kind = type(root).__name__
    return f"something unexpected happened: {kind}{f': {_cut(what)}' if what else ''}{_near(root)}{_hint()}"


def _of_system(error: OSError, what: str) -> str:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    place = " to ".join(names)
    code = error.errno or 0
    if code in (errno.ENOSPC, errno.EDQUOT):
        full = place or ", ".join(_full_disks()) or "the run's folder, the cache or the temporary folder"
        return (
            f"the disk is full, where {full} lies; free some space there, or set TMPDIR and GECKO_CACHE to folders on "
            "another disk, and run the same command again"
        )
    if code in (errno.EMFILE, errno.ENFILE):
        return "too many files are open at once; raise the limit, for example with: ulimit -n 4096"
    if code == errno.ENOMEM:
        return f"this machine's memory is full; {SMALLER}"
    if code in _OS and place:
        said, mend = _OS[code]
        return f"{place} {said}; {mend}"
    return (
        f"{f'{place}: ' if place else ''}{_cut(error.strerror or what) or type(error).__name__}{_near(error)}{_hint()}"
    )


def _full_disks() -> Iterator[str]:
    """Folders that a command may write to and that have no space left: those it was given, and its own."""
    given = [Path(word.partition("=")[2] or word) for word in sys.argv[1:]]
    cache = os.environ.get("GECKO_CACHE") or "~/.cache"
    seen = set()
    for path in [*given, Path(tempfile.gettempdir()), Path(cache).expanduser(), Path.cwd()]:
        with contextlib.suppress(OSError, RuntimeError):
            folder = next(one for one in (path.absolute(), *path.absolute().parents) if one.is_dir())
            if shutil.disk_usage(folder).free < LITTLE and folder not in seen:
                seen.add(folder)
                yield str(folder)


def _near(error: BaseException) -> str:
    """The last place in this package that the exception went through."""
    here = Path(gecko.__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_relative_to(here):
            return f" (gecko/{Path(frame.filename).relative_to(here).as_posix()}, line {frame.lineno})"
    return ""


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _hint() -> str:
    return f". For the traceback, run the same command with {TRACEBACK}=1 before it"


def wants_traceback() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get(TRACEBACK, "") not in ("", "0")
