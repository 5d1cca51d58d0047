"""The corpora of FRet-open: one TOML file each, made into passages that the student reads to their end.

::

    corpora/NAME.toml ─fetch, unpack─▶ files ─licence, reader─▶ documents ─gecko.corpus.ingest─▶ WORK/NAME/passages.jsonl

The documents are taken in an order that is random and always the same, so that a smaller corpus is the beginning of a larger.
"""

import json
import platform
import re
import shutil
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from documents import READERS
from packages import Package, fetch, files_below, is_allowed, licence_of, read_terms, unpack

from gecko.config.stages import CorpusConfig
from gecko.core.counts import Counts
from gecko.core.errors import CorpusError
from gecko.core.files import digest, file_sha256, read_json, write_bytes, write_json
from gecko.core.records import Passage
from gecko.core.text import words
from gecko.corpus import ingest
from gecko.corpus.chunk import load_tokenizer
from gecko.encoder.spec import resolve_model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION = 1  # raised when the same package gives other passages
START = "minilm"
WINDOW, TITLE_TOKENS = 256, 56  # what student and teacher read, and what of it is kept for the title
MIN_CHARS, MIN_WORDS, MIN_LETTERS = 80, 12, 0.6  # of a passage; letters among its signs
TITLE_CHARS = 120
LONG = "longer than the window"
FOLDER = Path(__file__).parent / "corpora"
KEYS = {
    "": {"genre", "language", "licence", "package", "python", "read", "passages", "queries"},
    "licence": {"name", "evidence", "source"},
    "package": {"name", "version", "path", "sha256"},
    "read": {"reader", "root", "include", "exclude", "without", "title_without", "skip_sections"},
    "passages": {"most", "of_a_document", "min_words", "leave_out"},
    "queries": {"kinds", "languages", "max_title", "min_seed_chars", "prompt"},
}


@dataclass(frozen=True)
class Corpus:
    """One TOML file.

    Attributes:
        name: of the file.
        genre: what kind of text it is, in words.
        language: of its text, as two letters.
        values: all of its tables.
        identity: hash of what its passages depend on.
    """

    name: str
    genre: str
    language: str
    values: Mapping[str, Any]
    identity: str

    def table(self, name: str) -> Mapping[str, Any]:
        """One of its tables; empty where it has none of this name."""
        found: Mapping[str, Any] = self.values.get(name, {})
        return found

    @property
    def most(self) -> int:
        """How many passages at most."""
        return int(self.table("passages").get("most", 2000))

    @property
    def origin(self) -> str:
        """What the passages are from, with its version."""
        package = self.table("package")
        return f"{package['name']} {package['version']}" if package else f"Python {self.values['python']}"


