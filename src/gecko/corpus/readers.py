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

import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from gecko.config.stages import CorpusConfig
from gecko.core.counts import Counts
from gecko.core.errors import CorpusError
from gecko.core.files import digest, file_sha256
from gecko.core.records import Passage
from gecko.core.text import half_of_pair
from gecko.corpus.bounds import LARGE, LONG_LINE, UNREADABLE, Allowance, Dropped, decoded, lines, no_text
from gecko.corpus.delimited import BadRow, Gap, Numbered, Skipped
from gecko.corpus.documents import Documents
from gecko.corpus.markdown import HEADING, with_prose
from gecko.corpus.sources import (
    PARSED_ENDINGS,
    SUPPORTED,
    TEXT_ENDINGS,
    SourceFile,
    files_of,
    is_remote,
    on_disk,
    opened,
    plain_name,
)
from gecko.corpus.tables import SEPARATORS, cell_rows, json_rows, parquet_rows

__all__ = [
    "SUPPORTED",
    "Reader",
    "content_id",
    "normal",
    "parsed_documents",
    "read_placed",
    "read_source",
    "source_identity",
]


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
_SETEXT = re.compile(r" {0,3}=+[ \t]*$")


class _NoText(CorpusError):
    """A document whose bytes are no text."""


@dataclass
class Reader:
    """How sources are read, and what is counted on the way: drops and notes."""

    config: CorpusConfig = field(default_factory=CorpusConfig)
    documents: Documents = field(default_factory=Documents)
    counts: Counts = field(default_factory=Counts)

    @property
    def largest(self) -> int:
        """Bytes of the longest line and the largest document that are read."""
        return self.config.document_mb << 20


def read_source(spec: str, reader: Reader | None = None) -> Iterator[Passage]:
    """Yield the passages of one source, in its order; see the module's table for what a source may be.

    Raises CorpusError: the source is missing, empty or of another kind, or a line of it cannot be read. The message names
    the file and the line.
    """
    for _, passage in read_placed(spec, reader or Reader()):
        yield passage


def read_placed(spec: str, reader: Reader) -> Iterator[Placed]:
    """Yield the passages of one source, each with its place, such as ``corpus.jsonl:12``.

    Raises CorpusError: as :func:`read_source`.
    """
    if spec == "stdlib":
        from gecko.corpus.stdlib import read_stdlib

        for passage in read_stdlib():
            yield f"stdlib:{passage.id}", passage
        return
    if is_remote(spec):
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


def source_identity(spec: str) -> str:
    """A hash of what the passages of a source depend on: the content of its files.

    Raises CorpusError: as :func:`read_source`, where it does not exist.
    """
    if spec == "stdlib":
        return digest(sys.version, sys.platform, platform.machine())
    if is_remote(spec):
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
    if spec == "stdlib" or is_remote(spec):
        return
    for file in files_of(spec, reader.counts):
        if file.ending in PARSED_ENDINGS:
            with suppress(Dropped), on_disk(file, reader.largest) as path:
                yield path, file.ending


def _rows(file: SourceFile, reader: Reader) -> Iterator[tuple[str, Mapping[str, Any]]]:
    def again() -> Numbered:
        allowance = file.allowance and Allowance(file.path.stat().st_size)
        with opened(replace(file, allowance=allowance)) as handle:
            yield from _lines(handle, file, replace(reader, counts=Counts()))

    if file.ending == ".parquet":
        try:
            with on_disk(file, reader.largest) as path:
                for number, row in parquet_rows(path, lambda names: _wanted(names, file.place, reader.config)):
                    yield f"{file.place}: row {number}", row
        except ValueError as error:
            raise CorpusError(f"{file.place}: {error}") from error
        return
    with opened(file) as handle:
        numbered, rows = _lines(handle, file, reader), json_rows
        if separator := SEPARATORS.get(file.ending):

            def check(columns: Sequence[str], line: int) -> None:
                _wanted(columns, f"{file.place}:{line}", reader.config)

            rows = partial(cell_rows, separator=separator, again=again, check=check)
        try:
            for number, row in rows(numbered):
                place = f"{file.place}:{number}"
                if not isinstance(row, dict):
                    kind = _JSON_TYPES[type(row)]
                    raise CorpusError(f'{place}: the line is {kind}; each line must be an object like {{"text": "…"}}')
                yield place, row
        except BadRow as error:
            raise CorpusError(f"{file.place}:{error.line}: {error.what}") from error


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


def _ids(config: CorpusConfig) -> list[str]:
    """The names that the field of the id may have; the first that has a value counts."""
    return [config.id_field] if config.id_field else ["_id", "id"]


def _wanted(columns: Sequence[str], place: str, config: CorpusConfig) -> list[str]:
    """Those of a table's columns that are read."""
    if config.text_field not in columns:
        raise CorpusError(
            f"{place}: no column is named {config.text_field}; the columns are: {_listed(columns)}; "
            "rename one to text, or, for a run, give --set corpus.text_field=NAME"
        )
    wanted = [name for name in dict.fromkeys([*_ids(config), config.title_field, config.text_field]) if name in columns]
    twice = [name for name in wanted if columns.count(name) > 1]
    if twice:
        raise CorpusError(f"{place}: more than one column is named {twice[0]}; rename or remove one")
    return wanted


def _lines(handle: BinaryIO, file: SourceFile, reader: Reader) -> Iterator[tuple[int, str | Gap]]:
    skipped = Skipped(SEPARATORS.get(file.ending, ""))
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
    text, title = row[config.text_field], row.get(config.title_field)
    if title is None or _is_nan(title):
        title = ""
    for name, value in (("text", text), ("title", title)):
        if not isinstance(value, str):
            raise CorpusError(f"{place}: {name} is {_kind(value)}, not a string: {_short(value)}; write it as a string")
    written = (row.get(name) for name in _ids(config))
    given = next((value for value in written if value not in (None, "") and not _is_nan(value)), None)
    if given is not None and (not isinstance(given, str | int) or isinstance(given, bool)):
        raise CorpusError(f"{place}: the id is {_kind(given)}: {_short(given)}; write it as a string")
    for name, value in (("id", str(given)), ("title", title), ("text", text)):
        if half := half_of_pair(value):
            raise CorpusError(f"{place}: the {name} holds {half}")
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
