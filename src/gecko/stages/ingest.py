"""Stage ``ingest``: the corpus is read.

With workers, HTML, PDF and Word files are parsed by them before the corpus is read in its order: parsing is what reading such
files costs. It is kept by the documents' bytes (:mod:`gecko.corpus.documents`), so the corpus that is read afterwards, in
order and without duplicates, is the same as if nothing had been read ahead.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gecko.config.stages import CorpusConfig
from gecko.core.counts import Counts, left_out
from gecko.core.disk import temporary_file
from gecko.core.errors import CorpusError
from gecko.core.files import digest
from gecko.core.records import Passage
from gecko.corpus import ingest_shards
from gecko.corpus.chunk import load_tokenizer
from gecko.corpus.documents import Documents, Extractor
from gecko.corpus.readers import Reader, parsed_documents, source_identity
from gecko.encoder.spec import resolve_model
from gecko.run.engine import Executor
from gecko.run.manifest import Manifest
from gecko.run.shards import run_stream
from gecko.stages.context import Context
from gecko.stages.stage import Stage, section


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
    """Have an executor read the documents of all sources that ``cache`` does not hold, and keep them there.

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


def make(context: Context) -> Manifest:
    """Read the corpus.

    Raises:
        CorpusError: a source is missing or cannot be read, or there are fewer passages than candidates of a query.
    """
    run, settings, n = context.run, context.config.corpus, context.config.mine.n
    reads = False

    def batches() -> Iterator[tuple[list[Passage], Counts]]:
        nonlocal reads
        reads = True
        context.ui.say(f"reading {', '.join(settings.sources)}")
        tokenizer = None if settings.chunk_tokens is None else load_tokenizer(resolve_model(context.config.backbone))
        cache = run.path / "documents.sqlite"
        if context.engine.remote and (found := read_ahead(settings, cache, context.engine)):
            context.ui.say(f"{found:,} documents were parsed")
        return ingest_shards(settings, tokenizer=tokenizer, cache=cache)

    manifest = run_stream(run, INGEST.name, Passage, INGEST.parts(context), batches)
    left = left_out(manifest)
    if reads and left:
        context.ui.say(f"of what was read:{left}")
    if manifest.rows < n:
        raise CorpusError(
            f"the corpus has {manifest.rows} passages, and mining takes {n} candidates a query; "
            f"give more passages, or set mine.n to at most {max(2, manifest.rows)}"
            f"{f'. Of what was read:{left}' if left else ''}"
        )
    return manifest


def _depends(context: Context) -> dict[str, str]:
    settings = context.config.corpus
    found = {
        "sources": digest(*(source_identity(spec) for spec in settings.sources)),
        "tokenizer": context.models.start_identity if settings.chunk_tokens is not None else "",
    }
    if settings.near_duplicates is not None:
        found["near duplicates"] = "2"  # raised when others are found
    return found


INGEST = Stage(
    name="ingest",
    version=1,
    make=make,
    record=Passage,
    settings={"settings": section("corpus", without={"sources"})},
    depends=_depends,
    made="by its command",
)
