"""Read passages from whatever people have, one at a time.

========================================  ==========================================================================
``stdlib``                                the running Python's documentation strings
``.jsonl``, ``.ndjson``                   one JSON object a line: ``text``, and if you like ``_id`` or ``id``, ``title``
``.csv``, ``.tsv``                        a header line, then the same columns
``.parquet``                              the same columns
``.txt``, ``.md``                         one file is one passage
``.html``, ``.htm``, ``.pdf``, ``.docx``  likewise, as Markdown (needs ``gecko-embed[corpus]``)
any of these with ``.gz`` or ``.zst``     read through the compression (not Parquet, which has its own)
``.zip``                                  its members, like the files of a folder
a folder                                  its ``corpus.jsonl`` (BEIR); else every document below it; else every data file
a pattern with ``*``                      the files it matches, ``**`` for any depth
``hf:NAME[:CONFIG][@SPLIT]``              a Hugging Face dataset, streamed; ``train`` where no split is named
``sqlite:///FILE#SELECT …``               the rows of a SQL query, likewise ``postgresql://HOST/DB#SELECT …``
========================================  ==========================================================================

Text is UTF-8, with or without a byte order mark. An id may be a string or a whole number; where it is missing or
empty the passage gets one made from its content, which stays the same when the corpus grows. Nothing is guessed and
nothing is repaired: rows that cannot be read are an error that names the file and the line. A document, an archive
member or a line that takes more than its share (of size, time or expansion) is left out and counted.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from gecko.config import CorpusConfig
from gecko.corpus.bounds import LARGE, LONG_LINE, UNREADABLE, Allowance, Dropped, decoded, lines, no_text
from gecko.corpus.delimited import BadRow, Gap, Numbered, Skipped, read_delimited
from gecko.corpus.documents import Documents
from gecko.corpus.files import (
    PARSED_ENDINGS,
    SUPPORTED,
    TEXT_ENDINGS,
    SourceFile,
    files_of,
    on_disk,
    opened,
    plain_name,
)
from gecko.corpus.markdown import HEADING, with_prose
from gecko.errors import CorpusError
from gecko.records import Passage
from gecko.store import digest, file_sha256
from gecko.work import Counts

__all__ = [
    "SQL_SCHEMES",
    "SUPPORTED",
    "Reader",
    "content_id",
    "normal",
    "parsed_documents",
    "read_placed",
    "read_source",
    "source_files",
    "source_identity",
]

PARQUET_ROWS = 1024
SQL_SCHEMES = ("sqlite:", "postgresql:")

Placed = tuple[str, Passage]

_JSON_TYPES: dict[type, str] = {
    bool: "true or false",
    dict: "an object",
    float: "a number",
    int: "a number",
    list: "a list",
    str: "a string",
    type(None): "null",
}
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_SETEXT = re.compile(r" {0,3}=+[ \t]*$")


class _NoText(CorpusError):
    """A document whose bytes are no text."""


@dataclass
class Reader:
    """How sources are read, and what is counted on the way.

    Attributes:
        config: names of the fields, and limits.
        documents: reads HTML, PDF and Word files.
        counts: gets drops and notes.
    """

    config: CorpusConfig = field(default_factory=CorpusConfig)
    documents: Documents = field(default_factory=Documents)
    counts: Counts = field(default_factory=Counts)

    @property
    def largest(self) -> int:
        """Bytes of the longest line and the largest document that are read."""
        return self.config.document_mb << 20


def read_source(spec: str, reader: Reader | None = None) -> Iterator[Passage]:
    """Yield the passages of one source, in its order; see the module's table for what a source may be.

    Raises:
        CorpusError: the source is missing, empty or of another kind, or a line of it cannot be read. The message
            names the file and the line.
    """
    for _, passage in read_placed(spec, reader or Reader()):
        yield passage


def read_placed(spec: str, reader: Reader) -> Iterator[Placed]:
    """Yield the passages of one source, each with its place, such as ``corpus.jsonl:12``.

    Raises:
        CorpusError: as :func:`read_source`.
    """
    if spec == "stdlib":
        from gecko.corpus.stdlib import read_stdlib

        for passage in read_stdlib():
            yield f"stdlib:{passage.id}", passage
        return
    if spec.startswith(("hf:", *SQL_SCHEMES)):
        from gecko.corpus.remote import read_rows

        for place, row, source in read_rows(spec):
            yield place, _passage(row, source, place, reader.config)
        return
    found, no_text = False, ""
    try:
        for file in files_of(spec, reader.counts):
            try:
                for placed in _read_file(file, reader):
                    found = True
                    yield placed
            except Dropped as drop:
                reader.counts.drop(drop.reason, f"{file.place} ({drop.detail})" if drop.detail else file.place)
            except _NoText as error:
                if file.alone:
                    raise
                reader.counts.drop(UNREADABLE, str(error))
                no_text = no_text or str(error)
    except OSError as error:
        # The file that failed may be another one than the source: a file below a folder.
        raise CorpusError(
            f"cannot read {error.filename or spec}: {error.strerror or error}; mend it, or leave it out"
        ) from error
    if no_text and not found:
        raise CorpusError(f"{no_text}; no other document of {spec} can be read either")


def source_files(spec: str) -> list[Path]:
    """The files that a source is read from, in order.

    Raises:
        CorpusError: as :func:`read_source`, where it does not exist.
    """
    return [file.path for file in files_of(spec, Counts(), for_identity=True)]


def source_identity(spec: str) -> str:
    """A hash of what the passages of a source depend on: the content of its files.

    Raises:
        CorpusError: as :func:`read_source`, where it does not exist.
    """
    if spec == "stdlib":
        import platform
        import sys

        return digest(sys.version, sys.platform, platform.machine())
    if spec.startswith(("hf:", *SQL_SCHEMES)):
        from gecko.corpus.remote import rows_identity

        return rows_identity(spec)
    paths: dict[Path, None] = {}
    names = []
    for file in files_of(spec, Counts(), for_identity=True):
        paths[file.path] = None
        names.append(file.name)
    hashes = [file_sha256(path) for path in paths]
    return hashes[0] if len(hashes) == 1 and Path(spec).is_file() else digest(*names, *hashes)


def content_id(title: str, text: str) -> str:
    """The id of a passage that came without one: ``h`` and 16 hexadecimal digits. White space does not count."""
    return f"h{digest(normal(title), normal(text))}"


def normal(text: str) -> str:
    """The text with one blank for each run of white space: two that are equal then say the same."""
    return " ".join(text.split())


# --- what is in them


def _read_file(file: SourceFile, reader: Reader) -> Iterator[Placed]:
    if file.ending in TEXT_ENDINGS:
        yield _read_text(file, reader)
        return
    if file.ending in PARSED_ENDINGS:
        with on_disk(file, reader.largest) as path:
            title, text = reader.documents.read(path, file.ending)
        title = title.strip() or _heading(text) or PurePosixPath(file.source).name.partition(".")[0]
        yield file.place, _passage({"id": file.name, "title": title, "text": text}, file.source, file.place)
        return
    found, source = False, file.source
    for place, row in _rows(file, reader):
        found = True
        passage = _passage(row, source, place, reader.config)
        if file.set and passage.id != content_id(passage.title, passage.text):
            passage = replace(passage, id=f"{file.set}{passage.id}")
        yield place, passage
    if not found:
        if file.alone:
            raise CorpusError(f"{file.place} is empty: it holds no passage; give a file with passages")
        reader.counts.notes["files without a passage"] += 1


def parsed_documents(spec: str, reader: Reader) -> Iterator[tuple[Path, str]]:
    """The HTML, PDF and Word files of a source, each with its ending; what reading them would refuse is left out."""
    if spec == "stdlib" or spec.startswith(("hf:", *SQL_SCHEMES)):
        return
    for file in files_of(spec, reader.counts):
        if file.ending in PARSED_ENDINGS:
            with suppress(Dropped), on_disk(file, reader.largest) as path:
                yield path, file.ending


def _rows(file: SourceFile, reader: Reader) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if file.ending == ".parquet":
        with on_disk(file, reader.largest) as path:
            yield from _read_parquet(path, file.place, reader.config)
        return
    with opened(file) as handle:
        numbered = _lines(handle, file, reader)
        if file.ending in _SEPARATORS:
            yield from _read_delimited(numbered, file, reader)
        else:
            yield from _read_jsonl(numbered, file.place)


def _read_text(file: SourceFile, reader: Reader) -> Placed:
    with opened(file) as handle:
        data = handle.read(reader.largest + 1)
    if len(data) > reader.largest:
        raise Dropped(LARGE, f"more than {reader.config.document_mb} MB")
    # Only a broken file is looked at line by line, to name the line.
    try:
        text = data.decode("utf-8-sig")
        broken = "\0" in text
    except UnicodeDecodeError:
        broken = True
    if broken:
        for number, line in enumerate(data.split(b"\n"), start=1):
            try:
                _decode(line, f"{file.place}:{number}", first=number == 1)
            except CorpusError as error:
                raise _NoText(str(error)) from error
    title = (file.ending == ".md" and _heading(text)) or PurePosixPath(plain_name(file.source)).stem
    return file.place, _passage({"id": file.name, "title": title, "text": text}, file.source, file.place)


def _heading(text: str) -> str:
    """The first heading of a Markdown text; neither in its front matter nor in a fenced block of code."""
    lines = text.splitlines()
    start = 0
    if lines and lines[0].rstrip() == "---":
        start = next((number for number, line in enumerate(lines[1:], 2) if line.rstrip() in ("---", "...")), 0)
    previous = ""
    for line, prose in with_prose(lines[start:]):
        if prose and (heading := HEADING.match(line)):
            return heading[2].strip()
        if prose and previous.strip() and _SETEXT.match(line):
            return previous.strip()
        previous = line if prose else ""
    return ""


def _read_jsonl(numbered: Numbered, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in numbered:
        if not isinstance(line, str) or not line.strip():
            continue
        place = f"{name}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(
                f"{place}: not valid JSON at column {error.colno}: {error.msg}; each line must be one JSON object"
            ) from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nested too deep
            raise CorpusError(f"{place}: not readable as JSON at column 1: {error}; mend the line") from error
        if not isinstance(row, dict):
            raise CorpusError(
                f'{place}: the line is {_JSON_TYPES[type(row)]}; each line must be an object like {{"text": "…"}}'
            )
        yield place, row


def _read_delimited(numbered: Numbered, file: SourceFile, reader: Reader) -> Iterator[tuple[str, Mapping[str, Any]]]:
    def again() -> Iterator[tuple[int, str | Gap]]:
        allowance = file.allowance and Allowance(file.path.stat().st_size)
        with opened(replace(file, allowance=allowance)) as handle:
            yield from _lines(handle, file, replace(reader, counts=Counts()))

    columns: list[str] = []
    try:
        for number, row in read_delimited(numbered, _SEPARATORS[file.ending], again):
            place = f"{file.place}:{number}"
            if not columns:
                columns = [name.strip() for name in row]
                _check_columns(columns, place, reader.config)
                continue
            if len(row) != len(columns):
                raise CorpusError(
                    f"{place}: {len(row)} fields, but the header has {len(columns)}; "
                    "put a field that holds the separator or a newline between double quotes"
                )
            yield place, dict(zip(columns, row, strict=True))
    except BadRow as error:
        raise CorpusError(f"{file.place}:{error.line}: {error.what}") from error


def _read_parquet(path: Path, name: str, config: CorpusConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_columns(names, name, config)
            wanted = [column for column in _fields(config) if column in names]
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=wanted):
                for index in range(batch.num_rows):
                    number += 1
                    place = f"{name}: row {number}"
                    try:
                        row = {column: batch.column(column)[index].as_py() for column in wanted}
                    except UnicodeDecodeError as error:
                        raise CorpusError(f"{place}: not valid UTF-8 ({error.reason}); write it anew") from error
                    yield place, row
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CorpusError(f"{name}: not readable as Parquet after row {number}: {error}; write it anew") from error


def _fields(config: CorpusConfig) -> list[str]:
    """The names of the fields that are read, of which the id may have several."""
    ids = [config.id_field] if config.id_field else ["_id", "id"]
    return list(dict.fromkeys([*ids, config.title_field, config.text_field]))


def _check_columns(columns: Sequence[str], place: str, config: CorpusConfig) -> None:
    if config.text_field not in columns:
        raise CorpusError(
            f"{place}: no column is named {config.text_field}; the columns are: {_listed(columns)}; "
            "rename one to text, or, for a run, give --set corpus.text_field=NAME"
        )
    wanted = _fields(config)
    twice = [name for name, count in Counter(columns).items() if count > 1 and name in wanted]
    if twice:
        raise CorpusError(f"{place}: more than one column is named {twice[0]}; rename or remove one")


def _lines(handle: BinaryIO, file: SourceFile, reader: Reader) -> Iterator[tuple[int, str | Gap]]:
    skipped = Skipped(_SEPARATORS.get(file.ending, ""))
    for number, line in enumerate(lines(handle, reader.largest, skipped.take), start=1):
        place = f"{file.place}:{number}"
        if line is None:
            reader.counts.drop(LONG_LINE, place)
            yield number, skipped.end()
        else:
            yield number, _decode(line, place, first=number == 1)


def _decode(line: bytes, place: str, *, first: bool) -> str:
    try:
        text = decoded(line, first=first)
        if b"\0" in line:
            raise no_text(line)
    except ValueError as error:
        raise CorpusError(f"{place}: {error}") from error
    return text


def _passage(row: Mapping[str, Any], source: str, place: str, config: CorpusConfig | None = None) -> Passage:
    config = config or CorpusConfig()
    if config.text_field not in row:
        raise CorpusError(
            f"{place}: no field is named {config.text_field}; the fields are: {_listed(row)}; "
            "rename one to text, or, for a run, give --set corpus.text_field=NAME"
        )
    ids = [config.id_field] if config.id_field else ["_id", "id"]
    text, title = row[config.text_field], row.get(config.title_field)
    if title is None or _is_nan(title):
        title = ""
    for name, value in (("text", text), ("title", title)):
        if not isinstance(value, str):
            raise CorpusError(f"{place}: {name} is {_kind(value)}, not a string: {_short(value)}; write it as a string")
    written = (row.get(name) for name in ids)
    given = next((value for value in written if value not in (None, "") and not _is_nan(value)), None)
    if given is not None and (not isinstance(given, str | int) or isinstance(given, bool)):
        raise CorpusError(f"{place}: the id is {_kind(given)}: {_short(given)}; write it as a string")
    for name, value in (("id", str(given)), ("title", title), ("text", text)):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise CorpusError(
                f"{place}: the {name} holds half a surrogate pair, {value[error.start]!r} at character "
                f"{error.start + 1}, which no text can hold; write the file anew from its origin"
            ) from error
    return Passage(content_id(title, text) if given is None else str(given), title, text, source)


def _is_nan(value: object) -> bool:
    """Whether it is what data frames write for nothing."""
    return isinstance(value, float) and value != value  # noqa: PLR0124 - NaN alone is not itself


def _kind(value: object) -> str:
    return _JSON_TYPES.get(type(value), f"of type {type(value).__name__}")


def _short(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(_short(name) for name in names) or "none"
