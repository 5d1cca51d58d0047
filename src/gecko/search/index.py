"""An index over a corpus: built in bounded memory, brought up to date where the corpus changed, and asked.

::

    INDEX/manifest.json     the model, the corpus, the options, and how far the index is
    INDEX/passages.sqlite   the passages by place, and their words for BM25 (SQLite's FTS5)
    INDEX/vectors.f32       the unit vectors, one row a passage: what candidates are scored with
    INDEX/index.faiss       what finds the candidates: exact, or HNSW above ``FLAT_MAX`` passages

An updated index has the last three in a folder of their own, which the manifest names, so that readers of the earlier
files are not disturbed. Passages stream in by shards; a killed build continues at the next one. An index that stores fewer
bits (``int8``, ``binary``) finds more candidates than asked for and scores them again with the vectors on disk.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, assert_never, get_args

import numpy as np

from gecko import __version__
from gecko.core.arguments import folder_of, one_of, strings, whole
from gecko.core.errors import ConfigError, RunError, StorageError
from gecko.core.files import digest
from gecko.core.progress import Silent, Ui
from gecko.core.records import Passage
from gecko.encoder import Embedder
from gecko.encoder.forked import survives_fork
from gecko.encoder.nearest import top_k_parts
from gecko.encoder.vectors import Vectors, encode_output
from gecko.run.lock import lock_folder
from gecko.search.build import build_faiss, fill, finish, save, update
from gecko.search.bulk import BulkConfig, embed_batch
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
    "sources_key",
    "sources_state",
    "weighted_sum",
]

CANDIDATES = 100  # by cosine, before both rankings are fused
BY_WORDS = 1000  # by BM25: one that is not listed counts as having no word of the query
BM25_WEIGHT = 0.3  # measured in docs/research/gain.md, "Beside BM25"
OVERSAMPLE = {"float32": 1, "int8": 4, "binary": 16}
HNSW_SEARCH = 128
ROWS = 1 << 14  # vectors that are compared at a time where a filter leaves some
COMPARED = 16  # rows, spread over all, in which faiss and the vectors on disk are compared when an index is opened
Method = Literal["hybrid", "dense", "bm25"]
Key = TypeVar("Key", int, str)


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
    state: str = "",
) -> "Index":
    """Build an index, go on with one that was stopped, bring one up to date, or open a finished one.

    Args:
        embedder: the model.
        passages: the corpus. A finished index of this ``state`` does not read it; a build is continued with the same passages
            in the same order.
        folder: made if need be.
        config: kind, form, dimensions.
        ui: where progress goes.
        sources: where the passages come from (:func:`sources_key`); an index of others is refused. Empty: not known.
        state: of these sources (:func:`sources_state`); an index of another state is updated: only passages whose title or
            text is new are embedded. Empty: not known, and a finished index is opened as it is.

    Raises:
        RunError: the folder holds an index of another model, of other passages or options, or something else.
        ConfigError: the dimension does not fit the model or the form.
        CorpusError: there is no passage.
    """
    ui, folder = ui or Silent(), folder_of(folder)
    parts = {"model": embedder.passage_identity, "form": embedder.form, **asdict(config)}
    parts |= {"sources": sources} if sources else {}
    dim = embedder.finish(np.zeros((0, embedder.dim), dtype=np.float32), config.dim).shape[1]
    if config.store == "binary" and dim % 8:
        raise ConfigError(f"store 'binary' with {dim} dimensions: give a multiple of 8")
    manifest = read_manifest(folder, parts)
    if manifest is None or not manifest.done or manifest.is_other(state):
        bulk = BulkConfig(dim=config.dim, shard_rows=config.shard_rows)

        def embed(batch: list[Passage]) -> Vectors:
            return embed_batch(embedder, batch, bulk)

        with lock_folder(folder):
            manifest = read_manifest(folder, parts) or IndexManifest(parts, dim, words=WORDS, state=state)
            if manifest.rows and manifest.is_other(state):
                update(embed, passages, folder, config, manifest, state, ui)
            elif not manifest.done:
                manifest.state = state
                save(folder, manifest)
                fill(embed, passages, folder, config, manifest, ui)
                finish(folder, config, manifest, ui)
                save(folder, manifest)
    elif manifest.words != WORDS:
        ui.say(f"{folder} is of an earlier version: its texts are split into words for BM25 anew")
    return open_index(embedder, folder)


def open_index(embedder: Embedder, folder: str | os.PathLike[str]) -> "Index":
    """Open a finished index. One of an earlier version, which split texts into other words, is brought up to date.

    Raises RunError: there is none, it is not finished or damaged, or another model made it. StorageError: it is of an
    earlier version, and cannot be written.
    """
    folder = folder_of(folder)
    manifest = read_manifest(folder, None)
    if manifest is None or not manifest.done:
        raise RunError(f"{folder} holds no finished index; build it with: gecko search MODEL CORPUS --index {folder}")
    if manifest.parts["model"] != embedder.passage_identity or manifest.parts["form"] != embedder.form:
        raise RunError(
            f"{folder} was built with another model ({manifest.parts['model']}, {manifest.parts['form']} form) than "
            f"{embedder.spec} ({embedder.passage_identity}, {embedder.form} form); ask with that one, or build another"
        )
    try:
        index = Index(embedder, folder, manifest)
    except RunError:
        again = read_manifest(folder, None)
        if again is None or again.files == manifest.files:
            raise
        return open_index(embedder, folder)  # it was updated between the two looks
    if manifest.words == WORDS:
        return index
    index.close()
    return Index(embedder, folder, _brought_up(folder))


class Index(AbstractContextManager["Index"]):
    """A finished index, open for queries, with the model it was built with.

    Use it as a context manager, or :meth:`close` it.
    """

    def __init__(self, embedder: Embedder, folder: Path, manifest: IndexManifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._embedder = embedder
        home = folder / manifest.files
        file = home / "vectors.f32"
        with reading(file):
            size, expected = file.stat().st_size, 4 * manifest.rows * manifest.dim
            if size != expected:
                raise damaged(file, f"{size:,} bytes, {expected:,} expected")
            self._vectors = np.memmap(file, dtype=np.float32, mode="r", shape=(manifest.rows, manifest.dim))
        self._faiss = _open_faiss(home, manifest, self._vectors)
        self._passages = Passages(home)
        self._passages.check(manifest.rows, manifest.texts if manifest.words == WORDS else None)

    def __len__(self) -> int:
        return self.manifest.rows

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the passages' database."""
        self._passages.close()

    @survives_fork
    def search(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        method: Method = "hybrid",
        task: str = "RETRIEVAL_QUERY",
        where: Mapping[str, str] | None = None,
        bm25_weight: float = BM25_WEIGHT,
    ) -> list[list[Hit]]:
        """The best ``k`` passages of each query, best first.

        Args:
            queries: n queries, raw: a list, or any sequence or iterator, which is taken in its order.
            k: how many.
            method: ``dense``: by cosine. ``bm25``: by words. ``hybrid``: by :func:`weighted_sum` of both.
            task: what the queries are for.
            where: only passages whose ``id``, ``title`` or ``source`` is this, in which ``*`` stands for any characters; all
                of several must hold. The search among them is exact, whatever the kind of the index.
            bm25_weight: of BM25 in ``hybrid``.

        Raises:
            ConfigError: ``k`` is below 1, the weight below 0, the method, the task or a field is not known, or a query is no
                valid string.
        """
        queries, k = strings(queries, "query"), whole("k", k)
        one_of("method", method, get_args(Method))
        if k < 1:
            raise ConfigError(f"k = {k}: give at least 1")
        if not 0 <= bm25_weight < math.inf:
            raise ConfigError(f"bm25_weight = {bm25_weight}: give a number from 0")
        match method:
            case "dense":
                ranked = self._dense(self._embed(queries, task), k, where)
            case "bm25":
                ranked = [self._passages.bm25(query, k, where) for query in queries]
            case "hybrid":
                depth = max(k, CANDIDATES)
                asked = self._embed(queries, task)
                ranked = [
                    self._fused(vector, near, self._passages.bm25(query, max(k, BY_WORDS), where), bm25_weight)[:k]
                    for query, vector, near in zip(queries, asked, self._dense(asked, depth, where), strict=True)
                ]
            case _:
                assert_never(method)
        return [
            [Hit(rank, score, self._passages[place]) for rank, (place, score) in enumerate(places, 1)]
            for places in ranked
        ]

    def matching(self, where: Mapping[str, str]) -> int:
        """How many passages a filter leaves. Raises ConfigError: a field is not known."""
        return len(self._passages.places(where))

    def _embed(self, queries: Sequence[str], task: str) -> Vectors:
        """(n, dim) of n queries."""
        if not queries:
            return np.empty((0, self.manifest.dim), np.float32)
        return self._embedder.embed(queries, task=task, dim=self.manifest.dim)

    def _fused(
        self, vector: Vectors, near: list[tuple[int, float]], by_words: list[tuple[int, float]], weight: float
    ) -> list[tuple[int, float]]:
        """Both rankings of one query as one; passages that words alone found are scored with their vectors, too."""
        cosines, words = dict(near), dict(by_words)
        if others := sorted(words.keys() - cosines.keys()):
            cosines |= zip(others, (self._vectors[others] @ vector).tolist(), strict=True)
        return weighted_sum(cosines, words, weight)

    def _dense(self, vectors: Vectors, k: int, where: Mapping[str, str] | None) -> list[list[tuple[int, float]]]:
        """(place, cosine) of the best passages of each query; candidates are always scored with the float32 vectors."""
        if not len(vectors):
            return []
        if where:
            left = self._passages.places(where)
            blocks = [left[start : start + ROWS] for start in range(0, len(left), ROWS)]
            if not blocks:
                return [[] for _ in vectors]
            parts = [lambda block=block: self._vectors[block] for block in blocks]
            best, scores = top_k_parts(vectors, parts, min(k, len(left)))
            return [
                list(zip(left[row].tolist(), line, strict=True))
                for row, line in zip(best, scores.tolist(), strict=True)
            ]
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
    """A folder in the user's cache for the index of sources, by :func:`sources_key`: a changed file has the same one.

    Raises ConfigError: the index is not there, and the cache cannot be written.
    """
    from gecko.weights.cache import cache_folder, cache_room

    folder = cache_folder() / "index" / digest(embedder.passage_identity, embedder.form, str(config), sources)
    return folder if (folder / "manifest.json").exists() else cache_room("index") / folder.name


