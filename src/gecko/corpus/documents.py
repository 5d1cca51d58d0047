"""Documents through the extracting process (:mod:`gecko.corpus.extract`), which is killed when it takes too long.

What came of a document is kept in a small database under the hash of its bytes: a corpus that has grown pays only for
its new documents, and a run that is resumed sees the same text, and the same time-outs, as before.
"""

import json
import os
import select
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

from gecko.core.disk import disk_errors
from gecko.core.errors import CorpusError, RunError
from gecko.core.files import digest, file_sha256
from gecko.corpus.bounds import UNREADABLE, Dropped

TIMEOUT = "document took too long"
MEMORY_MB = 4096
START_SECONDS = 300.0  # for the child and its parser to load, on a busy machine
VERSION = "2"  # raised by hand when a document's text comes out differently


class Documents:
    """HTML, PDF and Word files as title and text.

    A document may take ``seconds``; of HTML ``main`` or ``all`` of the text is read. What was read is kept in the file
    ``cache``, if there is one.
    """

    def __init__(self, seconds: float = 60.0, html: Literal["main", "all"] = "main", cache: Path | None = None) -> None:
        self._extractor = Extractor(seconds, html)
        self._cache = cache
        self._known = None if cache is None else _open_cache(cache)
        self.read_now = 0  # documents that were not known before

    def read(self, path: Path, ending: str) -> tuple[str, str]:
        """Title (it may be empty) and text of the document at ``path``.

        Raises Dropped: it cannot be read, or not in time. CorpusError: the package that reads this kind is missing.
        """
        key = self.key(path, ending)
        if (known := self.known(key)) is not None:
            return _told(known)
        self.read_now += 1
        found = self._extractor(path, ending)
        self.remember(key, found)
        return _told(found)

    def key(self, path: Path, ending: str) -> str:
        """What a document is kept under; empty where nothing is kept."""
        settings = (ending, self._extractor.html, str(self._extractor.seconds), VERSION)
        return digest(file_sha256(path), *settings) if self._known is not None else ""

    def known(self, key: str) -> dict[str, str] | None:
        """What came of a document that was read before; none: it was not."""
        if self._known is None:
            return None
        row = self._known.execute("SELECT content FROM document WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def remember(self, key: str, found: dict[str, str]) -> None:
        """Keep what came of a document."""
        if self._known is not None and self._cache is not None:
            with disk_errors(self._cache):
                self._known.execute("INSERT OR IGNORE INTO document VALUES (?, ?)", (key, json.dumps(found)))
                self._known.commit()

    def close(self) -> None:
        """End the child process and close the file."""
        self._extractor.close()
        if self._known is not None:
            self._known.close()


def _open_cache(path: Path) -> sqlite3.Connection:
    try:
        with disk_errors(path):
            known = sqlite3.connect(path)
            known.execute("CREATE TABLE IF NOT EXISTS document (key TEXT PRIMARY KEY, content TEXT) WITHOUT ROWID")
    except sqlite3.DatabaseError as error:
        raise RunError(f"{path} is damaged ({error}); delete it, and its documents are read again") from error
    return known


def _told(found: dict[str, str]) -> tuple[str, str]:
    if "reason" in found:
        raise Dropped(found["reason"], found["detail"])
    return found["title"], found["text"]


class Extractor:
    """One child process, started at the first document and again after one that had to be killed."""

    def __init__(self, seconds: float, html: Literal["main", "all"]) -> None:
        self.seconds, self.html = seconds, html
        self._child: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def __call__(self, path: Path, ending: str) -> dict[str, str]:
        """``title`` and ``text`` of a document, or the ``reason`` why not with its ``detail``.

        Raises CorpusError: the package that reads this kind is missing.
        """
        child = self._started()
        assert child.stdin is not None
        request = {"path": str(path.absolute()), "ending": ending, "html": self.html}
        try:
            child.stdin.write(json.dumps(request).encode("utf-8") + b"\n")
            child.stdin.flush()
            loaded = self._reply(child, START_SECONDS)
            reply = self._reply(child, self.seconds) | loaded
        except (BrokenPipeError, EOFError):
            self.close()
            return {"reason": UNREADABLE, "detail": "the parser crashed"}
        except TimeoutError:
            self.close()
            return {"reason": TIMEOUT, "detail": f"more than {self.seconds:g} s"}
        if "missing" in reply:
            raise CorpusError(
                f"{path.name}: reading {ending} files needs a package that is not installed ({reply['missing']}); "
                "install it with: pip install 'gecko-embed[corpus]'"
            )
        if "error" in reply:
            return {"reason": reply.get("reason", UNREADABLE), "detail": reply["error"]}
        return reply

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._child is None or self._child.poll() is not None:
            # The same import path as here, and no more threads than the one that is needed.
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
            self._child = subprocess.Popen(
                [sys.executable, "-m", "gecko.corpus.extract", str(MEMORY_MB)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        return self._child

    def _reply(self, child: "subprocess.Popen[bytes]", seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        size = int.from_bytes(self._read(child, 8, end), "little")
        reply: dict[str, Any] = json.loads(self._read(child, size, end))
        return reply

    def _read(self, child: "subprocess.Popen[bytes]", size: int, end: float) -> bytes:
        assert child.stdout is not None
        data = bytearray()
        while len(data) < size:
            ready, _, _ = select.select([child.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError
            piece = os.read(child.stdout.fileno(), min(size - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)