def load_corpora(folder: Path = FOLDER, names: list[str] | None = None) -> list[Corpus]:
    """The corpora of a folder, by name.

    Raises:
        CorpusError: a name is of none of them, or a file has a key that nobody knows.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    if unknown := sorted(set(names or ()) - files.keys()):
        raise CorpusError(f"no corpus is named {unknown[0]!r}; there are: {', '.join(files)}")
    return [_load(path) for name, path in files.items() if not names or name in names]


def _load(path: Path) -> Corpus:
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    for table, known in KEYS.items():
        if strange := sorted((values.get(table, {}) if table else values).keys() - known):
            raise CorpusError(
                f"{path}: {table or 'the file'} has the key {strange[0]!r}; known: {', '.join(sorted(known))}"
            )
    text = json.dumps({name: value for name, value in values.items() if name != "queries"}, sort_keys=True)
    return Corpus(path.stem, values["genre"], values["language"], values, digest(text))


@dataclass(frozen=True)
class Made:
    """The passages of a corpus: their file, and what is known of it."""

    path: Path
    facts: Mapping[str, Any]

    def rows(self) -> Iterator[dict[str, str]]:
        """Each passage: ``id``, ``title``, ``text``, ``source``, ``licence``."""
        with self.path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)


def make_passages(corpus: Corpus, work: Path, mirror: str = "", most: int | None = None) -> Made:
    """The passages of a corpus, or those that were made before of the same package by the same rules.

    Args:
        corpus: which.
        work: the folder of the packages, and of a folder for each corpus.
        mirror: see :func:`packages.fetch`.
        most: fewer passages than the corpus has.

    Raises:
        CorpusError: a package, a program or a licence is not as it is expected, or no passage is left.
    """
    most = min(most or corpus.most, corpus.most)
    folder = work / corpus.name
    path, facts_path = folder / "passages.jsonl", folder / "passages.json"
    key = digest(
        corpus.identity, str(VERSION), str(most), platform.python_version() if "python" in corpus.values else ""
    )
    if facts_path.exists() and path.exists():
        facts = read_json(facts_path)
        if facts["key"] == key and facts["sha256"] == file_sha256(path):
            return Made(path, facts)
    counts = Counts()
    documents = folder / "documents"
    licences = _stage(corpus, work, documents, mirror, most, counts)
    rows = _chosen(corpus, documents, licences, most, counts)
    shutil.rmtree(documents, ignore_errors=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_bytes(path, text.encode("utf-8"))
    facts = {
        "key": key,
        "sha256": file_sha256(path),
        "passages": len(rows),
        "documents": len({row["source"] for row in rows}),
        "licences": dict(Counter(row["licence"] for row in rows).most_common()),
        "drops": dict(counts.drops.most_common()),
        "origin": corpus.origin,
        "genre": corpus.genre,
        "language": corpus.language,
    }
    write_json(facts_path, facts)
    return Made(path, facts)


def _stage(
    corpus: Corpus, work: Path, documents: Path, mirror: str, most: int, counts: Counts
) -> dict[str, tuple[str, str]]:
    """Write documents that may be passed on, in a random order and enough for ``most`` passages.

    Returns:
        by the name of a document's file, its path in the source and its licence.
    """
    shutil.rmtree(documents, ignore_errors=True)
    documents.mkdir(parents=True)
    if "python" in corpus.values:
        return _stage_stdlib(corpus, documents)
    package = Package(**corpus.table("package"))
    root = unpack(
        fetch(package, work / "packages", mirror), work / "unpacked" / f"{package.name}-{package.sha256[:12]}"
    )
    about = root / "usr/share/doc" / package.name / "copyright"
    copyright_text = about.read_text(encoding="utf-8", errors="replace")
    stated, terms = corpus.table("licence"), read_terms(copyright_text)
    if "name" in stated and " ".join(stated["evidence"].split()) not in " ".join(copyright_text.split()):
        raise CorpusError(f"{about} does not say {stated['evidence']!r}, on which the licence {stated['name']} rests")
    read = corpus.table("read")
    found: dict[str, tuple[str, str]] = {}
    files = files_below(root / read["root"], read["include"], read.get("exclude", ()))
    for name, path in sorted(files, key=lambda file: digest(corpus.name, file[0]))[: max(50, most // 2)]:
        stem = name.removesuffix(".gz")
        source = stated.get("source", "{stem}").format(stem=stem, bare=stem.rpartition(".")[0])
        licence = stated.get("name") or licence_of(source, terms)
        if not is_allowed(licence):
            counts.drop(f"licence {licence or 'unknown'}", name)
            continue
        for file, place, content in READERS[read["reader"]](name, path):
            write_bytes(documents / file, content)
            found[file] = (place, licence)
    return found


def _stage_stdlib(corpus: Corpus, documents: Path) -> dict[str, tuple[str, str]]:
    from gecko.corpus.stdlib import SOURCE, read_stdlib

    here, wanted = ".".join(platform.python_version_tuple()[:2]), corpus.values["python"]
    if here != wanted:
        raise CorpusError(
            f"{corpus.name} is the documentation of Python {wanted}, and this is {here}; leave it out, or run it there"
        )
    rows = [{"id": row.id, "title": row.title, "text": row.text} for row in read_stdlib()]
    file = f"{SOURCE}.jsonl"
    write_bytes(documents / file, "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8"))
    return {file: (SOURCE, corpus.table("licence")["name"])}


def _chosen(
    corpus: Corpus, documents: Path, licences: Mapping[str, tuple[str, str]], most: int, counts: Counts
) -> list[dict[str, str]]:
    """Passages of documents in a random order until there are enough; of rows of a table, those whose hash is the least."""
    limit = int(corpus.table("passages").get("of_a_document", 25))
    order = [documents / file for file in licences]
    owners: dict[str, str] = {}
    if tables := all(file.suffix == ".jsonl" for file in order):
        order = [_drawn(corpus, order, 3 * most, owners)]
    taken: Counter[str] = Counter()
    rows: list[dict[str, str]] = []
    tokenizer = load_tokenizer(resolve_model(START))
    for passage in _read(corpus, order, tables, counts, tokenizer):
        file = owners.get(passage.id.partition("#")[0]) or passage.source.rpartition("/")[2]
        source, licence = licences[file]
        clean = _clean(passage, corpus)
        if reason := _unfit(clean, corpus) or (len(tokenizer.encode(clean.content)) > WINDOW and LONG):
            counts.drop(reason, f"{clean.title}: {clean.text}")
            continue
        taken[file] += 1
        if not tables and taken[file] > limit:
            counts.drop(f"more than {limit} of a document", f"{file}: {clean.text}")
            continue
        row = {"id": f"{corpus.name}:{clean.id}", "title": clean.title, "text": clean.text}
        rows.append(row | {"source": f"{corpus.origin}: {source}", "licence": licence})
        if len(rows) == most:
            break
    return rows


def _drawn(corpus: Corpus, files: list[Path], most: int, owners: dict[str, str]) -> Path:
    """A table of rows drawn from all tables, before anything dear is done with them; ``owners`` gets the file of each id."""
    lines = [(digest(corpus.name, line), line, file.name) for file in files for line in file.open(encoding="utf-8")]
    lines.sort()
    owners |= {json.loads(line)["id"]: name for _, line, name in lines[:most]}
    target = files[0].with_name("drawn.jsonl")
    write_bytes(target, "".join(line for _, line, _ in lines[:most]).encode("utf-8"))
    return target


def _read(corpus: Corpus, files: list[Path], tables: bool, counts: Counts, tokenizer: "Tokenizer") -> Iterator[Passage]:
    """What gecko reads of the documents: cut at the size of the window, each text once."""
    config = CorpusConfig(
        sources=[str(file) for file in files],
        chunk_tokens=WINDOW - TITLE_TOKENS,
        min_chars=1 if tables else MIN_CHARS,
        languages=[corpus.language] if corpus.language != "en" else [],
        near_duplicates=0.8,
    )
    return ingest(config, counts, tokenizer=tokenizer)


def _clean(passage: Passage, corpus: Corpus) -> Passage:
    read = corpus.table("read")
    title, text = passage.title, passage.text
    for pattern in read.get("title_without", ()):
        title = re.sub(pattern, "", title)
    for pattern in read.get("without", ()):
        text = re.sub(pattern, "", text, flags=re.MULTILINE)
    if len(title) > TITLE_CHARS:  # the end says more than the beginning: it is the nearest heading
        parts = title.split(" › ")
        title = f"{parts[0]} › {parts[-1]}" if len(parts) > 2 else title
        title = title if len(title) <= TITLE_CHARS else f"{title[: TITLE_CHARS - 1]}…"
    return Passage(passage.id, title.strip(), text.strip(), passage.source)


def _unfit(passage: Passage, corpus: Corpus) -> str:
    """Why a passage is not worth a query: what its recipe leaves out, a section that all pages have, few words, signs."""
    if any(
        re.search(pattern, passage.text, re.IGNORECASE) for pattern in corpus.table("passages").get("leave_out", ())
    ):
        return "left out by a pattern of the recipe"
    sections = passage.title.split(" › ")[1:]
    if any(section in corpus.table("read").get("skip_sections", ()) for section in sections):
        return "section without content"
    prose = re.sub(r"^```.*?(^```|\Z)", "", passage.text, flags=re.MULTILINE | re.DOTALL)
    if len(words(prose)) < corpus.table("passages").get("min_words", MIN_WORDS):
        return "too few words"
    signs = re.sub(r"\s", "", passage.text)
    return "mostly signs" if sum(map(str.isalpha, signs)) < MIN_LETTERS * len(signs) else ""
