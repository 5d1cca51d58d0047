"""An index over a corpus: built once in bounded memory, then asked.

::

    INDEX/manifest.json     the model, the corpus, the options, and how far the index is
    INDEX/passages.sqlite   the passages by place, and their words for BM25 (SQLite's FTS5)
    INDEX/vectors.f32       the unit vectors, one row a passage: what candidates are scored with
    INDEX/index.faiss       what finds the candidates: exact, or HNSW above ``FLAT_MAX`` passages

Passages stream in by shards; a killed build continues at the next one. An index that stores fewer bits (``int8``,
``binary``) finds more candidates than asked for and scores them again with the vectors on disk.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, assert_never, get_args

import numpy as np

from gecko.core.arguments import folder_of, one_of, strings, whole
from gecko.core.disk import disk_errors
from gecko.core.errors import ConfigError, CorpusError, RunError, StorageError
from gecko.core.files import digest, write_json
from gecko.core.progress import Silent, Ui
from gecko.core.records import Passage
from gecko.encoder import Embedder
from gecko.encoder.forked import survives_fork
from gecko.encoder.vectors import Vectors
from gecko.search.bulk import BulkConfig, embed_batch, hash_rows, hold, in_batches
from gecko.search.manifest import WORDS, IndexConfig, IndexManifest, Kind, Store, damaged, read_manifest, reading
from gecko.search.passages import PATIENCE, Passages, query_words

__all__ = [
    "Hit",
    "Index",
    "IndexConfig",
    "IndexManifest",
    "Kind",
    "Method",
    "Store",
    "build_faiss",
    "build_index",
    "default_folder",
    "open_index",
    "query_words",
    "reciprocal_rank_fusion",
    "sources_identity",
]

FLAT_MAX = 100_000  # passages that are searched exactly: below this every query takes milliseconds
CANDIDATES = 100  # of each ranking, before they are fused
RRF_CONSTANT = 60  # Cormack et al. 2009
OVERSAMPLE = {"float32": 1, "int8": 4, "binary": 16}
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 120, 128
TRAIN_ROWS = 20_000  # from which the ranges of int8 are learnt
COMPARED = 16  # rows, spread over all, in which faiss and the vectors on disk are compared when an index is opened
Method = Literal["hybrid", "dense", "bm25"]


@dataclass(frozen=True)
class Hit:
    """A passage that was found; ``score`` is the cosine, or the fused or the BM25 score, as the method says."""

    rank: int
    score: float
    passage: Passage


@survives_fork
def build_index(
    embedder: Embedder,
    passages: Iterable[Passage],
    folder: str | os.PathLike[str],
    config: IndexConfig,
    ui: Ui | None = None,
    *,
    sources: str = "",
) -> "Index":
    """Build an index, go on with one that was stopped, or open a finished one.

    Args:
        embedder: the model.
        passages: the corpus, the same in the same order whenever a build is continued; a finished index does not read it.
        folder: made if need be.
        config: kind, form, dimensions.
        ui: where progress goes.
        sources: what the passages are of (:func:`sources_identity`); a finished index of others is refused. Empty: not known.

    Raises:
        RunError: the folder holds an index of another model, of other passages or options, or something else.
        ConfigError: the dimension does not fit the model or the form.
        CorpusError: there is no passage.
    """
    ui, folder = ui or Silent(), folder_of(folder)
    parts = {"model": embedder.identity, "form": embedder.form, **asdict(config)}
    parts |= {"sources": sources} if sources else {}
    dim = embedder.finish(np.zeros((0, embedder.dim), dtype=np.float32), config.dim).shape[1]
    if config.store == "binary" and dim % 8:
        raise ConfigError(f"store 'binary' with {dim} dimensions: give a multiple of 8")
    manifest = read_manifest(folder, parts)
    if manifest is None or not manifest.done:  # a finished index is only read, by as many as like to
        with hold(folder):
            manifest = read_manifest(folder, parts) or IndexManifest(parts, dim, words=WORDS)
            if not manifest.done:
                _save(folder, manifest)
                _fill(embedder, passages, folder, config, manifest, ui)
                if not manifest.rows:
                    raise CorpusError("there is no passage to build an index of; give a corpus with text")
                ui.say(f"building the index of {manifest.rows:,} vectors")
                build_faiss(folder, config, manifest)
                manifest.done = True
                _save(folder, manifest)
    elif manifest.words != WORDS:
        ui.say(f"{folder} is of an earlier version: its texts are split into words for BM25 anew")
    return open_index(embedder, folder)


def open_index(embedder: Embedder, folder: str | os.PathLike[str]) -> "Index":
    """Open a finished index. One of an earlier version, which split texts into other words, is brought up to date.

    Raises:
        RunError: there is none, it is not finished or damaged, or another model made it.
        StorageError: it is of an earlier version, and cannot be written.
    """
    folder = folder_of(folder)
    manifest = read_manifest(folder, None)
    if manifest is None or not manifest.done:
        raise RunError(f"{folder} holds no finished index; build it with: gecko search MODEL CORPUS --index {folder}")
    if manifest.parts["model"] != embedder.identity or manifest.parts["form"] != embedder.form:
        raise RunError(
            f"{folder} was built with another model ({manifest.parts['model']}, {manifest.parts['form']} form) than "
            f"{embedder.spec} ({embedder.identity}, {embedder.form} form); ask it with that one, or build another index"
        )
    index = Index(embedder, folder, manifest)
    if manifest.words == WORDS:
        return index
    index.close()
    return Index(embedder, folder, _brought_up(folder))


class Index:
    """A finished index, open for queries. Use it as a context manager, or :meth:`close` it.

    Args:
        embedder: the model it was built with.
        folder: where it is.
        manifest: its manifest.
    """

    def __init__(self, embedder: Embedder, folder: Path, manifest: IndexManifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._embedder = embedder
        file = folder / "vectors.f32"
        with reading(file):
            size, expected = file.stat().st_size, 4 * manifest.rows * manifest.dim
            if size != expected:
                raise damaged(file, f"{size:,} bytes, {expected:,} expected")
            self._vectors = np.memmap(file, dtype=np.float32, mode="r", shape=(manifest.rows, manifest.dim))
        self._faiss = _open_faiss(folder, manifest, self._vectors)
        self._passages = Passages(folder)
        self._passages.check(manifest.rows, manifest.texts if manifest.words == WORDS else None)

    def __len__(self) -> int:
        return self.manifest.rows

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the passages' database."""
        self._passages.close()

    @survives_fork
    def search(
        self, queries: Sequence[str], k: int = 10, *, method: Method = "hybrid", task: str = "RETRIEVAL_QUERY"
    ) -> list[list[Hit]]:
        """The best ``k`` passages of each query, best first.

        Args:
            queries: n queries, raw: a list, or any sequence or iterator, which is taken in its order.
            k: how many.
            method: ``dense``: by cosine. ``bm25``: by words. ``hybrid``: both rankings, fused by reciprocal rank.
            task: what the queries are for.

        Raises:
            ConfigError: ``k`` is below 1, the method or the task is not known, or a query is no valid string.
        """
        queries, k = strings(queries, "query"), whole("k", k)
        one_of("method", method, get_args(Method))
        if k < 1:
            raise ConfigError(f"k = {k}: give at least 1")
        match method:
            case "dense":
                ranked = self._dense(queries, k, task)
            case "bm25":
                ranked = [self._passages.bm25(query, k) for query in queries]
            case "hybrid":
                depth = max(k, CANDIDATES)
                dense = self._dense(queries, depth, task)
                ranked = [
                    reciprocal_rank_fusion([first, self._passages.bm25(query, depth)])[:k]
                    for query, first in zip(queries, dense, strict=True)
                ]
            case _:
                assert_never(method)
        return [
            [Hit(rank, score, self._passages[place]) for rank, (place, score) in enumerate(places, 1)]
            for places in ranked
        ]

    def _dense(self, queries: Sequence[str], k: int, task: str) -> list[list[tuple[int, float]]]:
        """(place, cosine) of the best passages of each query; candidates are always scored with the float32 vectors."""
        from gecko.encoder.vectors import encode_output

        if not queries:
            return []
        vectors: Vectors = self._embedder.embed(queries, task=task, dim=self.manifest.dim)  # (n, dim)
        depth = min(len(self), k * OVERSAMPLE[self.manifest.store])
        asked = encode_output(vectors, "binary") if self.manifest.store == "binary" else vectors
        if self.manifest.kind == "hnsw":
            self._faiss.hnsw.efSearch = max(HNSW_SEARCH, depth)
        _, places = self._faiss.search(asked, depth)  # (n, depth), -1 where the graph found fewer
        result = []
        for vector, row in zip(vectors, places, strict=True):
            found = np.sort(row[row >= 0])
            cosines = self._vectors[found] @ vector
            order = np.argsort(-cosines, kind="stable")[:k]  # equal cosines in passage order
            result.append([(int(found[place]), float(cosines[place])) for place in order])
        return result


