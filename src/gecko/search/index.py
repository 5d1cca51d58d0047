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
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, assert_never, get_args

import numpy as np

from gecko.encoder import Embedder
from gecko.encoder.forked import survives_fork
from gecko.encoder.vectors import Vectors
from gecko.errors import ConfigError, CorpusError, RunError
from gecko.given import folder_of, one_of, strings, whole
from gecko.progress import Silent, Ui
from gecko.records import Passage
from gecko.search.bulk import BulkConfig, check_shard, embed_batch, hash_rows, hold, in_batches
from gecko.store import digest, read_json, write_json

LAYOUT = 1
FLAT_MAX = 100_000  # passages that are searched exactly: below this every query takes milliseconds
CANDIDATES = 100  # of each ranking, before they are fused
RRF_CONSTANT = 60  # Cormack et al. 2009
OVERSAMPLE = {"float32": 1, "int8": 4, "binary": 16}
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 120, 128
TRAIN_ROWS = 20_000  # from which the ranges of int8 are learnt

Kind = Literal["auto", "flat", "hnsw"]
Store = Literal["auto", "float32", "int8", "binary"]
Method = Literal["hybrid", "dense", "bm25"]


@dataclass(frozen=True)
class IndexConfig:
    """How an index is built.

    Attributes:
        kind: ``flat`` compares a query with every vector, ``hnsw`` walks a graph; ``auto``: by the corpus' size.
        store: the form of the vectors in memory; ``auto``: float32 when flat, int8 in a graph.
        dim: dimensions to keep.
        shard_rows: passages of one shard: the unit of resuming, and what is held in memory.

    Raises:
        ConfigError: a value is none of these.
    """

    kind: Kind = "auto"
    store: Store = "auto"
    dim: int | None = None
    shard_rows: int = 8192

    def __post_init__(self) -> None:
        one_of("kind", self.kind, get_args(Kind))
        one_of("store", self.store, get_args(Store))
        check_shard(self.dim, self.shard_rows)


@dataclass(frozen=True)
class Hit:
    """A passage that was found; ``score`` is the cosine, or the fused or the BM25 score, as the method says."""

    rank: int
    score: float
    passage: Passage


@dataclass
class IndexManifest:
    """What an index was made from, and how far it is; ``texts`` chains the hashes of the shards."""

    parts: dict[str, Any]
    dim: int
    rows: int = 0
    texts: str = ""
    shards: int = 0
    kind: str = ""
    store: str = ""
    done: bool = False
    layout: int = LAYOUT


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
    with hold(folder):
        manifest = _read_manifest(folder, parts) or IndexManifest(parts, dim)
        if not manifest.done:
            write_json(folder / "manifest.json", asdict(manifest))
            _fill(embedder, passages, folder, config, manifest, ui)
            if not manifest.rows:
                raise CorpusError("there is no passage to build an index of; give a corpus with text")
            ui.say(f"building the index of {manifest.rows:,} vectors")
            build_faiss(folder, config, manifest)
            manifest.done = True
            write_json(folder / "manifest.json", asdict(manifest))
    return open_index(embedder, folder)


def open_index(embedder: Embedder, folder: str | os.PathLike[str]) -> "Index":
    """Open a finished index.

    Raises:
        RunError: there is none, it is not finished, or another model made it.
    """
    folder = folder_of(folder)
    manifest = _read_manifest(folder, None)
    if manifest is None or not manifest.done:
        raise RunError(f"{folder} holds no finished index; build it with: gecko search MODEL CORPUS --index {folder}")
    if manifest.parts["model"] != embedder.identity or manifest.parts["form"] != embedder.form:
        raise RunError(
            f"{folder} was built with another model ({manifest.parts['model']}, {manifest.parts['form']} form) than "
            f"{embedder.spec} ({embedder.identity}, {embedder.form} form); ask it with that one, or build another index"
        )
    return Index(embedder, folder, manifest)


