"""Embed a stream of texts into a folder of parquet shards, in bounded memory, resumable shard by shard.

::

    OUT/part-00000.parquet    columns id and embedding, in the order of the input; with texts: title, text and source, too
    OUT/.manifest.parquet     no row; in its metadata the model, the options, and the rows and hashes of each shard

So whatever reads a folder of parquet reads this one: some readers take hidden files, too, and some nothing but parquet.

A killed run continues at the next shard. It reads the input again up to there, and refuses to go on if the input, the
model or an option is another one.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from gecko.core.arguments import folder_of, one_of, whole
from gecko.core.counts import Counts
from gecko.core.errors import ConfigError, CorpusError, NonFiniteError, RunError
from gecko.core.files import digest, read_json, write_table
from gecko.core.formats import find_task
from gecko.core.progress import Silent, Ui
from gecko.core.records import Passage
from gecko.encoder import Embedder, load
from gecko.encoder.backend import Precision
from gecko.encoder.spec import CARD
from gecko.encoder.vectors import Output, Packed, not_finite
from gecko.run.engine import LOCAL, Executor, RemoteModel
from gecko.run.lock import lock_folder

LAYOUT = 1
MANIFEST = ".manifest.parquet"
HELD = 64  # batches that are begun before the first of them is written
Item = TypeVar("Item")


@dataclass(frozen=True)
class BulkConfig:
    """How texts become vectors; see :meth:`gecko.encoder.Embedder.embed`.

    Attributes:
        task: what the vectors are for. Only RETRIEVAL_DOCUMENT knows titles; elsewhere a row's title and text are read
            as one string.
        dim: dimensions to keep.
        output: the form of the vectors.
        shard_rows: texts of one shard: the unit of resuming, and what is held in memory.
        with_text: whether title, text and source are written beside the vector.

    Raises:
        ConfigError: a value is none of these.
    """

    task: str = "RETRIEVAL_DOCUMENT"
    dim: int | None = None
    output: Output = "float32"
    shard_rows: int = 8192
    with_text: bool = False

    def __post_init__(self) -> None:
        find_task(self.task)
        one_of("output", self.output, get_args(Output))
        check_shard(self.dim, self.shard_rows)

    @property
    def fields(self) -> tuple[str, ...]:
        """What of a passage stands beside its vector."""
        return ("id", "title", "text", "source") if self.with_text else ("id",)


def check_shard(dim: object, shard_rows: object) -> None:
    """Refuse what is no number of dimensions or of rows."""
    if dim is not None:
        whole("dim", dim)
    if whole("shard_rows", shard_rows) < 1:
        raise ConfigError(f"shard_rows = {shard_rows}: give at least 1")


@dataclass
class Shard:
    """One finished shard; ``texts`` is a hash of the ids, titles and texts it was made from."""

    file: str
    rows: int
    texts: str
    sha256: str


@dataclass
class BulkManifest:
    """What a folder of vectors was made from, and how far it is."""

    parts: dict[str, Any]
    shards: list[Shard] = field(default_factory=list)
    done: bool = False
    layout: int = LAYOUT

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return sum(shard.rows for shard in self.shards)


def read_lines(stream: Iterable[bytes], name: str = "stdin") -> Iterator[Passage]:
    """One text a line, UTF-8; the id is the line's number, from 1. A blank line is a text, too.

    Raises CorpusError: a line is not UTF-8.
    """
    for number, line in enumerate(stream, 1):
        try:
            yield Passage(str(number), "", line.decode("utf-8").rstrip("\r\n"))
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{name}:{number}: not valid UTF-8 at byte {error.start + 1} of the line; convert it to UTF-8"
            ) from error


def embed_rows(
    embedder: Embedder, rows: Iterable[Passage], config: BulkConfig, pause: Callable[[], bool] = lambda: False
) -> Iterator[tuple[list[Passage], Packed]]:
    """Yield up to ``config.shard_rows`` rows at a time, with their vectors.

    ``pause`` tells whether no further row has come yet; then those before it do not wait for it. Raises ConfigError: the
    task, the dimension or the output does not fit the model.
    """
    for batch in _as_they_come(rows, config.shard_rows, pause):
        yield batch, embed_batch(embedder, batch, config)


def _as_they_come(rows: Iterable[Passage], size: int, pause: Callable[[], bool]) -> Iterator[list[Passage]]:
    batch: list[Passage] = []
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == size or pause():
                yield batch
                batch = []
    except CorpusError:  # what came before it has its vectors
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def embed_batch(embedder: Embedder, batch: list[Passage], config: BulkConfig) -> Packed:
    """The vectors of some rows.

    Raises NonFiniteError: the model gives a row no finite vector; the row is named by its id.
    """
    has_titles = find_task(config.task).side == "document"
    try:
        return embedder.embed(
            [row.text if has_titles else row.content for row in batch],
            task=config.task,
            title=[row.title for row in batch] if has_titles else None,
            dim=config.dim,
            output=config.output,
        )
    except NonFiniteError as error:
        row = batch[error.index]
        raise NonFiniteError(not_finite(f"row {row.id}", row.text, embedder.spec), error.index) from None


def embed_to_folder(
    embedder: Embedder,
    rows: Iterable[Passage],
    folder: str | os.PathLike[str],
    config: BulkConfig,
    ui: Ui | None = None,
    engine: Executor = LOCAL,
) -> BulkManifest:
    """Embed rows into ``folder``, or go on where an earlier call was stopped, with the same rows in the same order.

    Raises RunError: the folder holds vectors of another model, other options or another input, or something else.
    ConfigError: the task, the dimension or the output does not fit the model. StorageError: the disk is full; what was
    finished is kept.
    """
    ui, folder = ui or Silent(), folder_of(folder)
    parts = {"model": embedder.identity, "form": embedder.form, "precision": embedder.precision, **asdict(config)}
    with lock_folder(folder):
        manifest = _open(folder, parts)
        batches = in_batches(rows, config.shard_rows)
        for number, shard in enumerate(manifest.shards):
            if (batch := next(batches, None)) is None or hash_rows(batch) != shard.texts:
                raise RunError(
                    f"{folder} holds vectors of another input: part {number + 1} differs; give the same input, or use "
                    "another folder"
                )
        if manifest.shards and not manifest.done:
            ui.say(f"continues after {manifest.rows:,} rows")
        with ui.bar("embedding", None, "rows") as advance:
            for batch, vectors in _embedded(embedder, batches, config, engine):
                _write(folder, manifest, batch, vectors, config)
                advance(len(batch))
        manifest.done = True
        _save(folder, manifest)
    return manifest


def _embedded(
    embedder: Embedder, batches: Iterator[list[Passage]], config: BulkConfig, engine: Executor
) -> Iterator[tuple[list[Passage], Packed]]:
    """Batches with their vectors, in order; of those that are finished before their turn a few are held."""
    begun: dict[int, list[Passage]] = {}
    finished: dict[int, Packed] = {}
    number, following = 0, 0

    def take() -> tuple[int, list[Passage]] | None:
        nonlocal number
        if number - following >= HELD or (batch := next(batches, None)) is None:
            return None
        begun[number] = batch
        number += 1
        return number - 1, batch

    model: Callable[[], Embedder] = lambda: embedder  # noqa: E731
    if engine.remote:
        exported = (Path(embedder.spec).expanduser() / CARD).is_file()  # it refuses to be given a precision
        precision = "auto" if exported else cast(Precision, embedder.precision)
        model = RemoteEmbedder(embedder.spec, embedder.identity, precision)
    for index, done in engine.run(partial(_vectors, model=model, config=config), take):
        finished[index] = done.rows[0]
        while following in finished:
            yield begun.pop(following), finished.pop(following)
            following += 1


def _vectors(
    batch: list[Passage], counts: Counts, *, model: Callable[[], Embedder], config: BulkConfig
) -> list[Packed]:
    return [embed_batch(model(), batch, config)]


def in_batches(rows: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of ``size`` rows, the last one shorter."""
    rest = iter(rows)
    while batch := list(islice(rest, size)):
        yield batch