def default_folder(embedder: Embedder, sources: str, config: IndexConfig) -> Path:
    """A folder in the user's cache for the index of sources, by :func:`sources_identity`: a changed file has another one.

    Raises:
        ConfigError: the index is not there, and the cache cannot be written.
    """
    from gecko import __version__
    from gecko.weights.cache import cache_folder, cache_room

    known = [embedder.identity, embedder.form, __version__, str(config), sources]
    folder = cache_folder() / "index" / digest(*known)
    return folder if (folder / "manifest.json").exists() else cache_room("index") / folder.name


def sources_identity(sources: Sequence[str]) -> str:
    """A hash of where passages come from as it is now: of the files that are read, their names, sizes and times."""
    from gecko.corpus.readers import source_identity
    from gecko.corpus.sources import source_files

    known: list[str] = []
    for source in sources:
        path = Path(source).expanduser()
        if source == "stdlib" or not path.exists():  # a pattern, a data set or a query
            known += [source, source_identity(source)]
            continue
        known += [str(path.resolve())]
        for file in source_files(source):
            state = file.stat()
            known += [str(file), str(state.st_size), str(state.st_mtime_ns)]
    return digest(*known)


def reciprocal_rank_fusion(rankings: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """(place, sum of 1 / (60 + rank)), best first; ties by place."""
    fused: dict[int, float] = {}
    for ranking in rankings:
        for rank, (place, _) in enumerate(ranking, 1):
            fused[place] = fused.get(place, 0.0) + 1 / (RRF_CONSTANT + rank)
    return sorted(fused.items(), key=lambda item: (-item[1], item[0]))


def _fill(
    embedder: Embedder,
    passages: Iterable[Passage],
    folder: Path,
    config: IndexConfig,
    manifest: IndexManifest,
    ui: Ui,
) -> None:
    """Stream the passages into the database and their vectors to disk, from where an earlier call stopped."""
    bulk = BulkConfig(dim=config.dim, shard_rows=config.shard_rows)
    batches = in_batches(passages, config.shard_rows)
    file = folder / "passages.sqlite"
    if not manifest.rows:
        file.unlink(missing_ok=True)
        manifest.words = WORDS
    with Passages(folder, "rw" if manifest.rows else "rwc") as database, _vectors_file(folder, manifest) as vectors:
        if manifest.words != WORDS:
            database.split_anew()
            manifest.words = WORDS
        database.cut(manifest.rows)
        database.check(manifest.rows)
        seen = ""
        for _ in range(manifest.shards):
            seen = digest(seen, hash_rows(next(batches, [])))
        if seen != manifest.texts:
            raise RunError(
                f"{folder} was begun with other passages; give the same corpus, or remove the folder and start again"
            )
        if manifest.rows:
            ui.say(f"continues after {manifest.rows:,} passages")
        with ui.bar("embedding the corpus", None) as advance:
            for batch in batches:
                block = np.ascontiguousarray(embed_batch(embedder, batch, bulk)).tobytes()
                with disk_errors(folder / "vectors.f32"):
                    vectors.write(block)
                    vectors.flush()
                    os.fsync(vectors.fileno())
                database.add(batch, manifest.rows)
                manifest.rows += len(batch)
                manifest.shards += 1
                manifest.texts = digest(manifest.texts, hash_rows(batch))
                _save(folder, manifest)
                advance(len(batch))
        database.seal(manifest.texts)


def _save(folder: Path, manifest: IndexManifest) -> None:
    write_json(folder / "manifest.json", asdict(manifest))


def _brought_up(folder: Path) -> IndexManifest:
    """The manifest of an index of an earlier version, after its texts were split into words as this version does."""
    try:
        with hold(folder, PATIENCE):
            manifest = read_manifest(folder, None)
            assert manifest is not None
            if manifest.words != WORDS:
                with Passages(folder, "rw") as database:
                    database.split_anew()
                    database.seal(manifest.texts)
                manifest.words = WORDS
                _save(folder, manifest)
    except StorageError as error:
        raise StorageError(
            f"{folder} is of an earlier version of Gecko, whose words for BM25 are split anew when it is opened, and that "
            f"failed: {error}; open it once where it can be written"
        ) from error
    return manifest


@contextlib.contextmanager
def _vectors_file(folder: Path, manifest: IndexManifest) -> Iterator[Any]:
    path = folder / "vectors.f32"
    if manifest.rows:
        with reading(path):
            if (size := path.stat().st_size) < (needed := 4 * manifest.rows * manifest.dim):
                raise damaged(path, f"{size:,} bytes, {needed:,} expected")
    with path.open("r+b" if manifest.rows else "w+b") as file:
        file.truncate(4 * manifest.rows * manifest.dim)
        file.seek(0, os.SEEK_END)
        yield file


def build_faiss(folder: Path, config: IndexConfig, manifest: IndexManifest) -> None:
    """Build what finds the candidates, a block of vectors at a time."""
    import faiss as library

    from gecko.encoder.vectors import encode_output

    faiss: Any = library  # its generated signatures are wrong in places
    rows, dim = manifest.rows, manifest.dim
    manifest.kind = ("flat" if rows <= FLAT_MAX else "hnsw") if config.kind == "auto" else config.kind
    manifest.store = ("float32" if manifest.kind == "flat" else "int8") if config.store == "auto" else config.store
    product, links = faiss.METRIC_INNER_PRODUCT, HNSW_LINKS
    index: Any
    match manifest.store, manifest.kind:
        case "float32", "flat":
            index = faiss.IndexFlatIP(dim)
        case "float32", _:
            index = faiss.IndexHNSWFlat(dim, links, product)
        case "int8", "flat":
            index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, product)
        case "int8", _:
            index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, links, product)
        case "binary", "flat":
            index = faiss.IndexBinaryFlat(dim)
        case _:
            index = faiss.IndexBinaryHNSW(dim, links)
    if manifest.kind == "hnsw":
        index.hnsw.efConstruction = HNSW_BUILD
    if manifest.store == "int8":
        every = np.memmap(folder / "vectors.f32", dtype=np.float32, mode="r", shape=(rows, dim))
        index.train(np.ascontiguousarray(every[:: max(1, rows // TRAIN_ROWS)]))
        del every  # what was read of it counts as memory of this process for as long as it is mapped
    with (folder / "vectors.f32").open("rb") as file:
        while len(numbers := np.fromfile(file, np.float32, config.shard_rows * dim)):
            block = numbers.reshape(-1, dim)
            index.add(encode_output(block, "binary") if manifest.store == "binary" else block)
    aside = folder / ".index.faiss"
    with disk_errors(folder / "index.faiss", RuntimeError):
        (faiss.write_index_binary if manifest.store == "binary" else faiss.write_index)(index, str(aside))
        aside.replace(folder / "index.faiss")


def _open_faiss(folder: Path, manifest: IndexManifest, vectors: Vectors) -> Any:
    """Read ``index.faiss``.

    Raises:
        RunError: it is missing or damaged, or not of these vectors.
    """
    import faiss as library

    from gecko.encoder.vectors import encode_output

    faiss: Any = library
    file, binary = folder / "index.faiss", manifest.store == "binary"
    with reading(file):
        file.open("rb").close()
    try:
        found = (faiss.read_index_binary if binary else faiss.read_index)(str(file))
    except (RuntimeError, MemoryError) as error:
        raise damaged(file, "faiss cannot read it") from error
    is_graph = hasattr(found, "hnsw")
    if (found.ntotal, found.d, is_graph) != (manifest.rows, manifest.dim, manifest.kind == "hnsw"):
        raise damaged(
            file,
            f"{found.ntotal:,} vectors of {found.d} dimensions, {'hnsw' if is_graph else 'flat'}; the manifest says "
            f"{manifest.rows:,} of {manifest.dim}, {manifest.kind}",
        )
    stored = faiss.downcast_index(found.storage) if is_graph and not binary else found
    places = np.unique(np.linspace(0, manifest.rows - 1, COMPARED).astype(np.int64))
    rows = np.ascontiguousarray(vectors[places])
    held = np.stack([stored.reconstruct(int(place)) for place in places])
    expected = encode_output(rows, "binary") if binary else stored.sa_decode(stored.sa_encode(rows))
    if not np.array_equal(held, expected):
        raise damaged(file, f"it is not of the vectors in {folder / 'vectors.f32'}")
    return found
