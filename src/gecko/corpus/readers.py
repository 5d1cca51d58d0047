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

import csv
import gzip
import io
import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn

from gecko.config import CorpusConfig
from gecko.corpus.bounds import BROKEN_ARCHIVE, LARGE, LONG_LINE, Allowance, Dropped, Expanding, lines
from gecko.corpus.documents import Documents
from gecko.corpus.markdown import HEADING, with_prose
from gecko.disk import temporary_file
from gecko.errors import CorpusError
from gecko.records import Passage
from gecko.store import digest, file_sha256
from gecko.work import Counts

TEXT_ENDINGS = (".txt", ".md")
PARSED_ENDINGS = (".html", ".htm", ".pdf", ".docx")
DOCUMENT_ENDINGS = (*TEXT_ENDINGS, *PARSED_ENDINGS)
ROW_ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".zst")
SUPPORTED = (*ROW_ENDINGS, *DOCUMENT_ENDINGS)
BEIR_FILE = "corpus.jsonl"
PARQUET_ROWS = 1024
CSV_FIELD_CHARS = 2**31 - 1
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
_SETEXT = re.compile(r" {0,3}=+[ \t]*$")


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


@dataclass(frozen=True)
class _File:
    """One file, or one member of an archive, to be opened when its turn comes.

    Attributes:
        name: relative to its folder or archive; the id of a document.
        place: what errors call it.
        path: of the file on disk.
        member: of the archive at ``path``; empty: the file itself.
        alone: whether the source is this file, so that nothing in it is an error.
        archive: that archive, open while its members are handed out.
        allowance: what all its members together may expand to.
    """

    name: str
    place: str
    path: Path
    member: str = ""
    alone: bool = False
    archive: zipfile.ZipFile | None = None
    allowance: Allowance | None = None

    @property
    def ending(self) -> str:
        """``.jsonl`` for ``x.jsonl.gz``."""
        return ending_of(self.name)

    @property
    def source(self) -> str:
        """The name that passages carry."""
        return PurePosixPath(self.name).name


def ending_of(name: str) -> str:
    """The ending that says what a file holds, lower case and without that of a compression."""
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


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
    try:
        for file in _files(spec, reader.counts):
            try:
                yield from _read_file(file, reader)
            except Dropped as drop:
                reader.counts.drop(drop.reason, f"{file.place} ({drop.detail})" if drop.detail else file.place)
    except OSError as error:
        # The file that failed may be another one than the source: a file below a folder.
        raise CorpusError(
            f"cannot read {error.filename or spec}: {error.strerror or error}; mend it, or leave it out"
        ) from error


def source_files(spec: str) -> list[Path]:
    """The files that a source is read from, in order.

    Raises:
        CorpusError: as :func:`read_source`, where it does not exist.
    """
    return [file.path for file in _files(spec, Counts(), members=False)]


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
    for file in _files(spec, Counts(), members=False):
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


# --- which files


def _files(spec: str, counts: Counts, *, members: bool = True) -> Iterator[_File]:
    """The files of a source, in order; with ``members``, those in an archive one by one."""
    if not spec.strip():
        raise CorpusError(f"corpus source {spec!r} is blank; give a file, a folder or stdlib")
    path = Path(os.path.expanduser(spec))  # noqa: PTH111 - Path.expanduser fails on a file that is named ~x
    if path.is_dir():
        found = _folder(path, counts)
    elif not path.exists() and any(mark in spec for mark in "*?["):
        found = _matching(path, counts)
    else:
        found = iter([_one(path)])
    for file in found:
        if members and file.ending == ".zip":
            yield from _members(file, counts)
        else:
            yield file


def _one(path: Path) -> _File:
    if not path.exists():
        raise CorpusError(f"corpus source {path} does not exist; give a file, a folder or stdlib")
    if ending_of(path.name) not in (*SUPPORTED, ".zip"):
        raise CorpusError(
            f"{path}: cannot read a file that ends in {path.suffix.lower() or 'nothing'!r}; "
            f"supported are {', '.join(SUPPORTED)}, these with .gz or .zst, .zip, a folder, and stdlib"
        )
    if path.is_file() and path.stat().st_size == 0:
        raise CorpusError(f"{path} is empty; give a file with passages")
    return _File(path.name, str(path), path, alone=True)


