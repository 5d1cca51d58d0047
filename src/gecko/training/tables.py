"""Rows of a training set as it was published: local files, folders of them, or a Hugging Face data set.

====================================  =========================================================================
``.jsonl``, ``.ndjson``, ``.jsonl.gz``  one JSON object a line
``.json``                             a list of objects, or JSON Lines
``.csv``, ``.tsv``                    a header line, then one row a line
``.parquet``                          any columns
a folder                              its parquet files by name; without any, its files of the other kinds
``hf:NAME``                           `datasets.load_dataset(NAME, config, split=split)`, streamed
====================================  =========================================================================

Rows are numbered from 1, over all files of a source; errors name set, file and row.
"""

import gzip
import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from gecko.corpus.bounds import decoded, lines
from gecko.corpus.delimited import BadRow, read_delimited
from gecko.errors import ConfigError, StorageError, TrainingError
from gecko.store import digest, file_sha256, read_json, write_json
from gecko.text import half_of_pair
from gecko.weights.cache import cache_folder

Row = dict[str, Any]

ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet")
PARQUET_ROWS = 1024
LINE_BYTES = 2**31 - 1
HUB = "hf:"


def read_rows(name: str, source: str, config: str | None = None, split: str = "train") -> Iterator[tuple[str, Row]]:
    """(place, row) of each row of a source, in order; the place is for error messages.

    Args:
        name: the set's, for error messages.
        source: see the module's table.
        config: of a Hugging Face data set with several.
        split: of a Hugging Face data set.

    Raises:
        TrainingError: the source is missing, empty, of another kind, or not readable at some row.
    """
    if source.startswith(HUB):
        rows = _read_hub(name, source.removeprefix(HUB), config, split)
    else:
        rows = itertools.chain.from_iterable(_read_file(name, file) for file in files_of(name, source))
    empty = True
    for number, (file, row) in enumerate(rows, start=1):
        empty = False
        if not isinstance(row, dict):
            raise TrainingError(f"set {name!r}, row {number} of {file}: it is no table of columns and values")
        yield f"set {name!r}, row {number} of {file}", row
    if empty:
        raise TrainingError(f"set {name!r}: {source} has no rows; give another source, or leave the set out")


