"""Each command of docs/how-to/corpora.md, as it stands there, on a corpus of that kind."""

import gzip
import json
import re
import shlex
import sqlite3
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from gecko.cli.main import app
from gecko.core.records import Passage
from gecko.run.folder import Run

from .conftest import pdf_bytes

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "corpora.md"
COMMANDS = re.findall(r"^\|[^|]+\| `(gecko distill [^`]+)`", DOCS.read_text(encoding="utf-8"), re.MULTILINE)

ROWS = [{"id": f"r{number}", "title": f"T{number}", "text": f"the text of row {number}"} for number in range(5)]
OTHERS = [{"id": f"s{number}", "title": "", "text": f"some other text of row {number}"} for number in range(3)]
PAGES = [
    " ".join(f"Page {page} has a sentence of number {number}, and it says no more." for number in range(50))
    for page in (1, 2, 3)
]
SQL = "#SELECT id, title, body AS text FROM page ORDER BY id"

IDS = [row["id"] for row in ROWS]
# Ids of what each source gives; pieces of a document without their numbers.
EXPECTED = {
    "corpus.jsonl": IDS,
    "articles.csv": IDS,
    "articles.tsv": IDS,
    "articles.parquet": IDS,
    "posts.csv": IDS,
    "corpus.jsonl.gz": [*IDS, "s0", "s1", "s2"],
    "notes.txt": ["notes.txt"],
    "manual.md": ["manual.md"],
    "page.html": ["page.html"],
    "report.pdf": ["report.pdf"],
    "letter.docx": ["letter.docx"],
    "docs": ["a.md", "more/b.md", "more/c.txt"],
    "tables": [*IDS, "s0", "s1", "s2"],
    "beir": IDS,
    "docs/**/*.md": ["a.md", "more/b.md"],
    "export.zip": ["a.md", "more/b.txt"],
    "hf:NAME": IDS,
    f"sqlite:///shop.db{SQL}": IDS,
    f"postgresql://me@host/db{SQL}": ["1", "2", "3", "4"],
}


def delimited(rows: list[dict[str, str]], separator: str, *names: str) -> str:
    lines = [names or tuple(rows[0]), *(tuple(row.values()) for row in rows)]
    return "\n".join(separator.join(line) for line in lines)


def jsonl(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files and folders that the commands name."""
    made = tmp_path_factory.mktemp("sources")
    sections = [f"## Section {number}\n\n{page}" for number, page in enumerate(PAGES)]
    html = "".join(f"<h2>Section {number}</h2><p>{page}</p>" for number, page in enumerate(PAGES))
    texts = {
        "corpus.jsonl": jsonl(ROWS),
        "articles.csv": delimited(ROWS, ","),
        "articles.tsv": delimited(ROWS, "\t"),
        "posts.csv": delimited(ROWS, ",", "key", "headline", "body"),
        "notes.txt": "\n\n".join(PAGES),
        "manual.md": "\n\n".join(["# Manual", *sections]),
        "page.html": f"<html><head><title>Page</title></head><body><article>{html}</article></body></html>",
        "docs/a.md": "# A\n\nThe first.",
        "docs/more/b.md": "# B\n\nThe second.",
        "docs/more/c.txt": "The third.",
        "tables/a.jsonl": jsonl(ROWS),
        "tables/b.csv": delimited(OTHERS, ","),
        "beir/corpus.jsonl": jsonl(ROWS),
        "beir/queries.jsonl": jsonl(OTHERS),
        "NAME/train.jsonl": jsonl(ROWS),
    }
    for name, text in texts.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text, encoding="utf-8")
    (made / "corpus.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS).encode()))
    with pa.CompressedOutputStream(str(made / "more.csv.zst"), "zstd") as stream:
        stream.write(delimited(OTHERS, ",").encode())
    pq.write_table(pa.Table.from_pylist(ROWS), made / "articles.parquet")
    lines = [f"BT /F1 12 Tf 50 700 Td ({page}) Tj ET".encode() for page in PAGES]
    (made / "report.pdf").write_bytes(pdf_bytes(*lines))
    _word(made / "letter.docx")
    with zipfile.ZipFile(made / "export.zip", "w") as archive:
        archive.writestr("a.md", "# A\n\nThe first.")
        archive.writestr("more/b.txt", "The second.")
    base = sqlite3.connect(made / "shop.db")
    with base:
        base.execute("CREATE TABLE page (id TEXT, title TEXT, body TEXT)")
        base.executemany("INSERT INTO page VALUES (?, ?, ?)", [tuple(row.values()) for row in ROWS])
    base.close()
    return made


def _word(path: Path) -> None:
    docx = pytest.importorskip("docx", reason="gecko-embed[corpus] is not installed")
    document = docx.Document()
    for number, page in enumerate(PAGES):
        document.add_heading(f"Section {number}", 1)
        document.add_paragraph(page)
    document.save(str(path))


def test_every_kind_has_its_command() -> None:
    assert [shlex.split(command)[2] for command in COMMANDS] == list(EXPECTED)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: re.split("[#:]", shlex.split(command)[2])[0])
def test_the_command_reads_its_corpus(
    command: str,
    folder: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    words = [str(run) if word == "RUN" else word for word in shlex.split(command)]
    source = words[2]
    if source.startswith("postgresql:"):
        server = request.getfixturevalue("postgresql")
        words[2] = source.replace("postgresql://me@host/db", server)
    settings = ("mine.n=2", "generate.queries=2", "generate.min_seed_chars=1", "check.enabled=false")
    settings += ("corpus.chunk_chars=2000",)  # the tiny model reads half a sentence, and halves repeat
    quick = ["--llm", "fake", "--start", str(tiny_model), *(word for one in settings for word in ("--set", one))]
    done = CliRunner().invoke(app, [*words[1:], *quick, "--dry-run"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert "passages, 2 queries" in done.output
    with Run(run) as held:
        passages = held.read("ingest", Passage)
        assert not held.finished("ingest").drops
    assert list(dict.fromkeys(passage.id.partition("#")[0] for passage in passages)) == EXPECTED[source]
    if len(EXPECTED[source]) == 1:
        whole = " ".join(passage.text for passage in passages)
        assert all(f"Page {page} has a sentence of number {n}," in whole for page in (1, 2, 3) for n in range(50))
        assert len(passages) >= 3
    elif EXPECTED[source][0] == "r0":
        titled = [(passage.title, passage.text) for passage in passages[:5]]
        assert titled == [(row["title"], row["text"]) for row in ROWS]