def _folder(folder: Path, counts: Counts) -> Iterator[_File]:
    if (folder / BEIR_FILE).is_file():
        yield _one(folder / BEIR_FILE)
        return
    names = sorted(_walk(folder, counts))
    documents = [name for name in names if ending_of(name) in (*DOCUMENT_ENDINGS, ".zip")]
    rows = [name for name in names if ending_of(name) in ROW_ENDINGS]
    if documents and rows:
        counts.notes["files skipped: rows beside documents"] += len(rows)
    chosen = documents or rows
    if not chosen:
        raise CorpusError(
            f"folder {folder} holds no {BEIR_FILE} and no file that can be read ({', '.join(SUPPORTED)}, .zip); "
            "give a folder with passages"
        )
    for name in chosen:
        yield _File(name, str(folder / name), folder / name)


def _walk(folder: Path, counts: Counts) -> Iterator[str]:
    """Readable files below the folder, relative to it and with ``/``; what is hidden or links out of it is counted."""
    root = folder.resolve()

    def fail(error: OSError) -> NoReturn:
        raise error

    for parent, folders, files in os.walk(folder, onerror=fail):
        here = Path(parent)
        for name in list(folders):
            # os.walk lists a linked folder and does not enter it: it may lie outside, or make a circle.
            if name.startswith(".") or (here / name).is_symlink():
                counts.notes["folders skipped: hidden" if name.startswith(".") else "folders skipped: link"] += 1
                folders.remove(name)
        for name in files:
            if _is_wanted(here / name, root, counts):
                yield (here / name).relative_to(folder).as_posix()


def _is_wanted(path: Path, root: Path, counts: Counts) -> bool:
    if path.name.startswith("."):
        counts.notes["files skipped: hidden"] += 1
    elif ending_of(path.name) not in (*SUPPORTED, ".zip"):
        counts.notes["files skipped: of another kind"] += 1
    elif path.is_symlink() and not (path.is_file() and path.resolve().is_relative_to(root)):
        counts.notes["files skipped: link out of the folder or to nothing"] += 1
    elif not path.is_file():  # a pipe would be waited for without end
        counts.notes["files skipped: no regular file"] += 1
    else:
        return True
    return False


def _matching(pattern: Path, counts: Counts) -> Iterator[_File]:
    """The files that a pattern matches; links out of the part before its first mark are skipped."""
    fixed = list(takewhile(lambda part: not any(mark in part for mark in "*?["), pattern.parts))
    base = Path(*fixed) if fixed else Path()
    if not base.is_dir():
        raise CorpusError(f"corpus source {pattern}: there is no folder {base}; mend the pattern")
    root, rest = base.resolve(), str(PurePosixPath(*pattern.parts[len(fixed) :]))
    named = PurePosixPath(rest).parts

    def is_shown(path: Path) -> bool:
        """Whether no folder above it is hidden, but for those that the pattern names."""
        hidden = any(part.startswith(".") and part not in named for part in path.relative_to(base).parent.parts)
        if hidden:
            counts.notes["files skipped: hidden"] += 1
        return not hidden

    files = (path for path in base.glob(rest) if not path.is_dir())
    found = sorted(path for path in files if is_shown(path) and _is_wanted(path, root, counts))
    if not found:
        raise CorpusError(f"corpus source {pattern} matches no file that can be read; mend the pattern")
    for path in found:
        yield _File(path.relative_to(base).as_posix(), str(path), path)


