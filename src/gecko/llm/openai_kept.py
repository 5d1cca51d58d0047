"""Replies that were paid for and belong to work that did not come to its end.

A shard is written when all of it is answered. When a run is stopped before, by a person or by the server, what had
arrived is put into a file of the cache folder, by a hash of the request, and the next run does not ask for it again.
"""

import base64
import json
import time
import zlib
from collections import deque
from pathlib import Path
from typing import Any

from filelock import FileLock

from gecko.core.errors import StorageError
from gecko.core.files import digest, write_bytes

CALLS = 2  # of a backend, that one shard takes at most: one for each of its two scores
ROUNDS = 24  # the same where answers in words are asked for: windows of an order, and halves of what is not answered
DAYS = 30  # after which a reply is no longer believed

Entry = tuple[float, str]  # when the reply arrived, and what it is


class KeptReplies:
    """The replies of the latest calls, and those that an earlier run left behind, in a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._left = self._load()
        self._used: set[str] = set()
        self._calls: deque[dict[str, Entry]] = deque([{}], maxlen=ROUNDS)
        self.on = path is not None

    @staticmethod
    def key(path: str, body: dict[str, Any]) -> str:
        """Hash of a request."""
        return digest(path, json.dumps(body, sort_keys=True))

    def begin(self, calls: int = CALLS) -> None:
        """A call begins, of a shard that takes at most so many: what the calls before those brought is written."""
        self._calls.append({})
        while len(self._calls) > calls:
            self._calls.popleft()

    def find(self, key: str) -> dict[str, Any] | None:
        """The reply to a request, if an earlier run left it."""
        if not self.on or key not in self._left:
            return None
        self._used.add(key)
        left = self._left.pop(key)
        try:
            found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(left[1])))
        except (ValueError, zlib.error):
            return None  # damaged
        self._calls[-1][key] = left
        return found

    def hold(self, key: str, content: bytes) -> None:
        """A reply has arrived."""
        if self.on:
            self._calls[-1][key] = time.time(), base64.b64encode(zlib.compress(content)).decode()

    def save(self) -> int:
        """Put what is held into the file; returns how many replies that are."""
        held = {key: reply for call in list(self._calls) for key, reply in call.copy().items()}
        if self._path is None or not (held or self._used):
            return 0
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix(".lock")):
                others = {key: reply for key, reply in self._load().items() if key not in self._used}
                write_bytes(self._path, json.dumps(others | held).encode())
        except (OSError, StorageError):
            return 0  # they are asked for again
        return len(held)

    def _load(self) -> dict[str, Entry]:
        if self._path is None:
            return {}
        try:
            written = self._path.stat().st_mtime
            found = json.loads(self._path.read_bytes())
            # Earlier versions wrote a reply without its time.
            entries = {key: (written, kept) if isinstance(kept, str) else kept for key, kept in found.items()}
            oldest = time.time() - DAYS * 86_400
            return {
                key: (min(at, written), str(reply)) for key, (at, reply) in entries.items() if min(at, written) > oldest
            }
        except (OSError, ValueError, TypeError, AttributeError):
            return {}  # none, or damaged
