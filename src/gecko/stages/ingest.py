"""HTML, PDF and Word files read by many workers, before the corpus is read in its order.

Parsing is what reading such files costs. It is kept by the documents' bytes (:mod:`gecko.corpus.documents`), so the corpus
that is read afterwards, in order and without duplicates, is the same as if nothing had been read ahead.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gecko.config.stages import CorpusConfig
from gecko.core.counts import Counts
from gecko.core.disk import temporary_file
from gecko.corpus.documents import Documents, Extractor
from gecko.corpus.readers import Reader, parsed_documents
from gecko.run.engine import Executor


@dataclass
class Extract:
    """What a worker does with a document; its extracting process ends with the worker."""

    seconds: float
    html: Literal["main", "all"]
    _extractor: Extractor | None = field(default=None, init=False, repr=False)

    def __call__(self, task: tuple[bytes, str], counts: Counts) -> list[dict[str, str]]:
        """What the extracting process says of a document's bytes and ending."""
        data, ending = task
        if self._extractor is None:
            self._extractor = Extractor(self.seconds, self.html)
        with temporary_file(ending) as copy:
            copy.write(data)
            copy.flush()
            return [self._extractor(Path(copy.name), ending)]


def read_ahead(config: CorpusConfig, cache: Path, engine: Executor) -> int:
    """Have an engine read the documents of all sources that ``cache`` does not hold, and keep them there.

    Returns:
        how many there were.

    Raises:
        CorpusError: a source does not exist, or the package that reads a kind of document is missing.
    """
    with closing(Documents(config.document_seconds, config.html, cache)) as documents:
        new = _new(config, documents)
        keys: list[str] = []

        def take() -> tuple[int, tuple[bytes, str]] | None:
            if (entry := next(new, None)) is None:
                return None
            keys.append(entry[0])
            return len(keys) - 1, entry[1]

        for index, done in engine.run(Extract(config.document_seconds, config.html), take):
            documents.remember(keys[index], done.rows[0])
        return len(keys)


def _new(config: CorpusConfig, documents: Documents) -> Iterator[tuple[str, tuple[bytes, str]]]:
    """Key, bytes and ending of each document that was not read yet."""
    begun: set[str] = set()
    for spec in config.sources:
        for path, ending in parsed_documents(spec, Reader(config, documents)):
            key = documents.key(path, ending)
            if key not in begun and documents.known(key) is None:
                begun.add(key)
                yield key, (path.read_bytes(), ending)
