"""Which files a source has, members of archives among them, and their bytes."""

import gzip
import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn

import pyarrow as pa

from gecko.core.counts import Counts, left_out
from gecko.core.disk import temporary_file
from gecko.core.errors import CorpusError
from gecko.corpus.bounds import BROKEN_ARCHIVE, LARGE, UNSUPPORTED, Allowance, Dropped, Expanding

TEXT_ENDINGS = (".txt", ".md")
PARSED_ENDINGS = (".html", ".htm", ".pdf", ".docx")
DOCUMENT_ENDINGS = (*TEXT_ENDINGS, *PARSED_ENDINGS)
ROW_ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".zst")
SUPPORTED = (*ROW_ENDINGS, *DOCUMENT_ENDINGS)
BEIR_FILE = "corpus.jsonl"
SQL_SCHEMES = ("sqlite:", "postgresql:")
_SET_FILES = ("queries.*", "qrels.*", "qrels/*")  # that a BEIR set has beside it
OUTSIDE = "files skipped: link out of the folder or to nothing"
LINKED = "folders skipped: link"
ABOUT = ("readme", "license", "licence", "notice", "changelog", "citation")  # what tells of a data set, beside its rows
ENCRYPTED, UTF8_NAME = 1, 1 << 11  # flags of an archive's member


@dataclass(frozen=True)
class SourceFile:
    """One file, or one member of an archive, to be opened when its turn comes.

    Attributes:
        name: relative to its folder or archive; the id of a document.
        place: what errors call it.
        path: of the file on disk.
        member: of the archive at ``path``; none: the file itself.
        alone: whether the source is this file, so that nothing in it is an error.
        set: the folder of a BEIR set below the source, with which the ids of its passages begin.
        archive: that archive, open while its members are handed out.
        allowance: what all its members together may expand to.
    """

    name: str
    place: str
    path: Path
    member: zipfile.ZipInfo | None = None
    alone: bool = False
    set: str = ""
    archive: zipfile.ZipFile | None = None
    allowance: Allowance | None = None

    @property
    def ending(self) -> str:
        """``.jsonl`` for ``x.jsonl.gz``."""
        return ending_of(self.name)

    @property
    def source(self) -> str:
        """The name that passages carry."""
        return PurePosixPath(self.name if self.member is None else _slashed(self.name)).name


