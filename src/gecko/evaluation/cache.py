"""Embeddings kept by content, so that a second measurement of the same model on the same texts embeds nothing.

A file holds the vectors of one list of texts in full width; a narrower one is cut from it. Its name hashes the model's
identity, how it was run, and the texts; the passages of a model of two towers are those of the model that made them. The
folder is the user's cache folder (``GECKO_CACHE`` moves it) and is bounded: what was not used for the longest time goes
first.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from gecko.core.files import digest
from gecko.core.formats import InputFormat
from gecko.core.records import Passage, Text
from gecko.encoder import Encoder
from gecko.encoder.vectors import Vectors, shorten

VERSION = 2  # raised when the same texts give other vectors
LIMIT = 8 << 30  # bytes of all files together
ROWS = 1 << 16  # cut to a narrower width together


class SupportsEmbedding(Protocol):
    """What ranking needs of a model."""

    @property
    def form(self) -> InputFormat:
        """The text form that it reads."""
        ...

    def queries(self, texts: Sequence[str], tasks: Sequence[str] | str = "", *, progress: bool = False) -> Vectors:
        """Embed queries: float32 (n, dim), unit rows."""
        ...

    def passages(self, items: Sequence[Passage | Text], *, progress: bool = False) -> Vectors:
        """Embed passages: float32 (n, dim), unit rows."""
        ...


class KeptEmbeddings:
    """An encoder whose vectors are kept in a folder that may hold ``limit`` bytes; none: nothing is kept.

    A model without an identity is never kept. The numbers are the same.
    """

    def __init__(self, encoder: "Encoder", folder: Path | None, limit: int = LIMIT) -> None:
        full = encoder.model.get_embedding_dimension()
        assert full is not None
        self._encoder = encoder if encoder.dim == full else encoder.truncated(full)
        self.form = encoder.form
        self.dim = encoder.dim
        self._folder = folder if encoder.identity else None
        self._limit = limit
        window = str(encoder.model.max_seq_length)
        how = (encoder.form, encoder.precision, window)
        self._how = digest(str(VERSION), encoder.identity, *how)
        self._how_passages = digest(str(VERSION), encoder.passage_identity, *how)

    def queries(self, texts: Sequence[str], tasks: Sequence[str] | str = "", *, progress: bool = False) -> Vectors:
        """As :meth:`gecko.encoder.Encoder.queries`."""
        given = [tasks] if isinstance(tasks, str) else tasks
        return self._kept(
            self._key("query", digest(*given), texts),
            len(texts),
            lambda: self._encoder.queries(texts, tasks, progress=progress),
        )

    def passages(self, items: Sequence[Passage | Text], *, progress: bool = False) -> Vectors:
        """As :meth:`gecko.encoder.Encoder.passages`."""
        return self._kept(
            self._passage_key(items), len(items), lambda: self._encoder.passages(items, progress=progress)
        )

    def remember_passages(self, items: Sequence[Passage | Text], vectors: Vectors) -> None:
        """Keep what the encoder made of passages elsewhere, for :meth:`passages` to find: float32 (n, full width)."""
        if self._folder is not None:
            _write(self._folder / f"{self._passage_key(items)}.npy", vectors, self._limit)

    def symmetric(
        self, texts: Sequence[str], task: str, names: Sequence[str] = (), *, progress: bool = False
    ) -> Vectors:
        """As :meth:`gecko.encoder.Encoder.symmetric`."""
        return self._kept(
            self._key("symmetric", digest(task, *names), texts),
            len(texts),
            lambda: self._encoder.symmetric(texts, task, names, progress=progress),
        )

    def _passage_key(self, items: Sequence[Passage | Text]) -> str:
        return digest(self._how_passages, "passage", "", *(text for item in items for text in (item.title, item.text)))

    def _key(self, side: str, task: str, texts: Iterable[str]) -> str:
        return digest(self._how, side, task, *texts)

    def _kept(self, key: str, rows: int, embed: Callable[[], Vectors]) -> Vectors:
        if self._folder is None:
            return self._cut(embed())
        file = self._folder / f"{key}.npy"
        vectors = _read(file, (rows, self._encoder.dim))
        if vectors is None:
            vectors = embed()
            _write(file, vectors, self._limit)
        return self._cut(vectors)

    def _cut(self, vectors: Vectors) -> Vectors:
        """The first ``dim`` numbers of each row, at length 1 again."""
        if self.dim == vectors.shape[1]:
            return vectors
        cut = np.empty((len(vectors), self.dim), dtype=np.float32)
        for start in range(0, len(vectors), ROWS):
            cut[start : start + ROWS] = shorten(vectors[start : start + ROWS], self.dim)
        return cut


def _read(file: Path, shape: tuple[int, int]) -> Vectors | None:
    """The vectors of a file, mapped and not loaded; none if it is not there or was not written by us."""
    try:
        vectors: Vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if vectors.shape != shape or vectors.dtype != np.float32:
        return None
    with contextlib.suppress(OSError):
        os.utime(file)
    return vectors


def _write(file: Path, vectors: Vectors, limit: int) -> None:
    """Add a file and make room for it. What cannot be kept (a full disk, say) is embedded again another time."""
    if vectors.nbytes > limit // 2:
        return
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _make_room(file.parent, limit - vectors.nbytes)
        with aside.open("wb") as handle:
            np.save(handle, vectors)
        aside.replace(file)
    except OSError:
        aside.unlink(missing_ok=True)


def _make_room(folder: Path, limit: int) -> None:
    """Remove the files that were not used for the longest time until the others hold at most ``limit`` bytes."""
    found = []
    for file in folder.glob("*.npy"):
        with contextlib.suppress(OSError):  # another process may remove it
            status = file.stat()
            found.append((status.st_mtime_ns, status.st_size, file))
    held = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if held <= limit:
            return
        file.unlink(missing_ok=True)
        held -= size
