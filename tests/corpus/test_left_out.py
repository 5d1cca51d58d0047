"""What of a source is not read, and how the user gets to know."""

import json
import re
import zipfile
from pathlib import Path

import pytest

from gecko.config.load import load_config
from gecko.config.stages import AskedConfig, CorpusConfig
from gecko.core.counts import Counts, left_out
from gecko.core.errors import CorpusError, EvaluationError
from gecko.core.files import digest, file_sha256
from gecko.core.records import Passage
from gecko.corpus import ingest
from gecko.corpus.readers import read_source, source_identity
from gecko.evaluation.beir import load_beir
from gecko.fret.user_queries import read_asked
from gecko.run.folder import Run
from gecko.stages.runner import Pipeline

from ..conftest import Listener

DEFLATE64 = 9


def run(*sources: object) -> tuple[list[Passage], Counts]:
    counts = Counts()
    return list(ingest(CorpusConfig(sources=[str(source) for source in sources]), counts)), counts


def error(*sources: object) -> str:
    with pytest.raises(CorpusError) as caught:
        run(*sources)
    return str(caught.value)


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def rows(*texts: str) -> str:
    return "".join(json.dumps({"_id": str(number), "text": text}) + "\n" for number, text in enumerate(texts))


def packed(path: Path, *files: tuple[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            entry = zipfile.ZipInfo("x")
            entry.filename, entry.compress_type = name, zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return path


def beir(folder: Path, tag: str, *, qrels: bool = True) -> Path:
    write(folder / "corpus.jsonl", rows(f"{tag} one", f"{tag} two"))
    write(folder / "queries.jsonl", rows(f"what of {tag}?"))
    if qrels:
        write(folder / "qrels/test.tsv", "query-id\tcorpus-id\tscore\n0\t1\t1\n")
    return folder


# --- runs and commands say it


def test_a_run_says_once_what_it_left_out(tmp_path, tiny_model):
    docs = tmp_path / "docs"
    for number in range(3):
        write(docs / f"{number}.md", f"the harbour has {number} cranes")
    write(docs / "blank.md", " \n")
    write(docs / "old.txt", "caf\xe9".encode("latin-1"))
    write(docs / "rows.jsonl", rows("a row"))

    def settings(n: int):
        base = {"corpus": {"sources": [str(docs)]}, "llm": "fake", "backbone": str(tiny_model)}
        return load_config(None, [f"mine.n={n}"], base)

    said = Listener()
    with Run(tmp_path / "run", settings(2)) as held:
        for _ in range(2):
            Pipeline(held, said).ingest()
    (told,) = (text for text in said.said if text.startswith("of what was read:"))
    assert f"1 empty, such as {docs}/blank.md" in told
    assert f"1 unreadable document, such as {docs}/old.txt:1: not valid UTF-8 at byte 4" in told
    assert f"1 files skipped: rows beside documents, such as {docs}/rows.jsonl" in told
    with (
        Run(tmp_path / "more", settings(9)) as held,
        pytest.raises(CorpusError, match=r"3 passages.*(?s:.*)rows beside documents, such as .*rows\.jsonl"),
    ):
        Pipeline(held).ingest()


def test_an_example_cannot_write_on_the_terminal():
    counts = Counts()
    counts.drop("empty", "a\x1b[2Jb\nc")
    counts.drop("too short")
    counts.notes["split"] += 2
    assert left_out(counts) == "\n  1 empty, such as a‹U+001B›[2Jb c\n  1 too short\n  2 split"
    assert left_out(Counts()) == ""


# --- links


def test_links_out_of_a_folder_are_told_with_the_way_to_read_them(tmp_path):
    store = write(tmp_path / "store/1", rows("one", "two")).parent
    snapshot = tmp_path / "snapshot"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data/rows.jsonl").symlink_to(store / "1")
    (snapshot / "README.md").symlink_to(store / "1")
    (snapshot / "more").symlink_to(store, target_is_directory=True)
    for source in (snapshot, f"{snapshot}/**/*.jsonl"):
        message = error(source)
        assert "link out of the folder or to nothing, such as " in message
        assert f"cp -rL {snapshot} COPY" in message
    assert "3 files or folders in it are links out of it: give these by name" in error(snapshot)
    assert len(run(snapshot / "data/rows.jsonl")[0]) == 2
    write(snapshot / "data/.now/a.md", "kept inside")
    (snapshot / "a.md").symlink_to(snapshot / "data/.now/a.md")
    assert [passage.id for passage in run(snapshot)[0]] == ["a.md"]


# --- documents that are no text


def test_documents_that_are_no_text_are_counted_and_the_others_read(tmp_path):
    write(tmp_path / "docs/a.md", "fine")
    write(tmp_path / "docs/b.txt", "line\nna\xefve".encode("latin-1"))
    write(tmp_path / "docs/c.txt", "wide".encode("utf-16"))
    packed(tmp_path / "docs.zip", ("a.md", "fine"))
    with zipfile.ZipFile(tmp_path / "docs.zip", "a") as archive:
        archive.writestr("b.txt", b"\xff\xff")
    passages, counts = run(tmp_path / "docs")
    assert [passage.text for passage in passages] == ["fine"]
    assert counts.drops == {"unreadable document": 2}
    one, two = counts.examples["unreadable document"]
    assert one.startswith(f"{tmp_path}/docs/b.txt:2: not valid UTF-8") and "UTF-16" in two
    passages, counts = run(tmp_path / "docs.zip")
    assert len(passages) == 1 and counts.drops == {"unreadable document": 1}
    (tmp_path / "docs/a.md").unlink()
    assert "b.txt:2: not valid UTF-8" in error(tmp_path / "docs")


# --- the same names in two sources


def test_two_folders_with_the_same_names_are_told_what_to_give(tmp_path):
    for version in ("old", "new"):
        write(tmp_path / f"both/{version}/start.md", f"Start of the {version} one.")
        packed(tmp_path / f"both/{version}.zip", ("start.md", f"Packed start of the {version} one."))
    both = tmp_path / "both"
    message = error(both / "old", both / "new")
    assert "id 'start.md' names two different passages" in message
    assert f"give the folder above both ({both})" in message
    passages, _ = run(re.search(r"\('([^']*)'\)", message)[1])
    assert [passage.id for passage in passages] == ["new/start.md", "old/start.md"]
    message = error(both / "old.zip", both / "new.zip")
    passages, _ = run(re.search(r"\('([^']*)'\)", message)[1])
    assert [passage.id for passage in passages] == ["new.zip/start.md", "old.zip/start.md"]
    assert len(run(both)[0]) == 4


# --- test sets below a source


@pytest.mark.parametrize("qrels", [True, False])
def test_of_a_set_below_a_source_the_corpus_alone_is_read(tmp_path, qrels):
    sets = tmp_path / "sets"
    for tag in ("boats", "trams"):
        write(beir(sets / tag, tag, qrels=qrels) / "README.md", "# A card")
    expected = {f"{tag}/{n}": f"{tag} {word}" for tag in ("boats", "trams") for n, word in enumerate(("one", "two"))}
    passages, counts = run(sets)
    assert {passage.id: passage.text for passage in passages} == expected
    assert counts.notes == {"files skipped: beside the corpus.jsonl of a BEIR set": 4 + 2 * qrels}
    files = [path for path in sets.rglob("*") if path.is_file()]
    zipped = packed(tmp_path / "sets.zip", *((str(path.relative_to(sets)), path.read_text()) for path in files))
    for source in (zipped, f"{sets}/**/*"):
        assert {passage.id: passage.text for passage in run(source)[0]} == expected
    flat = packed(tmp_path / "boats.zip", *((path.name, path.read_text()) for path in files if "boats" in str(path)))
    assert [passage.id for passage in run(flat)[0]] == ["0", "1"]


@pytest.mark.parametrize("told_by", ["queries.jsonl", "qrels/test.tsv", "qrels.tsv"])
def test_a_pattern_for_the_corpus_alone_tells_a_set_by_what_lies_beside_it(tmp_path, told_by):
    for tag in ("boats", "trams"):
        write(tmp_path / tag / "corpus.jsonl", '{"_id": "d0", "text": "a"}\n')
    for pattern in ("*/corpus.jsonl", "**/c*.jsonl"):
        assert [passage.id for passage in read_source(f"{tmp_path}/{pattern}")] == ["d0", "d0"]
        before = source_identity(f"{tmp_path}/{pattern}")
        for tag in ("boats", "trams"):
            write(tmp_path / tag / told_by, "query-id\tcorpus-id\tscore\n")
        assert [passage.id for passage in read_source(f"{tmp_path}/{pattern}")] == ["boats/d0", "trams/d0"]
        assert source_identity(f"{tmp_path}/{pattern}") == before
        for tag in ("boats", "trams"):
            (tmp_path / tag / told_by).unlink()


def test_a_corpus_without_queries_beside_it_is_a_file_like_others(tmp_path):
    write(tmp_path / "all/part/corpus.jsonl", '{"id": "a", "text": "first"}\n')
    write(tmp_path / "all/part/other.jsonl", '{"id": "b", "text": "second"}\n')
    assert [passage.id for passage in run(tmp_path / "all")[0]] == ["a", "b"]


def test_a_folder_of_test_sets_names_them(tmp_path):
    for tag in ("boats", "trams"):
        beir(tmp_path / tag, tag)
    with pytest.raises(EvaluationError, match=f"give {tmp_path}/boats {tmp_path}/trams"):
        load_beir(str(tmp_path))


# --- archives


def test_a_compression_that_is_not_read_is_named(tmp_path):
    path = packed(tmp_path / "x.zip", ("a.md", "first"), ("b.md", "second"))
    assert len(run(path)[0]) == 2
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.find(mark) + offset] = DEFLATE64
    path.write_bytes(data)
    passages, counts = run(path)
    assert [passage.text for passage in passages] == ["second"]
    assert counts.drops == {"unsupported compression": 1}
    assert "x.zip!a.md (method 9 of zip files" in left_out(counts) and "pack it anew" in left_out(counts)


def test_a_zip_in_a_zip_is_told(tmp_path):
    inner = packed(tmp_path / "inner.zip", ("a.md", "text"))
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(inner, "deep/inner.zip")
    message = error(tmp_path / "outer.zip")
    assert f"a zip in a zip is not read, such as {tmp_path}/outer.zip!deep/inner.zip" in message


def test_backslashes_between_the_folders_of_an_archive(tmp_path):
    names = ("docs\\guide\\", "docs\\guide\\start.txt", "docs\\.git\\head.txt", "__MACOSX\\start.txt")
    passages, counts = run(packed(tmp_path / "x.zip", *((name, f"text of {name}") for name in names)))
    assert [(passage.id, passage.title) for passage in passages] == [("docs\\guide\\start.txt", "start")]
    assert counts.notes == {"archive members skipped: hidden": 2}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_members_of_one_name_the_later_is_read(tmp_path):
    path = packed(tmp_path / "x.zip", ("a.md", "the first edition"), ("a.md", "the second edition"))
    passages, counts = run(path)
    assert [passage.text for passage in passages] == ["the second edition"]
    assert counts.drops == {}
    assert counts.notes == {"archive members skipped: a later one has the same name": 1}


def test_a_name_that_is_not_marked_as_utf8_is_told(tmp_path):
    path = packed(tmp_path / "x.zip", ("zzzz.txt", "a text"))
    path.write_bytes(path.read_bytes().replace(b"zzzz", "港町".encode("cp932")))
    passages, counts = run(path)
    assert [passage.text for passage in passages] == ["a text"]
    assert sum(counts.notes.values()) == 1 and "not marked as UTF-8" in left_out(counts)
    assert run(packed(tmp_path / "y.zip", ("港町.txt", "a text")))[1].notes == {}


# --- query logs with gaps


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv", "dictionary"])
def test_a_gap_in_a_query_log_is_an_empty_query(tmp_path, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    queries = ["where is the key", None, "", "who has the key"]
    path = tmp_path / f"log.{'parquet' if kind == 'dictionary' else kind}"
    match kind:
        case "jsonl":
            path.write_text("".join(json.dumps({"query": query}) + "\n" for query in queries))
        case "json":
            path.write_text(json.dumps([{"query": query or float("nan")} for query in queries]))
        case "csv":
            path.write_text("n,query\n" + "".join(f"{n},{query or ''}\n" for n, query in enumerate(queries)))
        case _:
            column = pa.array(queries)
            pq.write_table(pa.table({"query": column.dictionary_encode() if kind == "dictionary" else column}), path)
    counts = Counts()
    found = read_asked(AskedConfig(sources=[str(path)]), 0.0, 0, 0, counts)
    assert {query.text for query in found} == {"where is the key", "who has the key"}
    assert counts.drops == {"no letter or digit": 2}


@pytest.mark.parametrize("name", ["log.txt", "log.csv", "log.jsonl", "log.json"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_query_log_in_utf16_is_named(tmp_path, name, encoding):
    write(tmp_path / name, "query\nwhere is the key\n".encode(encoding))
    with pytest.raises(Exception, match=r"log\.\w+ cannot be read.*UTF-16.*UTF-8"):
        read_asked(AskedConfig(sources=[str(tmp_path / name)]), 0.0, 0, 0, Counts())


def test_a_source_is_known_by_the_files_by_which_it_was_known(tmp_path: Path) -> None:
    """A run whose corpus held the queries of a set below it is not read anew because they are left out now."""
    folder = tmp_path / "many" / "one"
    (folder / "qrels").mkdir(parents=True)
    contents = {"corpus.jsonl": '{"_id": "1", "text": "a"}\n', "queries.jsonl": '{"_id": "q", "text": "b"}\n'}
    for name, content in contents.items():
        (folder / name).write_text(content)
    (folder / "qrels" / "test.tsv").write_text("q\t1\t1\n")
    files = [f"one/{name}" for name in ("corpus.jsonl", "qrels/test.tsv", "queries.jsonl")]
    hashes = [file_sha256(tmp_path / "many" / name) for name in files]
    assert source_identity(str(tmp_path / "many")) == digest(*files, *hashes)
    assert source_identity(f"{tmp_path}/many/*/*.jsonl") == digest(*files[::2], *hashes[::2])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("names", [["README.md"], ["readme.txt", "LICENSE.txt", "parts/README.md"]])
def test_a_readme_beside_rows_is_no_passage(tmp_path: Path, names: list[str], packed: bool) -> None:
    """As in a clone of a data set; a folder with other documents is a folder of documents."""
    folder = tmp_path / "clone"
    (folder / "parts").mkdir(parents=True)
    for name in names:
        (folder / name).write_text("about these rows")
    (folder / "parts" / "a.jsonl").write_text('{"_id": "1", "text": "a lamp"}\n{"_id": "2", "text": "a boat"}\n')
    source = folder
    if packed:
        source = tmp_path / "clone.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for name in (*names, "parts/a.jsonl"):
                archive.write(folder / name, name)
    passages, counts = run(source)
    assert [passage.text for passage in passages] == ["a lamp", "a boat"]
    assert counts.notes["files skipped: a README beside rows"] == len(names)