def ending_of(name: str) -> str:
    """The ending that says what a file holds, lower case and without that of a compression."""
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def plain_name(name: str) -> str:
    """The name without the ending of a compression."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in COMPRESSED else name


def is_remote(spec: str) -> bool:
    """Whether a source is a Hugging Face data set or a SQL query, and no file."""
    return spec.startswith(("hf:", *SQL_SCHEMES))


def source_files(spec: str) -> list[Path]:
    """The files that a source is read from, in order. Raises CorpusError: it does not exist, or is of another kind."""
    return [file.path for file in files_of(spec, Counts(), for_identity=True)]


def files_of(spec: str, counts: Counts, *, for_identity: bool = False) -> Iterator[SourceFile]:
    """The files of a source, in order, those in an archive one by one.

    With ``for_identity``, archives are files like others, and the queries of BEIR sets below the source are among them: a
    source is known by the files by which earlier versions knew it.
    """
    if not spec.strip():
        raise CorpusError(f"corpus source {spec!r} is blank; give a file, a folder or stdlib")
    path = Path(os.path.expanduser(spec))  # noqa: PTH111 - Path.expanduser fails on a file that is named ~x
    if path.is_dir():
        found = _folder(path, counts, for_identity)
    elif not path.exists() and any(mark in spec for mark in "*?["):
        found = _matching(path, counts, for_identity)
    else:
        found = iter([_one(path)])
    for file in found:
        if file.ending == ".zip" and not for_identity:
            yield from _members(file, counts)
        else:
            yield file


def _one(path: Path) -> SourceFile:
    if not path.exists():
        raise CorpusError(f"corpus source {path} does not exist; give a file, a folder or stdlib")
    if ending_of(path.name) not in (*SUPPORTED, ".zip"):
        raise CorpusError(
            f"{path}: cannot read a file that ends in {path.suffix.lower() or 'nothing'!r}; "
            f"supported are {', '.join(SUPPORTED)}, these with .gz or .zst, .zip, a folder, and stdlib"
        )
    if path.is_file() and path.stat().st_size == 0:
        raise CorpusError(f"{path} is empty; give a file with passages")
    return SourceFile(path.name, str(path), path, alone=True)


def _folder(folder: Path, counts: Counts, queries: bool) -> Iterator[SourceFile]:
    if (folder / BEIR_FILE).is_file():
        yield _one(folder / BEIR_FILE)
        return
    seen = Counts()
    names, sets = sorted(_walk(folder, seen)), dict[str, str]()
    if not queries:
        names, sets = _without_queries(names, str(folder), seen)
    names = _without_readmes(names, str(folder), seen)
    documents = [name for name in names if ending_of(name) in (*DOCUMENT_ENDINGS, ".zip")]
    rows = [name for name in names if ending_of(name) in ROW_ENDINGS]
    if documents:
        for name in rows:
            seen.note("files skipped: rows beside documents", str(folder / name))
    counts.add(seen)
    chosen = documents or rows
    if not chosen:
        raise CorpusError(
            f"folder {folder} holds no {BEIR_FILE} and no file that can be read ({', '.join(SUPPORTED)}, .zip); "
            f"{_links(folder, seen) or 'give a folder with passages'}{left_out(seen)}"
        )
    for name in chosen:
        yield SourceFile(name, str(folder / name), folder / name, set=sets.get(name, ""))


def _links(folder: Path, seen: Counts) -> str:
    """How the files are read that are links out of a folder, where it has such."""
    if not (links := seen.notes[OUTSIDE] + seen.notes[LINKED]):
        return ""
    what = "file or folder in it is a link" if links == 1 else "files or folders in it are links"
    return f"{links:,} {what} out of it: give these by name, or a copy that holds them (cp -rL {folder} COPY)"


def _without_queries(
    names: Sequence[str], root: str, counts: Counts, between: str = "/", beside: Iterable[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Of a BEIR set its ``corpus.jsonl`` alone: queries and judgements are no passages; what is left out is counted.

    ``names`` are files below ``root``, and ``beside`` files that tell of a set, too, and are none of the source's.
    Returns the names that are read, and of each that is a set's corpus the set's folder.
    """
    plain = {name: PurePosixPath(plain_name(_slashed(name))) for name in names}
    corpora = {path.parent for path in plain.values() if path.name == BEIR_FILE}
    told = [*plain.values(), *(PurePosixPath(plain_name(name)) for name in beside)]
    asked = {path.parent for path in told if path.stem == "queries"}
    judged = {
        path.parents[place]
        for path in told
        for place in (0, 1)[: len(path.parents)]
        if "qrels" in (path.stem, path.parent.name)
    }
    sets = corpora & (asked | judged)
    kept, folders = [], {}
    for name, path in plain.items():
        if sets.isdisjoint(path.parents):
            kept.append(name)
        elif path.name == BEIR_FILE and path.parent in sets:
            kept.append(name)
            folders[name] = "" if path.parent == PurePosixPath() else f"{path.parent}/"
        else:
            counts.note("files skipped: beside the corpus.jsonl of a BEIR set", f"{root}{between}{name}")
    return kept, folders


def _without_readmes(names: Sequence[str], root: str, counts: Counts, between: str = "/") -> list[str]:
    """The names without a README and its like, where there is nothing else beside files of rows."""
    documents = [name for name in names if ending_of(name) in (*DOCUMENT_ENDINGS, ".zip")]
    if len(documents) == len(names) or not all(
        PurePosixPath(plain_name(_slashed(name))).stem.lower() in ABOUT for name in documents
    ):
        return list(names)
    for name in documents:
        counts.note("files skipped: a README beside rows", f"{root}{between}{name}")
    return [name for name in names if name not in documents]


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
                counts.note("folders skipped: hidden" if name.startswith(".") else LINKED, str(here / name))
                folders.remove(name)
        for name in files:
            if _is_wanted(here / name, root, counts):
                yield (here / name).relative_to(folder).as_posix()


def _is_wanted(path: Path, root: Path, counts: Counts) -> bool:
    if path.name.startswith("."):
        reason = "files skipped: hidden"
    elif ending_of(path.name) not in (*SUPPORTED, ".zip"):
        reason = "files skipped: of another kind"
    elif path.is_symlink() and not (path.is_file() and path.resolve().is_relative_to(root)):
        reason = OUTSIDE
    elif not path.is_file():  # a pipe would be waited for without end
        reason = "files skipped: no regular file"
    else:
        return True
    counts.note(reason, str(path))
    return False


def _matching(pattern: Path, counts: Counts, queries: bool) -> Iterator[SourceFile]:
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
            counts.note("files skipped: hidden", str(path))
        return not hidden

    seen = Counts()
    files = (path for path in base.glob(rest) if not path.is_dir())
    found = sorted(path for path in files if is_shown(path) and _is_wanted(path, root, seen))
    names, sets = [path.relative_to(base).as_posix() for path in found], dict[str, str]()
    if not queries:
        corpora = (path.parent for path in found if plain_name(path.name) == BEIR_FILE)
        near = (path for folder in corpora for part in _SET_FILES for path in folder.glob(part))
        beside = [path.relative_to(base).as_posix() for path in near if _is_wanted(path, root, Counts())]
        names, sets = _without_queries(names, str(base), seen, beside=beside)
    counts.add(seen)
    if not found:
        raise CorpusError(
            f"corpus source {pattern} matches no file that can be read; {_links(base, seen) or 'mend the pattern'}"
            f"{left_out(seen)}"
        )
    for name in names:
        yield SourceFile(name, str(base / name), base / name, set=sets.get(name, ""))


