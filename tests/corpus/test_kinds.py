"""Every kind of source gives the same passages as the plain file it stands for."""

import gzip
import io
import json
import sqlite3
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gecko.config.stages import CorpusConfig
from gecko.core.counts import Counts
from gecko.core.errors import CorpusError
from gecko.corpus import ingest
from gecko.corpus.documents import Documents
from gecko.corpus.readers import Reader, read_placed, read_source, source_identity

ROWS = [{"id": f"r{number}", "title": f"T{number}", "text": f"the text of row {number}"} for number in range(5)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
EXPECTED = [(row["id"], row["title"], row["text"]) for row in ROWS]

PAGE = """<!DOCTYPE html><html lang="en"><head><title>How to prune an apple tree</title>
<script>document.write("evil one")</script><style>p { color: red }</style></head><body>
<nav><ul><li><a href="/">Home page</a></li><li><a href="/shop">Garden shop offers</a></li></ul></nav>
<main><article><h1>How to prune an apple tree</h1>
<p>Prune an apple tree in late winter, while it is dormant and before the buds begin to swell in the spring sun.</p>
<h2>Tools that you need</h2>
<p>A sharp pair of secateurs, a pruning saw for the thicker branches and a stable ladder are all that is needed here.</p>
<h2>The order of the cuts</h2>
<p>Take out dead wood first, then branches that cross or rub, and last those that grow towards the middle.</p>
</article></main><footer><p>Copyright by nobody, all rights reserved.</p></footer>
<script>evil("two")</script></body></html>"""


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def triples(spec: object, reader: Reader | None = None) -> list[tuple[str, str, str]]:
    return [(passage.id, passage.title, passage.text) for passage in read_source(str(spec), reader)]


def csv_bytes(separator: str) -> bytes:
    return "\n".join([separator.join(["id", "title", "text"]), *(separator.join(row) for row in EXPECTED)]).encode()


@pytest.mark.parametrize("packing", ["", ".gz", ".zst", ".GZ"])
@pytest.mark.parametrize(("kind", "data"), [("jsonl", JSONL), ("csv", csv_bytes(",")), ("tsv", csv_bytes("\t"))])
def test_rows_through_a_compression(tmp_path, kind, data, packing):
    pack = {".gz": gzip.compress, ".zst": zst}.get(packing.lower(), bytes)
    path = tmp_path / f"x.{kind}{packing}"
    path.write_bytes(pack(data))
    assert triples(path) == EXPECTED
    assert {passage.source for passage in read_source(str(path))} == {path.name}


def test_gzip_of_several_streams(tmp_path):
    lines = JSONL.splitlines(keepends=True)
    (tmp_path / "x.jsonl.gz").write_bytes(b"".join(map(gzip.compress, lines)))
    (tmp_path / "y.jsonl.zst").write_bytes(b"".join(map(zst, lines)))
    assert triples(tmp_path / "x.jsonl.gz") == triples(tmp_path / "y.jsonl.zst") == EXPECTED


def test_a_compressed_text_has_the_plain_title(tmp_path):
    (tmp_path / "notes.txt.gz").write_bytes(gzip.compress(b"some text"))
    (tmp_path / "page.md.zst").write_bytes(zst(b"# Heading\n\nText"))
    assert triples(tmp_path) == [
        ("notes.txt.gz", "notes", "some text"),
        ("page.md.zst", "Heading", "# Heading\n\nText"),
    ]


def test_a_zip_is_read_like_a_folder(tmp_path):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS[3:]), buffer)
    archive = zipped(
        tmp_path / "all.zip",
        {
            "b/part.jsonl.gz": gzip.compress(b"".join(JSONL.splitlines(keepends=True)[:3])),
            "c.parquet": buffer.getvalue(),
            "a.md": b"# Heading\n\nText",
            "image.png": b"\x89PNG",
            ".hidden/x.txt": b"no",
            "__MACOSX/a.md": b"no",
        },
    )
    reader = Reader()
    assert triples(archive, reader) == [("a.md", "Heading", "# Heading\n\nText"), *EXPECTED]
    assert reader.counts.notes == {"archive members skipped: hidden": 2, "archive members skipped: of another kind": 1}
    assert triples(tmp_path)[0][0] == "all.zip/a.md"
    assert next(read_placed(str(archive), Reader()))[0] == f"{archive}!a.md"