def files_of(name: str, source: str) -> list[Path]:
    """The files of a local source, by name.

    Raises:
        TrainingError: there are none.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if not ending_of(path):
            raise TrainingError(f"set {name!r}: {path} is of another kind; give {', '.join(ENDINGS)}")
        return [path]
    if not path.is_dir():
        raise TrainingError(f"set {name!r}: {source} does not exist; give a file, a folder or hf:NAME")
    files = sorted(entry for entry in path.iterdir() if entry.is_file() and ending_of(entry))
    # Beside parquet, JSON is about the data and not the data (a run's manifest, a data set's card).
    files = [entry for entry in files if ending_of(entry) == ".parquet"] or files
    if not files:
        raise TrainingError(f"set {name!r}: the folder {source} holds no file of the kinds {', '.join(ENDINGS)}")
    return files


def source_identity(name: str, source: str, config: str | None = None, split: str = "train") -> str:
    """A hash of what a source holds; a Hugging Face data set is known by its name, split and commit."""
    if source.startswith(HUB):
        return digest("hub", source, config or "", split, _hub_commit(source.removeprefix(HUB)))
    return digest(*(text for file in files_of(name, source) for text in (file.name, file_sha256(file))))


def ending_of(path: Path) -> str | None:
    """Which of :data:`ENDINGS` a file has; the longest."""
    return next((ending for ending in sorted(ENDINGS, key=len, reverse=True) if path.name.endswith(ending)), None)


def _read_file(name: str, path: Path) -> Iterator[tuple[str, Row]]:
    kinds: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".jsonl.gz": _jsonl,
        ".json": _json,
        ".csv": lambda path: _csv(path, ","),
        ".tsv": lambda path: _csv(path, "\t"),
        ".parquet": _parquet,
    }
    number = 0
    try:
        for row in kinds[ending_of(path) or ""](path):
            yield path.name, row
            number += 1
    except (OSError, EOFError, zlib.error, ValueError, RecursionError, BadRow, pa.ArrowException) as error:
        raise TrainingError(
            f"set {name!r}: {path} cannot be read after row {number} ({error}); mend the file"
        ) from error


def _jsonl(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as handle:
        for number, line in text_lines(handle):
            if line.strip():
                yield _placed(json.loads(line), f"{path}:{number}")


def _json(path: Path) -> Iterator[Row]:
    with path.open("rb") as handle:
        first = handle.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if first != b"[":
        yield from _jsonl(path)
        return
    for number, row in enumerate(json.loads(path.read_bytes().decode("utf-8-sig")), start=1):
        yield _placed(row, f"{path}: row {number}")


class _Placed(dict[str, Any]):
    """A row of JSON, the one kind of file that lets halves of surrogate pairs through, and where it stands."""

    place: str


def _placed(row: Any, place: str) -> Any:
    if isinstance(row, dict):
        row = _Placed(row)
        row.place = place
    return row


def _csv(path: Path, delimiter: str) -> Iterator[Row]:
    def numbered() -> Iterator[tuple[int, str]]:
        with path.open("rb") as handle:
            yield from text_lines(handle)

    columns: list[str] = []
    for line, cells in read_delimited(numbered(), delimiter, numbered):
        if not columns:
            columns = cells
        elif len(cells) != len(columns):
            raise ValueError(f"the row has another number of fields than the header, in line {line}")
        else:
            yield dict(zip(columns, cells, strict=True))


def text_lines(handle: BinaryIO | gzip.GzipFile) -> Iterator[tuple[int, str]]:
    """(number, line) of a text file.

    Raises:
        ValueError: it is not UTF-8, or a line has more than 2 GB.
    """
    for number, line in enumerate(lines(handle, LINE_BYTES), start=1):
        if line is None:
            raise ValueError(f"line {number} has more than {LINE_BYTES:,} bytes")
        try:
            yield number, decoded(line, first=number == 1)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error


def _parquet(path: Path) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=PARQUET_ROWS):
            yield from batch.to_pylist()


def _read_hub(name: str, hub_name: str, config: str | None, split: str) -> Iterator[tuple[str, Row]]:
    import datasets

    wanted = f"{hub_name}{f' ({config})' if config else ''}, split {split}"
    try:
        data = datasets.load_dataset(hub_name, config, split=split, streaming=True)
    except Exception as error:  # unknown name, unknown configuration or split, no network: many kinds
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise TrainingError(
            f"set {name!r}: the data set {wanted} cannot be loaded: {reason}. Check name, config and split, or give "
            "local files; of a data set that is still a script, those of its branch refs/convert/parquet"
        ) from error
    try:
        for row in data:
            yield hub_name, row
    except Exception as error:
        raise TrainingError(f"set {name!r}: reading the data set {wanted} failed: {error}") from error


def _hub_commit(hub_name: str) -> str:
    """The commit of a data set on the hub, or the last that was seen where it does not answer; empty for a local folder."""
    import contextlib

    from huggingface_hub import HfApi, constants

    if Path(hub_name).exists():
        return ""
    seen = None
    with contextlib.suppress(ConfigError):
        seen = cache_folder() / "commits" / f"{digest(hub_name)}.json"
    if not constants.HF_HUB_OFFLINE:
        with contextlib.suppress(Exception):  # whatever fails here fails again, and is explained, on loading
            commit = HfApi().dataset_info(hub_name, timeout=10).sha or ""
            if seen is not None:
                with contextlib.suppress(StorageError, OSError):
                    write_json(seen, {"name": hub_name, "commit": commit})
            return commit
    return str(read_json(seen)["commit"]) if seen is not None and seen.exists() else ""


def require(row: Row, columns: Sequence[str], place: str, kind: str) -> None:
    """Refuse a row that lacks a column.

    Raises:
        TrainingError: names the place, what is missing and what is there.
    """
    if missing := [column for column in columns if column not in row]:
        raise TrainingError(
            f"{place}: no column {', '.join(missing)}; the kind {kind!r} needs {', '.join(columns)}, and there are "
            f"{', '.join(map(str, row))}"
        )


def text_of(row: Row, column: str, place: str, *, optional: bool = False, halves: bool = False) -> str:
    """A column that must be a string, without white space around it; a missing or null one is empty if ``optional``.

    NaN, which data frames write for nothing, is null.

    Raises:
        TrainingError: it is of another type, or holds half a surrogate pair where ``halves`` are not let through.
    """
    value = row.get(column)
    if optional and (value is None or (isinstance(value, float) and math.isnan(value))):
        return ""
    if not isinstance(value, str):
        raise TrainingError(f"{place}: column {column} is {value!r:.80}, and must be a text")
    if not halves and (half := half_of_pair(value)):
        raise TrainingError(
            f"{row.place if isinstance(row, _Placed) else place}: the text holds {half}; the column is {column}"
        )
    return value.strip()