def sources_key(sources: Sequence[str]) -> str:
    """A hash of the names of sources; that of a file or a folder is its whole path."""
    paths = [(source, Path(source).expanduser()) for source in sources]
    return digest(*(str(path.resolve()) if source != "stdlib" and path.exists() else source for source, path in paths))


def sources_state(sources: Sequence[str]) -> str:
    """A hash of what sources are as they are now, and are read now: of files their names, sizes and times.

    It says when to look at them again. Whether a passage has changed is decided by its text.
    """
    from gecko.corpus.readers import source_identity
    from gecko.corpus.sources import source_files

    known: list[str] = [__version__]
    for source in sources:
        path = Path(source).expanduser()
        if source == "stdlib" or not path.exists():  # a pattern, a data set or a query
            known += [source, source_identity(source)]
            continue
        for file in source_files(source):
            state = file.stat()
            known += [str(file.resolve()), str(state.st_size), str(state.st_mtime_ns)]
    return digest(*known)


def weighted_sum(
    cosines: Mapping[Key, float], words: Mapping[Key, float], weight: float = BM25_WEIGHT
) -> list[tuple[Key, float]]:
    """(place or id, cosine + weight · BM25 / best BM25 of the query), best first; ties by place or id.

    ``cosines`` has every candidate. One that ``words`` lacks counts as having no word of the query.
    """
    best = max(words.values(), default=1.0)
    fused = {key: cosine + weight * words.get(key, 0.0) / best for key, cosine in cosines.items()}
    return sorted(fused.items(), key=lambda item: (-item[1], item[0]))


def _brought_up(folder: Path) -> IndexManifest:
    """The manifest of an index of an earlier version, after its texts were split into words as this version does."""
    try:
        with lock_folder(folder, PATIENCE):
            manifest = read_manifest(folder, None)
            assert manifest is not None
            if manifest.words != WORDS:
                with Passages(folder / manifest.files, "rw") as database:
                    database.split_anew()
                    database.seal(manifest.texts)
                manifest.words = WORDS
                save(folder, manifest)
    except StorageError as error:
        raise StorageError(
            f"{folder} is of an earlier version of Gecko, whose words for BM25 are split anew when it is opened, and that "
            f"failed: {error}; open it once where it can be written"
        ) from error
    return manifest


def _open_faiss(folder: Path, manifest: IndexManifest, vectors: Vectors) -> Any:
    """Read ``index.faiss``. Raises RunError: it is missing or damaged, or not of these vectors."""
    import faiss as library

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