def _members(archive: _File, counts: Counts) -> Iterator[_File]:
    """The members of a zip file, sorted by name. A name is a label only: nothing is unpacked under it."""
    try:
        opened = zipfile.ZipFile(archive.path)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        counts.drop(BROKEN_ARCHIVE, f"{archive.place} ({error})")
        return
    prefix = "" if archive.alone else f"{archive.name}/"
    allowance = Allowance(archive.path.stat().st_size)
    with opened:
        for entry in sorted(opened.infolist(), key=lambda entry: entry.filename):
            parts = PurePosixPath(entry.filename).parts
            place = f"{archive.place}!{entry.filename}"
            if entry.is_dir():
                continue
            if any((part.startswith(".") and part.strip(".")) or part == "__MACOSX" for part in parts):
                counts.notes["archive members skipped: hidden"] += 1
            elif entry.flag_bits & 1:
                counts.drop("locked archive member", place)
            elif ending_of(entry.filename) not in SUPPORTED:
                counts.notes["archive members skipped: of another kind"] += 1
            else:
                name = prefix + entry.filename
                yield _File(name, place, archive.path, entry.filename, archive=opened, allowance=allowance)


# --- what is in them


@contextmanager
def _opened(file: _File) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed within bounds."""
    with ExitStack() as stack:
        raw: BinaryIO
        if file.archive is not None and file.allowance is not None:
            entry = file.archive.getinfo(file.member)
            packed = entry.compress_size
            try:
                inner: Any = file.archive.open(entry)
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
                raise Dropped(BROKEN_ARCHIVE, str(error)) from error
            raw = stack.enter_context(io.BufferedReader(Expanding(inner, Allowance(packed), file.allowance)))
        else:
            packed = file.path.stat().st_size
            raw = stack.enter_context(file.path.open("rb"))
        match PurePosixPath(file.name.lower()).suffix:
            case ".gz":
                raw = stack.enter_context(io.BufferedReader(Expanding(gzip.GzipFile(fileobj=raw), Allowance(packed))))
            case ".zst":
                import pyarrow as pa

                stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
                raw = stack.enter_context(io.BufferedReader(Expanding(stream, Allowance(packed))))
        yield raw


@contextmanager
def _on_disk(file: _File, largest: int) -> Iterator[Path]:
    """A path that holds the decompressed file, for parsers that must seek."""
    if not file.member and PurePosixPath(file.name.lower()).suffix not in COMPRESSED:
        if file.ending != ".parquet" and file.path.stat().st_size > largest:
            raise Dropped(LARGE, f"more than {largest >> 20} MB")
        yield file.path
        return
    with _opened(file) as handle, temporary_file(file.ending) as copy:
        left = largest
        while data := handle.read(1 << 20):
            left -= len(data)
            if left < 0:
                raise Dropped(LARGE, f"more than {largest >> 20} MB")
            copy.write(data)
        copy.flush()
        yield Path(copy.name)


def _read_file(file: _File, reader: Reader) -> Iterator[Placed]:
    if file.ending in TEXT_ENDINGS:
        yield _read_text(file, reader)
        return
    if file.ending in PARSED_ENDINGS:
        with _on_disk(file, reader.largest) as path:
            title, text = reader.documents.read(path, file.ending)
        title = title.strip() or _heading(text) or PurePosixPath(file.source).name.partition(".")[0]
        yield file.place, _passage({"id": file.name, "title": title, "text": text}, file.source, file.place)
        return
    found, source = False, file.source
    for place, row in _rows(file, reader):
        found = True
        yield place, _passage(row, source, place, reader.config)
    if not found:
        if file.alone:
            raise CorpusError(f"{file.place} is empty: it holds no passage; give a file with passages")
        reader.counts.notes["files without a passage"] += 1


def parsed_documents(spec: str, reader: Reader) -> Iterator[tuple[Path, str]]:
    """The HTML, PDF and Word files of a source, each with its ending; what reading them would refuse is left out."""
    if spec == "stdlib" or spec.startswith(("hf:", *SQL_SCHEMES)):
        return
    for file in _files(spec, reader.counts):
        if file.ending in PARSED_ENDINGS:
            with suppress(Dropped), _on_disk(file, reader.largest) as path:
                yield path, file.ending


def _rows(file: _File, reader: Reader) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if file.ending == ".parquet":
        with _on_disk(file, reader.largest) as path:
            yield from _read_parquet(path, file.place, reader.config)
        return
    with _opened(file) as handle:
        numbered = _lines(handle, file.place, reader)
        if file.ending in (".csv", ".tsv"):
            yield from _read_csv(numbered, file, reader.config)
        else:
            yield from _read_jsonl(numbered)


def _read_text(file: _File, reader: Reader) -> Placed:
    with _opened(file) as handle:
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
            _decode(line, f"{file.place}:{number}", first=number == 1)
    title = (file.ending == ".md" and _heading(text)) or PurePosixPath(_plain_name(file.source)).stem
    return file.place, _passage({"id": file.name, "title": title, "text": text}, file.source, file.place)


def _plain_name(name: str) -> str:
    """The name without the ending of a compression."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in COMPRESSED else name


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


