"""Building an index: passages into the database, vectors to disk, and what finds candidates among them.

An update builds the next files in a folder beside those that are there, and takes the vectors of every passage whose title
and text are known from these. Readers keep the files that they have open.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from gecko.core.disk import disk_errors
from gecko.core.errors import CorpusError, RunError
from gecko.core.files import digest, made_aside, remove, write_json
from gecko.core.progress import Ui
from gecko.core.records import Passage
from gecko.encoder.vectors import Vectors, encode_output
from gecko.search.bulk import hash_rows, in_batches
from gecko.search.manifest import FILES, UPDATE, WORDS, IndexConfig, IndexManifest, damaged, read_manifest, reading
from gecko.search.passages import Passages

FLAT_MAX = 100_000  # passages that are searched exactly: below this every query takes milliseconds
HNSW_LINKS, HNSW_BUILD = 32, 120
TRAIN_ROWS = 20_000  # from which the ranges of int8 are learnt
KEY_BYTES = 16
Embed = Callable[[list[Passage]], Vectors]


def fill(
    embed: Embed,
    passages: Iterable[Passage],
    folder: Path,
    config: IndexConfig,
    manifest: IndexManifest,
    ui: Ui,
) -> None:
    """Stream the passages into the database and their vectors to disk, from where an earlier call stopped.

    ``embed`` gives the vectors of a shard: float32 (passages, dim), unit rows. ``manifest`` says how far the index is; it
    is kept up to date, on disk too. Raises RunError: what is there was made of other passages, or is damaged.
    """
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
        with ui.bar("embedding the corpus", None, "passages") as advance:
            for batch in batches:
                block = np.ascontiguousarray(embed(batch)).tobytes()
                with disk_errors(folder / "vectors.f32"):
                    vectors.write(block)
                    vectors.flush()
                    os.fsync(vectors.fileno())
                database.add(batch, manifest.rows)
                manifest.rows += len(batch)
                manifest.shards += 1
                manifest.texts = digest(manifest.texts, hash_rows(batch))
                save(folder, manifest)
                advance(len(batch))
        database.seal(manifest.texts)


def finish(folder: Path, config: IndexConfig, manifest: IndexManifest, ui: Ui) -> None:
    """What comes after :func:`fill`. Raises CorpusError: there is no passage."""
    if not manifest.rows:
        raise CorpusError("there is no passage to build an index of; give a corpus with text")
    ui.say(f"building the index of {manifest.rows:,} vectors")
    build_faiss(folder, config, manifest)
    manifest.done = True


def update(
    embed: Embed,
    passages: Iterable[Passage],
    folder: Path,
    config: IndexConfig,
    old: IndexManifest,
    state: str,
    ui: Ui,
) -> None:
    """Bring an index up to date with its passages; only those whose title or text is new are embedded.

    The files that are there stay as they are until the new ones are whole. What a killed update embedded is used again.
    The index of the manifest ``old`` need not be finished; ``state`` is that of the sources.

    Raises CorpusError: there is no passage any more. RunError: what is there is damaged.
    """
    earlier = [path for path in sorted(folder.glob(f"{UPDATE}*")) if path.name != old.files]
    begun = [(path, found) for path in earlier if (found := read_manifest(path, old.parts)) is not None and found.rows]
    with Passages(folder / old.files) as database, Known([(folder / old.files, old), *begun]) as known:
        changed: Iterable[Passage] | None = passages
        if old.done:
            database.check(old.rows, old.texts if old.words == WORDS else None)
            changed = changed_rows(database, passages)
        if changed is None:
            old.state = state
            save(folder, old)
            return
        number = 1 + max((int(path.name.removeprefix(UPDATE)) for path in folder.glob(f"{UPDATE}*")), default=1)
        fresh = IndexManifest(old.parts, old.dim, words=WORDS, state=state)
        home = folder / f"{UPDATE}{number}"
        with disk_errors(home):
            home.mkdir()
        save(home, fresh)
        fill(known.filling(embed), changed, home, config, fresh, ui)
        finish(home, config, fresh, ui)
    fresh.files = home.name
    save(folder, fresh)
    for path in [*earlier, *([folder / old.files] if old.files else []), *(folder / name for name in FILES[1:])]:
        remove(path)
    gone = max(0, old.rows - known.found)
    ui.say(f"updated: {known.embedded:,} passages embedded, {known.found:,} vectors kept, {gone:,} passages gone")


def changed_rows(database: Passages, passages: Iterable[Passage]) -> Iterable[Passage] | None:
    """All passages again, if they are not those of the database in their order; none: they are."""
    rest = iter(passages)
    for equal, (before, now) in enumerate(zip_longest(database.rows(), rest)):
        if before != now:
            return chain(islice(database.rows(), equal), [now] if now is not None else [], rest)
    return None


class Known(AbstractContextManager["Known"]):
    """Vectors by the content of their passages, from what is there of indices of one model. Use it as a context manager."""

    def __init__(self, indices: Sequence[tuple[Path, IndexManifest]]) -> None:
        self.found = self.embedded = 0
        self._vectors: list[Vectors] = []
        keys = []
        for home, manifest in indices:
            file = home / "vectors.f32"
            with reading(file):
                if file.stat().st_size < 4 * manifest.rows * manifest.dim:
                    raise damaged(file, f"less than {manifest.rows:,} vectors of {manifest.dim} dimensions")
                shape = (manifest.rows, manifest.dim)
                self._vectors.append(np.memmap(file, dtype=np.float32, mode="r", shape=shape))
            with Passages(home) as database:
                rows = islice(database.rows(), manifest.rows)
                keys.append(np.fromiter(map(_key, rows), f"S{KEY_BYTES}", manifest.rows))
        joined = np.concatenate(keys)
        self._order = np.argsort(joined, kind="stable")
        self._keys = joined[self._order]
        self._ends = np.cumsum([len(vectors) for vectors in self._vectors])

    def __exit__(self, *_: object) -> None:
        self._vectors.clear()  # what was read of a mapped file counts as memory

    def filling(self, embed: Embed) -> Embed:
        """``embed``, asked only for what is not known."""

        def filled(batch: list[Passage]) -> Vectors:
            places = self._places(batch)  # (batch,), -1 where it is new
            new = [row for row, place in zip(batch, places, strict=True) if place < 0]
            made = embed(new) if new else np.zeros((0, self._vectors[0].shape[1]), np.float32)
            block = np.empty((len(batch), made.shape[1]), np.float32)
            block[places < 0] = made
            for vectors, end in zip(self._vectors, self._ends, strict=True):
                here = (places >= end - len(vectors)) & (places < end)
                block[here] = vectors[places[here] - (end - len(vectors))]
            self.embedded += len(new)
            self.found += len(batch) - len(new)
            return block

        return filled

    def _places(self, batch: Sequence[Passage]) -> np.ndarray:
        keys = np.fromiter(map(_key, batch), f"S{KEY_BYTES}", len(batch))
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._order[at], -1)


def _key(passage: Passage) -> bytes:
    """A hash of what a vector is made from."""
    title, text = passage.title.encode("utf-8", "surrogatepass"), passage.text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(b"%d %b%b" % (len(title), title, text), digest_size=KEY_BYTES).digest()


def save(folder: Path, manifest: IndexManifest) -> None:
    """Write a manifest, whole or not at all."""
    write_json(folder / "manifest.json", asdict(manifest))


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
    with disk_errors(folder / "index.faiss", RuntimeError), made_aside(folder / "index.faiss") as aside:
        (faiss.write_index_binary if manifest.store == "binary" else faiss.write_index)(index, str(aside))
