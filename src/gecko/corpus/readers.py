"""Read passages from files, folders and the built-in corpus, one at a time.

========================  ============================================================================
``stdlib``                the running Python's documentation strings
``.jsonl``, ``.ndjson``   one JSON object a line: ``text``, and if you like ``_id`` or ``id``, and ``title``
``.csv``, ``.tsv``        a header line, then the same columns
``.parquet``              the same columns
``.txt``, ``.md``         one file is one passage
a folder                  its ``corpus.jsonl`` (BEIR); without one, every ``.txt`` and ``.md`` below it
========================  ============================================================================

Text is UTF-8, with or without a byte order mark. An id may be a string or a whole number; where it is missing or
empty the passage gets one made from its content, which stays the same when the corpus grows. Nothing is guessed and
nothing is repaired: what cannot be read is an error that names the file and the line.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from gecko.errors import CorpusError
from gecko.records import Passage
from gecko.store import digest

TEXT_ENDINGS = (".txt", ".md")
SUPPORTED = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", *TEXT_ENDINGS)
BEIR_FILE = "corpus.jsonl"
FIELDS = ("_id", "id", "title", "text")
PARQUET_ROWS = 1024
CSV_FIELD_CHARS = 2**31 - 1

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
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}#{1,6}[ \t]+(.+?)(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}=+[ \t]*$")


def read_source(spec: str) -> Iterator[Passage]:
    """Yield the passages of one source, in its order; see the module's table for what a source may be.

    Raises:
        CorpusError: the source is missing, empty or of another kind, or a line of it cannot be read. The message
            names the file and the line.
    """
    for _, passage in read_placed(spec, Counter()):
        yield passage


def read_placed(spec: str, notes: Counter[str]) -> Iterator[Placed]:
    """Yield the passages of one source, each with its place, such as ``corpus.jsonl:12``.

    Args:
        spec: the source.
        notes: gets the number of files of a folder that were skipped, by reason.

    Raises:
        CorpusError: as :func:`read_source`.
    """
    if spec == "stdlib":
        from gecko.corpus.stdlib import read_stdlib

        for passage in read_stdlib():
            yield f"stdlib:{passage.id}", passage
        return
    if not spec.strip():
        raise CorpusError(f"corpus source {spec!r} is blank; give a file, a folder or stdlib")
    path = Path(os.path.expanduser(spec))  # noqa: PTH111 - Path.expanduser fails on a file that is named ~x
    try:
        if path.is_dir():
            yield from _read_folder(path, notes)
        else:
            yield from _read_file(path)
    except OSError as error:
        # The file that failed may be another one than the source: a file below a folder.
        raise CorpusError(
            f"cannot read {error.filename or spec}: {error.strerror or error}; mend it, or leave it out"
        ) from error


def content_id(title: str, text: str) -> str:
    """The id of a passage that came without one: ``h`` and 16 hexadecimal digits. White space does not count."""
    return f"h{digest(normal(title), normal(text))}"


def normal(text: str) -> str:
    """The text with one blank for each run of white space: two that are equal then say the same."""
    return " ".join(text.split())


def _read_file(path: Path) -> Iterator[Placed]:
    ending = path.suffix.lower()
    if not path.exists():
        raise CorpusError(f"corpus source {path} does not exist; give a file, a folder or stdlib")
    if ending not in SUPPORTED:
        raise CorpusError(
            f"{path}: cannot read a file that ends in {ending or 'nothing'!r}; "
            f"supported are {', '.join(SUPPORTED)}, a folder, and stdlib"
        )
    if path.is_file() and path.stat().st_size == 0:
        raise CorpusError(f"{path} is empty; give a file with passages")
    if ending in TEXT_ENDINGS:
        yield _read_text(path, path.name)
        return
    rows = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}.get(ending, _read_jsonl)(path)
    found = False
    for row in rows:
        found = True
        yield row
    if not found:
        raise CorpusError(f"{path} is empty: it holds no passage; give a file with passages")


def _read_folder(folder: Path, notes: Counter[str]) -> Iterator[Placed]:
    if (folder / BEIR_FILE).is_file():
        yield from _read_file(folder / BEIR_FILE)
        return
    others: set[str] = set()
    names = sorted(_text_files(folder, notes, others))
    if not names:
        readable = sorted(name for name in others if Path(name).suffix.lower() in SUPPORTED)
        mend = (
            f"give one of its files instead: {', '.join(readable[:5])}" if readable else "give a folder with passages"
        )
        raise CorpusError(f"folder {folder} holds no {BEIR_FILE} and no .txt or .md file; {mend}")
    for name in names:
        yield _read_text(folder / name, name)


def _text_files(folder: Path, notes: Counter[str], others: set[str]) -> Iterator[str]:
    """Paths below the folder, relative to it and with ``/``. Hidden files and links out of the folder are counted."""
    root = folder.resolve()

    def fail(error: OSError) -> NoReturn:
        raise error

    for parent, folders, files in os.walk(folder, onerror=fail):
        here = Path(parent)
        for name in list(folders):
            # os.walk lists a linked folder and does not enter it: it may lie outside, or make a circle.
            if name.startswith(".") or (here / name).is_symlink():
                notes["folders skipped: hidden" if name.startswith(".") else "folders skipped: link"] += 1
                folders.remove(name)
        for name in files:
            path = here / name
            if name.startswith("."):
                notes["files skipped: hidden"] += 1
            elif path.suffix.lower() not in TEXT_ENDINGS:
                notes["files skipped: not .txt or .md"] += 1
                others.add(path.relative_to(folder).as_posix())
            elif path.is_symlink() and not (path.is_file() and path.resolve().is_relative_to(root)):
                notes["files skipped: link out of the folder or to nothing"] += 1
            else:
                yield path.relative_to(folder).as_posix()


def _read_text(path: Path, name: str) -> Placed:
    data = path.read_bytes()
    # Only a broken file is looked at line by line, to name the line.
    try:
        text = data.decode("utf-8-sig")
        broken = "\0" in text
    except UnicodeDecodeError:
        broken = True
    if broken:
        for number, line in enumerate(data.split(b"\n"), start=1):
            _decode(line, f"{path}:{number}", first=number == 1)
    title = (path.suffix.lower() == ".md" and _heading(text)) or path.stem
    return str(path), _passage({"id": name, "title": title, "text": text}, path.name, str(path))


def _heading(text: str) -> str:
    """The first heading of a Markdown text; neither in its front matter nor in a fenced block of code."""
    lines = text.splitlines()
    start = 0
    if lines and lines[0].rstrip() == "---":
        start = next((number for number, line in enumerate(lines[1:], 2) if line.rstrip() in ("---", "...")), 0)
    fence = ""
    previous = ""
    for line in lines[start:]:
        found = _FENCE.match(line)
        if fence:
            if found and found[1].startswith(fence) and not line[found.end() :].strip():
                fence = ""
        elif found:
            fence = found[1]
        elif heading := _ATX.match(line):
            return heading[1].strip()
        elif previous.strip() and _SETEXT.match(line):
            return previous.strip()
        previous = "" if fence or found else line
    return ""


def _read_jsonl(path: Path) -> Iterator[Placed]:
    with path.open("rb") as handle:
        for place, line in _lines(handle, path):
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
            yield place, _passage(row, path.name, place)


def _read_csv(path: Path) -> Iterator[Placed]:
    csv.field_size_limit(max(csv.field_size_limit(), CSV_FIELD_CHARS))  # the default refuses 131,073 characters
    with path.open("rb") as handle:
        lines = (line for _, line in _lines(handle, path))
        reader = csv.reader(lines, "excel-tab" if path.suffix.lower() == ".tsv" else "excel", strict=True)
        columns: list[str] = []
        first = 1
        while True:
            place = f"{path}:{first}"
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise CorpusError(
                    f'{place}: not valid {path.suffix[1:].upper()}: {error}; a field that begins with " must end with '
                    'one, and a " inside it is written twice'
                ) from error
            if row is None:
                return
            first = reader.line_num + 1
            if not row:  # a blank line
                continue
            if not columns:
                columns = [name.strip() for name in row]
                _check_columns(columns, place)
                continue
            if len(row) != len(columns):
                raise CorpusError(
                    f"{place}: {len(row)} fields, but the header has {len(columns)}; "
                    "put a field that holds the separator or a newline between double quotes"
                )
            yield place, _passage(dict(zip(columns, row, strict=True)), path.name, place)


def _read_parquet(path: Path) -> Iterator[Placed]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_columns(names, str(path))
            wanted = [name for name in FIELDS if name in names]
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=wanted):
                for index in range(batch.num_rows):
                    number += 1
                    place = f"{path}: row {number}"
                    try:
                        row = {name: batch.column(name)[index].as_py() for name in wanted}
                    except UnicodeDecodeError as error:
                        raise CorpusError(f"{place}: not valid UTF-8 ({error.reason}); write it anew") from error
                    yield place, _passage(row, path.name, place)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CorpusError(f"{path}: not readable as Parquet after row {number}: {error}; write it anew") from error


def _check_columns(columns: Sequence[str], place: str) -> None:
    if "text" not in columns:
        raise CorpusError(f"{place}: no column is named text; the columns are: {_listed(columns)}; rename one to text")
    twice = [name for name, count in Counter(columns).items() if count > 1 and name in FIELDS]
    if twice:
        raise CorpusError(f"{place}: more than one column is named {twice[0]}; rename or remove one")


def _lines(handle: BinaryIO, path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(handle, start=1):
        place = f"{path}:{number}"
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


def _passage(row: Mapping[str, Any], source: str, place: str) -> Passage:
    if "text" not in row:
        raise CorpusError(f"{place}: no field is named text; the fields are: {_listed(row)}; rename one to text")
    text, title = row["text"], row.get("title")
    if title is None:
        title = ""
    for name, value in (("text", text), ("title", title)):
        if not isinstance(value, str):
            raise CorpusError(f"{place}: {name} is {_kind(value)}, not a string: {_short(value)}; write it as a string")
    given = next((row[name] for name in ("_id", "id") if row.get(name) not in (None, "")), None)
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
