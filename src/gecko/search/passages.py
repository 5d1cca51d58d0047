"""The passages of an index in SQLite, by place, and their words for BM25 (FTS5)."""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import numpy as np

from gecko.core.disk import disk_errors
from gecko.core.errors import ConfigError, RunError
from gecko.core.records import Passage
from gecko.core.text import MARKS, spaced
from gecko.search.manifest import damaged, reading

PATIENCE = 60.0  # seconds for which another process may write
FIELDS = ("id", "title", "source")  # by which passages are filtered
_PASSAGES = "CREATE TABLE IF NOT EXISTS passages (place INTEGER PRIMARY KEY, id, title, text, source)"
_WORDS = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(title, text, content='passages', content_rowid='place', "
    f"tokenize=\"porter unicode61 tokenchars '{MARKS}'\")"
)


class Passages(AbstractContextManager["Passages"]):
    """The database of an index, open: ``ro`` to read, ``rw`` to write to one that is there, ``rwc`` to make one.

    Raises RunError: it is missing or damaged. StorageError: it cannot be written.
    """

    def __init__(self, folder: Path, mode: Literal["ro", "rw", "rwc"] = "ro") -> None:
        self.file = folder / "passages.sqlite"
        with reading(self.file):
            if mode != "rwc":  # SQLite says no more than that it cannot open it
                self.file.open("rb").close()
        uri = f"{self.file.absolute().as_uri()}?mode={mode}"
        with self._using():
            self._base = sqlite3.connect(uri, uri=True, check_same_thread=False, timeout=PATIENCE)
            if mode == "rwc":
                self._base.execute(_PASSAGES)
                self._base.execute(_WORDS)

    def close(self) -> None:
        """Close the database."""
        self._base.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        try:
            with reading(self.file, sqlite3.DatabaseError), disk_errors(self.file):
                yield
        except RunError as error:
            if getattr(error.__cause__, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                raise RunError(f"another process works in {self.file.parent}; wait for it to end") from error
            raise

    def add(self, rows: Sequence[Passage], first: int) -> None:
        """Append passages, the first of them at place ``first``, from 0."""
        with self._using(), self._base:
            self._base.executemany(
                "INSERT INTO passages VALUES (?, ?, ?, ?, ?)",
                [(place, row.id, row.title, row.text, row.source) for place, row in enumerate(rows, first + 1)],
            )
            self._split((place, row.title, row.text) for place, row in enumerate(rows, first + 1))

    def cut(self, rows: int) -> None:
        """Keep the first ``rows`` passages: what a killed build wrote after its last manifest goes."""
        with self._using(), self._base:
            more = self._base.execute("SELECT place, title, text FROM passages WHERE place > ?", (rows,)).fetchall()
            self._base.executemany(
                "INSERT INTO words(words, rowid, title, text) VALUES ('delete', ?, ?, ?)",
                [(place, spaced(title), spaced(text)) for place, title, text in more],
            )
            self._base.execute("DELETE FROM passages WHERE place > ?", (rows,))

    def split_anew(self) -> None:
        """Split the texts into words as this version does."""
        with self._using(), self._base:
            self._base.execute("BEGIN")
            self._base.execute("DROP TABLE words")
            self._base.execute(_WORDS)
            self._split(self._base.execute("SELECT place, title, text FROM passages ORDER BY place"))

    def _split(self, rows: Iterable[tuple[int, str, str]]) -> None:
        self._base.executemany(
            "INSERT INTO words(rowid, title, text) VALUES (?, ?, ?)",
            ((place, spaced(title), spaced(text)) for place, title, text in rows),
        )

    def seal(self, texts: str) -> None:
        """Note the hash of the passages, by which they are known for those of the manifest."""
        with self._using(), self._base:
            self._base.execute(f"PRAGMA user_version = {_mark(texts)}")

    def check(self, rows: int, texts: str | None = None) -> None:
        """Refuse a database that does not hold ``rows`` passages and their words, or others than ``texts`` is a hash of.

        Raises RunError: it is damaged.
        """
        with self._using():
            (last,) = self._base.execute("SELECT coalesce(max(place), 0) FROM passages").fetchone()
            (split,) = self._base.execute("SELECT count(*) FROM words_docsize").fetchone()
            (mark,) = self._base.execute("PRAGMA user_version").fetchone()
        if (last, split) != (rows, rows):
            raise damaged(self.file, f"it holds {last:,} passages and the words of {split:,}, the manifest {rows:,}")
        if texts is not None and mark != _mark(texts):
            raise damaged(self.file, "its passages are not those of the manifest")

    def rows(self) -> Iterator[Passage]:
        """All passages in their order."""
        with self._using():
            found = self._base.execute("SELECT id, title, text, source FROM passages ORDER BY place")
            yield from (Passage(*row) for row in found)

    def places(self, where: Mapping[str, str]) -> np.ndarray:
        """The places, from 0, of the passages that a filter leaves, in order.

        Raises ConfigError: a field is not known.
        """
        condition, values = filtering(where)
        with self._using():
            found = self._base.execute(f"SELECT place - 1 FROM passages WHERE {condition} ORDER BY place", values)  # noqa: S608
            return np.array([place for (place,) in found], dtype=np.int64)

    def bm25(self, query: str, k: int, where: Mapping[str, str] | None = None) -> list[tuple[int, float]]:
        """(place, score) of the best passages by words, among those that a filter leaves; the title counts twice."""
        words = query_words(query)
        if not words:
            return []
        asked = " OR ".join(f'"{word}"' for word in words)
        condition, values = filtering(where or {})
        among = f"AND rowid IN (SELECT place FROM passages WHERE {condition})" if where else ""  # noqa: S608
        with self._using():
            found = self._base.execute(
                "SELECT rowid, bm25(words, 2.0, 1.0) AS score FROM words WHERE words MATCH ? "  # noqa: S608
                f"{among} ORDER BY score, rowid LIMIT ?",
                (asked, *values, k),
            ).fetchall()
        return [(place - 1, -score) for place, score in found]

    def __getitem__(self, place: int) -> Passage:
        with self._using():
            row = self._base.execute(
                "SELECT id, title, text, source FROM passages WHERE place = ?", (place + 1,)
            ).fetchone()
        if row is None:
            raise damaged(self.file, f"passage {place + 1} is missing")
        return Passage(*row)


def filtering(where: Mapping[str, str]) -> tuple[str, list[str]]:
    """A filter as an SQL condition and its values; in a value, ``*`` stands for any characters.

    Raises ConfigError: a field is not known.
    """
    if wrong := [field for field in where if field not in FIELDS]:
        raise ConfigError(f"passages have no field {wrong[0]!r} to filter by; give one of {', '.join(FIELDS)}")
    patterns = [value.replace("[", "[[]").replace("?", "[?]") for value in where.values()]
    return " AND ".join(f"{field} GLOB ?" for field in where) or "1", patterns


def query_words(query: str) -> list[str]:
    """The words of a query that BM25 looks for: without stop words, unless there are no others."""
    from bm25s.stopwords import STOPWORDS_EN

    plain = "".join(c if c.isalnum() or c in MARKS else " " for c in spaced(query.lower()))
    words = list(dict.fromkeys(plain.split()))
    return [word for word in words if word not in STOPWORDS_EN] or words


def _mark(texts: str) -> int:
    """A number of 28 bits, as SQLite keeps one in a database's head."""
    return int(texts[:7] or "0", 16)