def hash_rows(rows: Iterable[Passage]) -> str:
    """A hash of ids, titles and texts in their order."""
    joined = hashlib.sha256()
    for row in rows:
        joined.update(digest(row.id, row.title, row.text).encode())
    return joined.hexdigest()


def _open(folder: Path, parts: dict[str, Any]) -> BulkManifest:
    file, older = folder / MANIFEST, folder / "manifest.json"  # earlier versions wrote that one
    if not file.exists() and not older.exists():
        if strange := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
            raise RunError(f"{folder} holds other files ({', '.join(strange[:3])}); give a new or an empty folder")
        fresh = BulkManifest(parts)
        _save(folder, fresh)
        return fresh
    file = file if file.exists() else older
    raw = read_json(file) if file == older else _read(file)
    try:
        manifest = BulkManifest(**{**raw, "shards": [Shard(**shard) for shard in raw["shards"]]})
        known = {"with_text": False, **manifest.parts}  # earlier versions did not write that one
        changed = [key for key in parts if parts[key] != known.get(key)]
    except (TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{file} is not a manifest of gecko embed ({error}); give another folder") from error
    if changed:
        listed = ", ".join(f"{key} {known.get(key)} there, {parts[key]} now" for key in changed)
        raise RunError(f"{folder} holds vectors made otherwise: {listed}; use another folder, or the same options")
    if lost := [shard.file for shard in manifest.shards if not (folder / shard.file).exists()]:
        raise RunError(f"{folder / lost[0]} is missing; remove {folder} and embed again")
    if file == older:
        _save(folder, manifest)
        older.unlink()
    return manifest


def _read(file: Path) -> Any:
    try:
        return json.loads((pq.read_schema(file).metadata or {})[b"gecko"])
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise RunError(f"{file} is damaged ({error}); remove {file.parent} and embed again") from error


def _save(folder: Path, manifest: BulkManifest) -> None:
    """Write the manifest as a parquet file with the shards' columns, no row, and itself as metadata."""
    shards = manifest.shards
    columns = pq.read_schema(folder / shards[0].file) if shards else pa.schema([("id", pa.string())])
    said = json.dumps(asdict(manifest), ensure_ascii=False)
    write_table(folder / MANIFEST, columns.with_metadata({"gecko": said}).empty_table())


def _write(folder: Path, manifest: BulkManifest, batch: list[Passage], vectors: Packed, config: BulkConfig) -> None:
    kind = {"float32": pa.float32(), "int8": pa.int8(), "uint8": pa.uint8()}[vectors.dtype.name]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), kind), vectors.shape[1])
    fields = {name: pa.array([getattr(row, name) for row in batch], pa.string()) for name in config.fields}
    file = f"part-{len(manifest.shards):05d}.parquet"
    data = write_table(folder / file, pa.table({**fields, "embedding": column}))
    manifest.shards.append(Shard(file, len(batch), hash_rows(batch), hashlib.sha256(data).hexdigest()))
    _save(folder, manifest)


@dataclass
class RemoteEmbedder(RemoteModel[Embedder]):
    """An embedder; ``spec`` and ``precision`` as for :func:`gecko.encoder.load`."""

    precision: Precision = "auto"

    def _load(self) -> Embedder:
        return load(self.spec, precision=self.precision)
