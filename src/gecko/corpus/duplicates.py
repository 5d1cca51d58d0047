"""What was seen before: ids, exact texts and near duplicates, in a private temporary database.

SQLite keeps the tables in a page cache of fixed size and spills the rest to a file that vanishes with the process, so
memory does not grow with the corpus. Near duplicates are found by MinHash over word triples (of a script without spaces
each character is a word): equal bands of the
signature propose a pair, the whole signatures decide.
"""

import sqlite3
from array import array
from functools import partial
from pathlib import Path
from tempfile import gettempdir

from gecko.core.disk import disk_errors
from gecko.core.text import words
from gecko.corpus.language import needed

CACHE_KB = 65_536
PERMUTATIONS = 128
BAND = 8  # 16 bands of 8: a pair of Jaccard similarity 0.8 is proposed with 95 %, one of 0.9 with 99.99 %
SHINGLE = 3
SEED = 1

_TABLES = """
CREATE TABLE id (key BLOB PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE content (key BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE signature (number INTEGER PRIMARY KEY, id TEXT NOT NULL, value BLOB NOT NULL);
CREATE TABLE band (key BLOB, number INTEGER, PRIMARY KEY (key, number)) WITHOUT ROWID;
"""


_rensa = partial(needed, "rensa", "corpus.near_duplicates")


class Seen:
    """An index of the passages so far.

    Near duplicates are texts whose estimated Jaccard similarity is ``threshold`` or more; none: they are not looked for.
    Raises CorpusError: the package for MinHash is missing.
    """

    def __init__(self, threshold: float | None = None) -> None:
        self.threshold = threshold
        if threshold is not None:
            _rensa()
        self._folder = Path(gettempdir())
        self._base = sqlite3.connect("", isolation_level=None)
        with disk_errors(self._folder):
            self._base.executescript(
                f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-{CACHE_KB}; PRAGMA temp_store=FILE;"
                + _TABLES
            )
            self._base.execute("BEGIN")
        self._count = 0

    def id_content(self, key: bytes, content: bytes) -> bytes | None:
        """What an id stood for before; a new id is kept with ``content``, and None is returned."""
        with disk_errors(self._folder):
            row = self._base.execute("SELECT content FROM id WHERE key = ?", (key,)).fetchone()
            if row is None:
                self._base.execute("INSERT INTO id VALUES (?, ?)", (key, content))
        return None if row is None else bytes(row[0])

    def is_new(self, content: bytes) -> bool:
        """Whether this content is seen for the first time; from now on it is known."""
        with disk_errors(self._folder):
            return self._base.execute("INSERT OR IGNORE INTO content VALUES (?)", (content,)).rowcount == 1

    def near(self, identifier: str, text: str) -> tuple[str, float] | None:
        """The first kept text that this one nearly repeats, and their similarity; none: the text is kept from now on."""
        assert self.threshold is not None
        found = words(text)
        if len(found) < SHINGLE:
            return None  # nothing to compare
        signature = _signature([" ".join(found[at : at + SHINGLE]) for at in range(len(found) - SHINGLE + 1)])
        value = signature.tobytes()
        width = signature.itemsize * BAND
        keys = [
            number.to_bytes(1) + value[start : start + width]
            for number, start in enumerate(range(0, len(value), width))
        ]
        marks = ",".join("?" * len(keys))
        with disk_errors(self._folder):
            proposed = self._base.execute(
                f"SELECT DISTINCT number FROM band WHERE key IN ({marks}) ORDER BY number",  # noqa: S608
                keys,
            )
            for (number,) in proposed.fetchall():
                hit = self._base.execute("SELECT id, value FROM signature WHERE number = ?", (number,))
                other, kept = hit.fetchone()
                known = array("I", bytes(kept))
                similarity = sum(one == two for one, two in zip(signature, known, strict=True)) / PERMUTATIONS
                if similarity >= self.threshold:
                    return str(other), similarity
            self._count += 1
            self._base.execute("INSERT INTO signature VALUES (?, ?, ?)", (self._count, identifier, value))
            self._base.executemany("INSERT INTO band VALUES (?, ?)", [(key, self._count) for key in keys])
        return None

    def close(self) -> None:
        """Drop the index."""
        self._base.close()


def _signature(shingles: list[str]) -> "array[int]":
    found = _rensa().RMinHash(PERMUTATIONS, SEED)
    found.update(shingles)
    return array("I", found.digest())