def test_patterns(tmp_path):
    for name in ("a/x.md", "a/b/y.md", "a/b/z.txt", "other/x.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [row[0] for row in triples(tmp_path / "a/**/*.md")] == ["b/y.md", "x.md"]
    assert [row[0] for row in triples(tmp_path / "*/x.md")] == ["a/x.md", "other/x.md"]
    with pytest.raises(CorpusError, match=r"\*\.pdf matches no file"):
        triples(tmp_path / "*.pdf")
    with pytest.raises(CorpusError, match="there is no folder"):
        triples(tmp_path / "none/*.md")


@pytest.fixture
def documents():
    made = Documents(30.0)
    yield made
    made.close()


def test_html_without_boilerplate(tmp_path, documents):
    path = tmp_path / "page.html"
    path.write_text(PAGE)
    ((identifier, title, text),) = triples(path, Reader(documents=documents))
    assert (identifier, title) == ("page.html", "How to prune an apple tree")
    assert "## Tools that you need" in text and "Take out dead wood first" in text
    assert not any(word in text for word in ("evil", "Home page", "Copyright", "color"))


def test_html_with_all_its_text(tmp_path):
    documents = Documents(30.0, "all")
    (tmp_path / "page.htm").write_text(PAGE)
    ((_, _, text),) = triples(tmp_path / "page.htm", Reader(documents=documents))
    documents.close()
    assert "Home page" in text and "Take out dead wood" in text
    assert "evil" not in text


def test_pdf(pdf, documents):
    path = pdf("a.pdf", "First page.", "Second page.", title="A report")
    assert triples(path, Reader(documents=documents)) == [("a.pdf", "A report", "First page.\n\nSecond page.")]
    untitled = pdf("b.pdf", "Some text.")
    assert triples(untitled, Reader(documents=documents)) == [("b.pdf", "b", "Some text.")]


def test_docx(tmp_path, documents):
    from docx import Document

    document = Document()
    document.core_properties.title = ""
    document.add_heading("The manual", 0)
    document.add_heading("Cleaning", 1)
    document.add_paragraph("Wipe it with a dry cloth.")
    table = document.add_table(1, 2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "left", "right"
    document.save(str(tmp_path / "m.docx"))
    assert triples(tmp_path / "m.docx", Reader(documents=documents)) == [
        ("m.docx", "The manual", "# The manual\n\n# Cleaning\n\nWipe it with a dry cloth.\n\nleft | right")
    ]


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
def test_a_pdf_that_opens_without_a_password(pdf, documents, algorithm):
    path = pdf("a.pdf", "Only the owner may print it.")
    encrypt(path, algorithm, user="")
    assert triples(path, Reader(documents=documents))[0][2] == "Only the owner may print it."


def test_a_pdf_that_needs_a_password_is_counted(pdf, tmp_path):
    encrypt(pdf("d/a.pdf", "Not for you."), "AES-256", user="word")
    pdf("d/b.pdf", "For all.")
    counts = Counts()
    assert [passage.text for passage in ingest(CorpusConfig(sources=[str(tmp_path / "d")]), counts)] == ["For all."]
    assert counts.drops == {"locked document": 1}
    assert "it is locked with a password; save it without one" in counts.examples["locked document"][0]


def test_an_encrypted_pdf_without_its_package(pdf, tmp_path, monkeypatch):
    path = pdf("a.pdf", "Only the owner may print it.")
    encrypt(path, "AES-128", user="")
    for package in ("cryptography", "Crypto"):
        (tmp_path / "none" / package).mkdir(parents=True)
        (tmp_path / "none" / package / "__init__.py").write_text("raise ImportError('not here')")
    monkeypatch.syspath_prepend(str(tmp_path / "none"))  # the extracting process has the same path
    documents = Documents(30.0, cache=tmp_path / "cache.sqlite")
    message = r"a\.pdf: .* not installed \(cryptography, .*AES\); install it with: pip install 'gecko-embed\[corpus\]'"
    with pytest.raises(CorpusError, match=message):
        triples(path, Reader(documents=documents))
    documents.close()
    monkeypatch.undo()
    documents = Documents(30.0, cache=tmp_path / "cache.sqlite")  # where nothing was kept of it
    assert triples(path, Reader(documents=documents))[0][2] == "Only the owner may print it."
    documents.close()


def encrypt(path: Path, algorithm: str, user: str) -> None:
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(path))
    writer.encrypt(user_password=user, owner_password="owner", algorithm=algorithm)
    writer.write(path)


def test_a_document_is_parsed_once(pdf, tmp_path):
    path = pdf("a.pdf", "First page.")
    for expected in (1, 0):
        documents = Documents(30.0, cache=tmp_path / "cache.sqlite")
        assert triples(path, Reader(documents=documents))[0][2] == "First page."
        assert documents.read_now == expected
        documents.close()


def test_other_names_of_fields(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("key,headline,body,text\n1,H,the body,not this\n")
    config = CorpusConfig(text_field="body", title_field="headline", id_field="key")
    assert triples(path, Reader(config)) == [("1", "H", "the body")]
    pq.write_table(pa.Table.from_pylist([{"key": 1, "headline": "H", "body": "the body"}]), tmp_path / "x.parquet")
    assert triples(tmp_path / "x.parquet", Reader(config)) == [("1", "H", "the body")]
    with pytest.raises(CorpusError, match=r"x.csv:1: no column is named content.*corpus\.text_field"):
        triples(path, Reader(CorpusConfig(text_field="content")))


def test_a_hugging_face_dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(JSONL)
    (folder / "test.jsonl").write_text('{"id": "t", "title": "", "text": "of the test split"}\n')
    assert triples(f"hf:{folder}") == EXPECTED
    assert triples(f"hf:{folder}@test") == [("t", "", "of the test split")]
    before = source_identity(f"hf:{folder}")
    (folder / "test.jsonl").write_text('{"id": "t", "title": "", "text": "changed"}\n')
    assert source_identity(f"hf:{folder}") != before
    with pytest.raises(CorpusError, match="hf:NAME"):
        triples("hf:")


def test_a_sql_query(tmp_path):
    path = tmp_path / "x.db"
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE page (number INTEGER, head TEXT, body TEXT)")
        base.executemany("INSERT INTO page VALUES (?, ?, ?)", [(1, "A", "first"), (2, None, "second")])
    base.close()
    spec = f"sqlite:///{path}#SELECT number AS id, head AS title, body AS text FROM page ORDER BY number"
    assert triples(spec) == [("1", "A", "first"), ("2", "", "second")]
    marks = f"sqlite:///{path}#SELECT number AS id, 'at :noon, 100 %' AS text FROM page WHERE body LIKE '%ir%'"
    assert triples(marks) == [("1", "", "at :noon, 100 %")]
    before = source_identity(spec)
    with sqlite3.connect(path) as base:
        base.execute("UPDATE page SET body = 'other' WHERE number = 2")
    base.close()
    assert source_identity(spec) != before
    for bad, says in {
        f"sqlite:///{path}": "no query",
        f"sqlite:///{tmp_path}/none.db#SELECT 1": "there is no file",
        f"sqlite:///{path}#SELECT absent FROM page": "no such column: absent",
        f"sqlite:///{path}#DELETE FROM page": "readonly",
        "postgresql://me:secret@host/db#SELECT 1": "must hold no password",
        "postgresql://127.0.0.1:1/db#SELECT 1": "mend the query|refused",
    }.items():
        with pytest.raises(CorpusError, match=says) as caught:
            triples(bad)
        assert "secret" not in str(caught.value)
    assert not (tmp_path / "none.db").exists()


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(CorpusError, match=r"pip install 'gecko-embed\[corpus\]'"):
        triples(f"sqlite:///{tmp_path}/x.db#SELECT 1")


def test_identity_follows_the_content(tmp_path):
    (tmp_path / "a.md").write_text("one")
    first = source_identity(str(tmp_path))
    (tmp_path / "unread.png").write_text("x")
    assert source_identity(str(tmp_path)) == first
    (tmp_path / "a.md").write_text("two")
    assert source_identity(str(tmp_path)) != first


def test_a_pattern_does_not_read_hidden_folders_that_it_does_not_name(tmp_path):
    for name in ("a/x.md", "a/.venv/y.md", "a/.git/z.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [row[0] for row in triples(tmp_path / "a/**/*.md")] == ["x.md"]
    assert [row[0] for row in triples(tmp_path / "a/.venv/*.md")] == ["y.md"]
    assert [row[0] for row in triples(tmp_path / "*/.git/*.md")] == ["a/.git/z.md"]