def _read_jsonl(numbered: Iterable[tuple[str, str]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for place, line in numbered:
        if not line.strip():
            continue
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


def _read_csv(
    numbered: Iterable[tuple[str, str]], file: _File, config: CorpusConfig
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    csv.field_size_limit(max(csv.field_size_limit(), CSV_FIELD_CHARS))  # the default refuses 131,073 characters
    kind = file.ending[1:]
    fed: list[str] = []  # the places of a row's lines: one may have several, and a line that was too long is none

    def feed() -> Iterator[str]:
        for place, line in numbered:
            fed.append(place)
            yield line

    reader = csv.reader(feed(), "excel-tab" if kind == "tsv" else "excel", strict=True)
    columns: list[str] = []
    while True:
        fed.clear()
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise CorpusError(
                f'{fed[0]}: not valid {kind.upper()}: {error}; a field that begins with " must end with '
                'one, and a " inside it is written twice'
            ) from error
        if row is None:
            return
        if not row:  # a blank line
            continue
        place = fed[0]
        if not columns:
            columns = [name.strip() for name in row]
            _check_columns(columns, place, config)
            continue
        if len(row) != len(columns):
            raise CorpusError(
                f"{place}: {len(row)} fields, but the header has {len(columns)}; "
                "put a field that holds the separator or a newline between double quotes"
            )
        yield place, dict(zip(columns, row, strict=True))


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


def _lines(handle: BinaryIO, name: str, reader: Reader) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines(handle, reader.largest), start=1):
        place = f"{name}:{number}"
        if line is None:
            reader.counts.drop(LONG_LINE, place)
        else:
            yield place, _decode(line, place, first=number == 1)


def _decode(line: bytes, place: str, *, first: bool) -> str:
    if b"\0" in line:
        raise CorpusError(
            f"{place}: a NUL byte at byte {line.index(0) + 1} of the line; this is UTF-16, perhaps, or no text: "
            "save it as UTF-8"
        )
    try:
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{place}: not valid UTF-8 at byte {error.start + 1} of the line ({error.reason}); save the file as UTF-8"
        ) from error


def _passage(row: Mapping[str, Any], source: str, place: str, config: CorpusConfig | None = None) -> Passage:
    config = config or CorpusConfig()
    if config.text_field not in row:
        raise CorpusError(
            f"{place}: no field is named {config.text_field}; the fields are: {_listed(row)}; "
            "rename one to text, or, for a run, give --set corpus.text_field=NAME"
        )
    ids = [config.id_field] if config.id_field else ["_id", "id"]
    text, title = row[config.text_field], row.get(config.title_field)
    if title is None:
        title = ""
    for name, value in (("text", text), ("title", title)):
        if not isinstance(value, str):
            raise CorpusError(f"{place}: {name} is {_kind(value)}, not a string: {_short(value)}; write it as a string")
    given = next((row[name] for name in ids if row.get(name) not in (None, "")), None)
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


def _kind(value: object) -> str:
    return _JSON_TYPES.get(type(value), f"of type {type(value).__name__}")


def _short(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(_short(name) for name in names) or "none"
