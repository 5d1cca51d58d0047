"""Rows of tables: JSON Lines, CSV, TSV and Parquet, for corpora, training sets and test sets alike.

What follows the line is of training sets: local files, folders of them, or a Hugging Face data set.

====================================  =========================================================================
``.jsonl``, ``.ndjson``, ``.jsonl.gz``  one JSON object a line
``.json``                             a list of objects, or JSON Lines
``.csv``, ``.tsv``                    a header line, then one row a line; every cell is a text
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from gecko.core.errors import CorpusError, TrainingError
from gecko.core.files import digest, file_sha256
from gecko.core.text import half_of_pair
from gecko.corpus.bounds import decoded, lines
from gecko.corpus.delimited import BadRow, Numbered, read_delimited

Row = dict[str, Any]

SEPARATORS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".json", *SEPARATORS, ".parquet")
PARQUET_ROWS = 1024
LINE_BYTES = 2**31 - 1
HUB = "hf:"


class _UnevenRow(BadRow):
    """A row with more or fewer fields than the header."""

    def __str__(self) -> str:
        return f"the row has another number of fields than the header, in line {self.line}"


def json_rows(numbered: Numbered) -> Iterator[tuple[int, Any]]:
    """(number of its line, value) of each line of JSON; blank lines are none. Raises BadRow: a line is no JSON."""
    for number, line in numbered:
        if not isinstance(line, str) or not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            what = f"not valid JSON at column {error.colno}: {error.msg}; each line must be one JSON object"
            raise BadRow(number, what) from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nested too deep
            raise BadRow(number, f"not readable as JSON at column 1: {error}; mend the line") from error
        yield number, value


def cell_rows(
    numbered: Numbered,
    separator: str,
    again: Callable[[], Numbered],
    check: Callable[[Sequence[str], int], object] = lambda *_: None,
) -> Iterator[tuple[int, Row]]:
    """(number of its first line, cells by column) of each row below the header. Each cell is a text: nothing guesses.

    ``again`` gives the same lines from the start; ``check`` gets the columns and the number of their line, before any
    row. Raises BadRow: quotation marks are not in order, or a row has another number of fields than the header.
    """
    columns: list[str] = []
    for number, cells in read_delimited(numbered, separator, again):
        if not columns:
            columns = [name.strip() for name in cells]
            check(columns, number)
        elif len(cells) != len(columns):
            raise _UnevenRow(
                number,
                f"{len(cells)} fields, but the header has {len(columns)}; "
                "put a field that holds the separator or a newline between double quotes",
            )
        else:
            yield number, dict(zip(columns, cells, strict=True))


def parquet_rows(path: Path, wanted: Callable[[list[str]], list[str]] | None = None) -> Iterator[tuple[int, Row]]:
    """(number from 1, row) of each row of a Parquet file.

    ``wanted`` gets the names of the columns, and says which are read; none: all. Raises ValueError: it is no Parquet, or
    not whole; the message says after which row, and what to do. OSError: it cannot be read.
    """
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = wanted(file.schema_arrow.names) if wanted else None
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
                for row in _batch_rows(batch):
                    number += 1
                    yield number, row
    except UnicodeDecodeError as error:
        raise ValueError(f"row {number + 1}: not valid UTF-8 ({error.reason}); write it anew") from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"not readable as Parquet after row {number}: {error}; write it anew") from error


def _batch_rows(batch: "pa.RecordBatch") -> Iterator[Row]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:  # the rows before it are given
        rows = (row for index in range(batch.num_rows) for row in batch.slice(index, 1).to_pylist())
    yield from rows


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of a text file, perhaps in gzip.

    Raises ValueError: it is not UTF-8, or a line has more than 2 GB. OSError, EOFError, zlib.error: it cannot be read or
    unpacked.
    """
    with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as handle:
        for number, line in enumerate(lines(handle, LINE_BYTES), start=1):
            if line is None:
                raise ValueError(f"line {number} has more than {LINE_BYTES:,} bytes")
            try:
                yield number, decoded(line, first=number == 1)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error


# --- training sets


def read_rows(name: str, source: str, config: str | None = None, split: str = "train") -> Iterator[tuple[str, Row]]:
    """(place, row) of each row of a source (see the module's table), in order; the place names set, file and row.

    ``config`` and ``split`` are those of a Hugging Face data set. Raises TrainingError: the source is missing, empty, of
    another kind, or not readable at some row.
    """
    rows: Iterable[tuple[str, Any]]
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
    """The files of a local source, by name. Raises TrainingError: there are none."""
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
        from gecko.corpus.remote import hub_commit

        commit = ""
        with suppress(CorpusError):  # whatever fails here fails again, and is explained, on loading
            commit = hub_commit(source.removeprefix(HUB))
        return digest("hub", source, config or "", split, commit)
    return digest(*(text for file in files_of(name, source) for text in (file.name, file_sha256(file))))


def ending_of(path: Path) -> str | None:
    """Which of :data:`ENDINGS` a file has; the longest."""
    return next((ending for ending in sorted(ENDINGS, key=len, reverse=True) if path.name.endswith(ending)), None)


def _read_file(name: str, path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        for row in _file_rows(path):
            yield path.name, row
            number += 1
    except (OSError, EOFError, zlib.error, ValueError, RecursionError, BadRow) as error:
        raise TrainingError(
            f"set {name!r}: {path} cannot be read after row {number} ({error}); mend the file"
        ) from error


def _file_rows(path: Path) -> Iterator[Any]:
    ending = ending_of(path) or ""
    if ending == ".parquet":
        yield from (row for _, row in parquet_rows(path))
    elif ending in SEPARATORS:
        cells = cell_rows(numbered_lines(path), SEPARATORS[ending], lambda: numbered_lines(path))
        yield from (row for _, row in cells)
    elif ending == ".json" and _is_list(path):
        for number, row in enumerate(json.loads(path.read_bytes().decode("utf-8-sig")), start=1):
            yield _placed(row, f"{path}: row {number}")
    else:
        for number, row in json_rows(numbered_lines(path)):
            yield _placed(row, f"{path}:{number}")


def _is_list(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


class _Placed(dict[str, Any]):
    """A row of JSON, the one kind of file that lets halves of surrogate pairs through, and where it stands."""

    place: str


def _placed(row: Any, place: str) -> Any:
    if isinstance(row, dict):
        row = _Placed(row)
        row.place = place
    return row


def _read_hub(name: str, hub_name: str, config: str | None, split: str) -> Iterator[tuple[str, Any]]:
    from gecko.corpus.remote import hub_rows

    try:
        yield from ((hub_name, row) for row in hub_rows(hub_name, config, split))
    except CorpusError as error:
        raise TrainingError(f"set {name!r}: {error}") from error


def require(row: Row, columns: Sequence[str], place: str, kind: str) -> None:
    """Refuse a row that lacks a column. Raises TrainingError: names the place, what is missing and what is there."""
    if missing := [column for column in columns if column not in row]:
        raise TrainingError(
            f"{place}: no column {', '.join(missing)}; the kind {kind!r} needs {', '.join(columns)}, and there are "
            f"{', '.join(map(str, row))}"
        )


def text_of(row: Row, column: str, place: str, *, optional: bool = False, halves: bool = False) -> str:
    """A column that must be a string, without white space around it; a missing or null one is empty if ``optional``.

    NaN, which data frames write for nothing, is null. Raises TrainingError: it is of another type, or holds half a
    surrogate pair where ``halves`` are not let through.
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