def _members(archive: SourceFile, counts: Counts) -> Iterator[SourceFile]:
    """The members of a zip file, sorted by name. A name is a label only: nothing is unpacked under it."""
    try:
        opened = zipfile.ZipFile(archive.path)
    except NotImplementedError as error:
        counts.drop(UNSUPPORTED, f"{archive.place} ({error}; pack it anew)")
        return
    except (zipfile.BadZipFile, RuntimeError) as error:
        counts.drop(BROKEN_ARCHIVE, f"{archive.place} ({error})")
        return
    prefix = "" if archive.alone else f"{archive.name}/"
    allowance = Allowance(archive.path.stat().st_size)
    with opened:
        entries: dict[str, zipfile.ZipInfo] = {}
        for entry in opened.infolist():
            if _is_member(entry, archive.place, counts):
                if entry.filename in entries:
                    counts.note(
                        "archive members skipped: a later one has the same name", f"{archive.place}!{entry.filename}"
                    )
                entries[entry.filename] = entry
        names, sets = _without_queries(sorted(entries), archive.place, counts, "!")
        for name in _without_readmes(names, archive.place, counts, "!"):
            yield SourceFile(
                prefix + name,
                f"{archive.place}!{name}",
                archive.path,
                entries[name],
                set=prefix + sets[name] if name in sets else "",
                archive=opened,
                allowance=allowance,
            )


def _is_member(entry: zipfile.ZipInfo, archive: str, counts: Counts) -> bool:
    name, place = _slashed(entry.filename), f"{archive}!{entry.filename}"
    if name.endswith("/"):
        return False
    if any((part.startswith(".") and part.strip(".")) or part == "__MACOSX" for part in PurePosixPath(name).parts):
        counts.note("archive members skipped: hidden", place)
    elif entry.flag_bits & ENCRYPTED:
        counts.drop("locked archive member", place)
    elif ending_of(name) == ".zip":
        counts.note("archive members skipped: a zip in a zip is not read", place)
    elif ending_of(name) not in SUPPORTED:
        counts.note("archive members skipped: of another kind", place)
    else:
        if not entry.flag_bits & UTF8_NAME and not name.isascii():
            counts.note("archive members whose name is not marked as UTF-8, and is read as code page 437", place)
        return True
    return False


def _slashed(name: str) -> str:
    """The name of an archive's member with ``/`` between folders, where some programs for Windows write a backslash."""
    return name.replace("\\", "/")


@contextmanager
def opened(file: SourceFile) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed within bounds."""
    with ExitStack() as stack:
        raw: BinaryIO
        if file.archive is not None and file.member is not None and file.allowance is not None:
            packed = file.member.compress_size
            try:
                inner: Any = file.archive.open(file.member)
            except NotImplementedError as error:
                method = f"method {file.member.compress_type} of zip files, {error}"
                raise Dropped(UNSUPPORTED, f"{method}; pack it anew with Deflate") from error
            except (zipfile.BadZipFile, RuntimeError) as error:
                raise Dropped(BROKEN_ARCHIVE, str(error)) from error
            raw = stack.enter_context(io.BufferedReader(Expanding(inner, Allowance(packed), file.allowance)))
        else:
            packed = file.path.stat().st_size
            raw = stack.enter_context(file.path.open("rb"))
        match PurePosixPath(file.name.lower()).suffix:
            case ".gz":
                raw = stack.enter_context(io.BufferedReader(Expanding(gzip.GzipFile(fileobj=raw), Allowance(packed))))
            case ".zst":
                stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
                raw = stack.enter_context(io.BufferedReader(Expanding(stream, Allowance(packed))))
        yield raw


@contextmanager
def on_disk(file: SourceFile, largest: int) -> Iterator[Path]:
    """A path that holds the decompressed file, for parsers that must seek."""
    if file.member is None and PurePosixPath(file.name.lower()).suffix not in COMPRESSED:
        if file.ending != ".parquet" and file.path.stat().st_size > largest:
            raise Dropped(LARGE, f"more than {largest >> 20} MB")
        yield file.path
        return
    with opened(file) as handle, temporary_file(file.ending) as copy:
        left = largest
        while data := handle.read(1 << 20):
            left -= len(data)
            if left < 0:
                raise Dropped(LARGE, f"more than {largest >> 20} MB")
            copy.write(data)
        copy.flush()
        yield Path(copy.name)