class Index:
    """A finished index, open for queries. Use it as a context manager, or :meth:`close` it.

    Args:
        embedder: the model it was built with.
        folder: where it is.
        manifest: its manifest.
    """

    def __init__(self, embedder: Embedder, folder: Path, manifest: IndexManifest) -> None:
        import faiss

        self.folder = folder
        self.manifest = manifest
        self._embedder = embedder
        shape = (manifest.rows, manifest.dim)
        if (folder / "vectors.f32").stat().st_size != 4 * manifest.rows * manifest.dim:
            raise RunError(f"{folder / 'vectors.f32'} is damaged (its size); remove {folder} and build it again")
        self._vectors = np.memmap(folder / "vectors.f32", dtype=np.float32, mode="r", shape=shape)
        read = faiss.read_index_binary if manifest.store == "binary" else faiss.read_index
        self._faiss: Any = read(str(folder / "index.faiss"))
        self._database = _connect(folder)

    def __len__(self) -> int:
        return self.manifest.rows

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the passages' database."""
        self._database.close()

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
                ranked = [self._bm25(query, k) for query in queries]
            case "hybrid":
                depth = max(k, CANDIDATES)
                dense = self._dense(queries, depth, task)
                ranked = [
                    reciprocal_rank_fusion([first, self._bm25(query, depth)])[:k]
                    for query, first in zip(queries, dense, strict=True)
                ]
            case _:
                assert_never(method)
        return [
            [Hit(rank, score, self._passage(place)) for rank, (place, score) in enumerate(places, 1)]
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

    def _bm25(self, query: str, k: int) -> list[tuple[int, float]]:
        words = query_words(query)
        if not words:
            return []
        asked = " OR ".join(f'"{word}"' for word in words)
        found = self._database.execute(
            "SELECT rowid, bm25(words, 2.0, 1.0) AS score FROM words WHERE words MATCH ? ORDER BY score, rowid LIMIT ?",
            (asked, k),
        )
        return [(place - 1, -score) for place, score in found]

    def _passage(self, place: int) -> Passage:
        row = self._database.execute(
            "SELECT id, title, text, source FROM passages WHERE place = ?", (place + 1,)
        ).fetchone()
        return Passage(*row)


def default_folder(embedder: Embedder, sources: str, config: IndexConfig) -> Path:
    """A folder in the user's cache for the index of sources, by :func:`sources_identity`: a changed file has another one."""
    from gecko import __version__
    from gecko.llm.weights import cache_folder

    known = [embedder.identity, embedder.form, __version__, str(config), sources]
    return cache_folder() / "index" / digest(*known)


def sources_identity(sources: Sequence[str]) -> str:
    """A hash of where passages come from as it is now: of the files that are read, their names, sizes and times."""
    from gecko.corpus.readers import source_files, source_identity

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


def query_words(query: str) -> list[str]:
    """The words of a query that BM25 looks for: without stop words, unless there are no others."""
    from bm25s.stopwords import STOPWORDS_EN

    words = list(dict.fromkeys("".join(c if c.isalnum() else " " for c in query.lower()).split()))
    return [word for word in words if word not in STOPWORDS_EN] or words


def reciprocal_rank_fusion(rankings: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """(place, sum of 1 / (60 + rank)), best first; ties by place."""
    fused: dict[int, float] = {}
    for ranking in rankings:
        for rank, (place, _) in enumerate(ranking, 1):
            fused[place] = fused.get(place, 0.0) + 1 / (RRF_CONSTANT + rank)
    return sorted(fused.items(), key=lambda item: (-item[1], item[0]))


def _read_manifest(folder: Path, parts: dict[str, Any] | None) -> IndexManifest | None:
    file = folder / "manifest.json"
    if not file.exists():
        if folder.is_dir() and (strange := sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))):
            raise RunError(f"{folder} holds other files ({', '.join(strange[:3])}); give a new or an empty folder")
        return None
    raw = read_json(file)
    try:
        manifest = IndexManifest(**raw)
        changed = [key for key in parts or {} if (parts or {})[key] != manifest.parts.get(key)]
    except (TypeError, AttributeError) as error:
        raise RunError(f"{file} is not the manifest of an index ({error}); give another folder") from error
    if changed and parts:
        if changed == ["sources"]:
            raise RunError(
                f"{folder} holds an index of other passages: its sources were others, or have changed since; give another "
                "folder with --index, or remove this one"
            )
        listed = ", ".join(f"{key} {manifest.parts.get(key)} there, {parts[key]} now" for key in changed)
        raise RunError(f"{folder} holds an index made otherwise: {listed}; use another folder, or the same options")
    return manifest


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
    with contextlib.closing(_connect(folder)) as database, _vectors_file(folder, manifest) as vectors:
        _truncate(database, manifest.rows)
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
                vectors.write(np.ascontiguousarray(embed_batch(embedder, batch, bulk)).tobytes())
                vectors.flush()
                os.fsync(vectors.fileno())
                with database:
                    database.executemany(
                        "INSERT INTO passages VALUES (?, ?, ?, ?, ?)",
                        [
                            (place, row.id, row.title, row.text, row.source)
                            for place, row in enumerate(batch, manifest.rows + 1)
                        ],
                    )
                    database.executemany(
                        "INSERT INTO words(rowid, title, text) VALUES (?, ?, ?)",
                        [(place, row.title, row.text) for place, row in enumerate(batch, manifest.rows + 1)],
                    )
                manifest.rows += len(batch)
                manifest.shards += 1
                manifest.texts = digest(manifest.texts, hash_rows(batch))
                write_json(folder / "manifest.json", asdict(manifest))
                advance(len(batch))


def _connect(folder: Path) -> sqlite3.Connection:
    database = sqlite3.connect(folder / "passages.sqlite", check_same_thread=False)
    database.execute("CREATE TABLE IF NOT EXISTS passages (place INTEGER PRIMARY KEY, id, title, text, source)")
    database.execute(
        "CREATE VIRTUAL TABLE IF NOT EXISTS words USING "
        "fts5(title, text, content='passages', content_rowid='place', tokenize='porter unicode61')"
    )
    return database


def _truncate(database: sqlite3.Connection, rows: int) -> None:
    """Remove what a killed build wrote after its last manifest."""
    with database:
        database.execute(
            "INSERT INTO words(words, rowid, title, text) SELECT 'delete', place, title, text FROM passages "
            "WHERE place > ?",
            (rows,),
        )
        database.execute("DELETE FROM passages WHERE place > ?", (rows,))


@contextlib.contextmanager
def _vectors_file(folder: Path, manifest: IndexManifest) -> Iterator[Any]:
    path = folder / "vectors.f32"
    path.touch()
    if path.stat().st_size < 4 * manifest.rows * manifest.dim:
        raise RunError(f"{path} is damaged (too short); remove {folder} and build it again")
    with path.open("r+b") as file:
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
    (faiss.write_index_binary if manifest.store == "binary" else faiss.write_index)(index, str(aside))
    aside.replace(folder / "index.faiss")
