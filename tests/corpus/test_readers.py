import csv
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gecko.core.errors import CorpusError
from gecko.core.records import Passage
from gecko.corpus.readers import SUPPORTED, Reader, read_placed, read_source

# Everything that UTF-8 can hold, control characters and line separators included.
UNICODE = st.text(st.characters(codec="utf-8"))
ROWS = st.lists(st.tuples(UNICODE, UNICODE), min_size=1, max_size=5)
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def write(path: Path, data: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def parquet(path: Path, **columns: object) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def fails(spec: str, *parts: str) -> None:
    """Reading raises one CorpusError whose message holds all the parts."""
    with pytest.raises(CorpusError) as caught:
        list(read_source(spec))
    for part in parts:
        assert part in str(caught.value)


# --- what is read ---


def test_jsonl_in_its_three_forms(tmp_path):
    lines = [
        {"_id": "a", "title": "A", "text": "first", "metadata": {"url": "x"}},
        {"id": "b", "text": "second", "title": None},
        {"id": 7, "text": "third"},
        {"text": "fourth"},
        {"_id": "", "id": "e", "text": "fifth"},
    ]
    spec = write(tmp_path / "x.jsonl", "\n".join(json.dumps(line) for line in lines) + "\n\n")
    found = list(read_source(spec))
    assert found[:3] == [
        Passage("a", "A", "first", "x.jsonl"),
        Passage("b", "", "second", "x.jsonl"),
        Passage("7", "", "third", "x.jsonl"),
    ]
    assert found[3].id.startswith("h") and len(found[3].id) == 17
    assert int(found[3].id[1:], 16) > 0
    assert found[4].id == "e"


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".JSONL"])
def test_a_byte_order_mark_is_accepted(tmp_path, ending):
    spec = write(tmp_path / f"x{ending}", b"\xef\xbb\xbf" + b'{"id": "a", "text": "t"}\r\n{"id": "b", "text": "u"}\r\n')
    assert [(passage.id, passage.text) for passage in read_source(spec)] == [("a", "t"), ("b", "u")]


def test_places_name_file_and_line(tmp_path):
    spec = write(tmp_path / "x.jsonl", '{"text": "a"}\n\n{"text": "b"}')
    assert [place for place, _ in read_placed(spec, Reader())] == [f"{spec}:1", f"{spec}:3"]


def test_reading_is_lazy(tmp_path):
    spec = write(tmp_path / "x.jsonl", '{"id": "a", "text": "t"}\nbroken\n')
    assert next(read_source(spec)).id == "a"


@SAME_FOLDER
@given(ROWS, st.booleans())
def test_jsonl_round_trips_any_text(tmp_path, rows, escaped):
    lines = (json.dumps({"title": title, "text": text}, ensure_ascii=escaped) for title, text in rows)
    spec = write(tmp_path / "x.jsonl", "\n".join(lines))
    assert [(passage.title, passage.text) for passage in read_source(spec)] == rows


@SAME_FOLDER
@given(ROWS.map(lambda rows: [tuple(part.replace("\0", "") for part in row) for row in rows]), st.booleans())
def test_csv_and_tsv_round_trip_any_text_without_nul(tmp_path, rows, tabs):
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, "excel-tab" if tabs else "excel", quoting=csv.QUOTE_ALL)
    writer.writerows([("title", "text"), *rows])
    spec = write(tmp_path / ("x.tsv" if tabs else "x.csv"), sink.getvalue())
    assert [(passage.title, passage.text) for passage in read_source(spec)] == rows


@SAME_FOLDER
@given(ROWS)
def test_parquet_round_trips_any_text(tmp_path, rows):
    spec = parquet(tmp_path / "x.parquet", title=[row[0] for row in rows], text=[row[1] for row in rows])
    assert [(passage.title, passage.text) for passage in read_source(spec)] == rows


def test_csv(tmp_path):
    spec = write(tmp_path / "x.csv", '\ufeffid, text ,title,other\na,"one\ntwo, three",A,1\n\n,four,,2\n')
    placed = list(read_placed(spec, Reader()))
    assert placed[0] == (f"{spec}:2", Passage("a", "A", "one\ntwo, three", "x.csv"))
    place, passage = placed[1]
    assert (passage.text, passage.title, passage.id[0]) == ("four", "", "h")
    assert place == f"{spec}:5"


def test_csv_takes_a_field_of_a_megabyte(tmp_path):
    spec = write(tmp_path / "x.csv", "text\n" + "x" * 1_000_000)
    assert [len(passage.text) for passage in read_source(spec)] == [1_000_000]


def test_parquet(tmp_path):
    spec = parquet(tmp_path / "x.parquet", _id=[1, None], text=["one", "two"], title=["A", None], other=[0.5, 1.5])
    first, second = read_source(spec)
    assert first == Passage("1", "A", "one", "x.parquet")
    assert (second.id[0], second.title, second.text) == ("h", "", "two")


def test_parquet_is_read_in_batches(tmp_path):
    count = 3000
    spec = parquet(tmp_path / "x.parquet", text=pa.array([f"text {n}" for n in range(count)]).dictionary_encode())
    placed = list(read_placed(spec, Reader()))
    assert [passage.text for _, passage in placed] == [f"text {n}" for n in range(count)]
    assert placed[-1][0] == f"{spec}: row {count}"


def test_a_beir_folder_is_its_corpus(tmp_path):
    write(tmp_path / "corpus.jsonl", '{"_id": "a", "title": "", "text": "t"}\n')
    write(tmp_path / "queries.jsonl", '{"_id": "q", "text": "no passage"}\n')
    write(tmp_path / "readme.md", "# Not read")
    assert list(read_source(str(tmp_path))) == [Passage("a", "", "t", "corpus.jsonl")]


def test_a_folder_of_texts(tmp_path):
    folder = tmp_path / "docs"
    write(folder / "b.txt", "# not a heading here")
    write(folder / "a/z.md", "Intro.\n\n## The title ##\n\nText.")
    write(folder / "a/Y.MD", b"\xef\xbb\xbfno heading")
    write(folder / "empty.txt", "")
    write(folder / ".hidden.md", "x")
    write(folder / ".git/x.txt", "x")
    write(folder / "image.png", b"\x89PNG")
    write(tmp_path / "outside.txt", "secret")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "nothing.txt").symlink_to(tmp_path / "missing.txt")
    (folder / "inside.txt").symlink_to(folder / "b.txt")
    (folder / "circle").symlink_to(folder, target_is_directory=True)
    reader = Reader()
    found = [passage for _, passage in read_placed(str(folder), reader)]
    assert found == [
        Passage("a/Y.MD", "Y", "no heading", "Y.MD"),
        Passage("a/z.md", "The title", "Intro.\n\n## The title ##\n\nText.", "z.md"),
        Passage("b.txt", "b", "# not a heading here", "b.txt"),
        Passage("empty.txt", "empty", "", "empty.txt"),
        Passage("inside.txt", "inside", "# not a heading here", "inside.txt"),
    ]
    assert reader.counts.notes == {
        "files skipped: hidden": 1,
        "folders skipped: hidden": 1,
        "folders skipped: link": 1,
        "files skipped: link out of the folder or to nothing": 2,
        "files skipped: of another kind": 1,
    }


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# One\n# Two", "One"),
        ("#no\n#\n###### Six ###", "Six"),
        ("```sh\n# a comment\n```\n# Real", "Real"),
        ("~~~~\n~~~\n# a comment\n~~~~\n# Real", "Real"),
        ("---\n# a comment\ntitle: x\n---\n# Real", "Real"),
        ("---\nno end\n# Real", "Real"),
        ("\nUnderlined\n=====\n", "Underlined"),
        ("    # code", "x"),
        ("", "x"),
    ],
)
def test_markdown_title(tmp_path, text, title):
    (passage,) = read_source(write(tmp_path / "x.md", text or " "))
    assert passage.title == title


def test_a_text_file_alone(tmp_path):
    assert list(read_source(write(tmp_path / "x.txt", "text"))) == [Passage("x.txt", "x", "text", "x.txt")]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_made_ids_stay_when_the_corpus_grows(tmp_path, kind):
    def ids(texts):
        path = tmp_path / f"x.{kind}"
        if kind == "parquet":
            parquet(path, text=texts)
        elif kind == "csv":
            write(path, "text\n" + "\n".join(texts))
        else:
            write(path, "\n".join(json.dumps({"text": text}) for text in texts))
        return {passage.text: passage.id for passage in read_source(str(path))}

    small = ids(["one", "two"])
    grown = ids(["zero", "two", "three", "one"])
    assert len(set(grown.values())) == 4
    assert small.items() <= grown.items()


def test_made_ids_are_fixed_forever(tmp_path):
    # A run that is resumed by a later version must find its passages again.
    (passage,) = read_source(write(tmp_path / "x.jsonl", '{"title": "T", "text": "some text"}'))
    assert passage.id == "hb305c7331978d987"


def test_the_title_is_part_of_a_made_id(tmp_path):
    spec = write(tmp_path / "x.jsonl", '{"title": "a", "text": "b"}\n{"title": "", "text": "a b"}\n{"text": "a  b"}\n')
    first, second, third = (passage.id for passage in read_source(spec))
    assert first != second
    assert second == third  # white space does not count


# --- what is refused ---


def test_missing_path(tmp_path):
    fails(str(tmp_path / "no.jsonl"), "no.jsonl does not exist", "give a file, a folder or stdlib")


def test_blank_source():
    fails(" ", "blank", "give")


@pytest.mark.parametrize("ending", SUPPORTED)
def test_empty_file(tmp_path, ending):
    fails(write(tmp_path / f"x{ending}", ""), f"x{ending} is empty")


@pytest.mark.parametrize(
    ("name", "data"), [("x.jsonl", "\n \n"), ("x.csv", "text\n"), ("x.csv", "\n"), ("x.tsv", "text")]
)
def test_a_file_without_a_row_is_empty(tmp_path, name, data):
    fails(write(tmp_path / name, data), f"{name} is empty")


def test_a_parquet_file_without_a_row_is_empty(tmp_path):
    fails(parquet(tmp_path / "x.parquet", text=pa.array([], pa.string())), "x.parquet is empty")


@pytest.mark.parametrize("name", ["x.doc", "x", "x.gz", "x.json"])
def test_unsupported_ending(tmp_path, name):
    fails(write(tmp_path / name, "x"), name, *SUPPORTED)


def test_folder_without_a_text(tmp_path):
    write(tmp_path / "data/image.png", "x")
    fails(str(tmp_path), str(tmp_path), "no corpus.jsonl", ".docx", "give a folder")


def test_rows_of_a_folder_are_read_where_it_has_no_documents(tmp_path):
    write(tmp_path / "b/x.csv", "text\nsecond")
    write(tmp_path / "a.jsonl", '{"text": "first"}')
    write(tmp_path / "empty.jsonl", "")
    reader = Reader()
    assert [passage.text for _, passage in read_placed(str(tmp_path), reader)] == ["first", "second"]
    assert reader.counts.notes == {"files without a passage": 1}
    write(tmp_path / "read.me.md", "a document")
    reader = Reader()
    assert [passage.text for _, passage in read_placed(str(tmp_path), reader)] == ["a document"]
    assert reader.counts.notes == {"files skipped: rows beside documents": 3}


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.txt", "x.md"])
@pytest.mark.parametrize(
    ("bad", "says"),
    [(b"caf\xe9", "not valid UTF-8 at byte"), (b"a\0b", "NUL byte at byte"), (b"\xe2\x82", "not valid")],
)
def test_bytes_that_are_no_text(tmp_path, name, bad, says):
    good = {"x.jsonl": b'{"text": "a"}', "x.csv": b"text"}.get(name, b"fine")
    spec = write(tmp_path / name, good + b"\n" + bad + b"\n" + good)
    fails(spec, f"{name}:2: ", says, "save")
    folder = write(tmp_path / "folder" / name, good + b"\n" + bad)
    if name.endswith(("txt", "md")):
        fails(str(Path(folder).parent), f"folder/{name}:2: ", says)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.txt"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_utf16(tmp_path, name, encoding):
    fails(write(tmp_path / name, '{"text": "a"}'.encode(encoding)), f"{name}:1: ", "UTF-8")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "a",}', "column 14"),
        ("{'text': 'a'}", "column 2"),
        ('{"text": "a"} {"text": "b"}', "column 15"),
        ('{"text": "a', "column 12"),
        ("[1]", "the line is a list"),
        ('"text"', "the line is a string"),
        ("null", "the line is null"),
        ("12", "the line is a number"),
        ("9" * 5000, "not readable as JSON"),
        ("[" * 200_000, "JSON"),
        ('{"passage": "a", "contents": "b"}', "no field is named text; the fields are: 'passage', 'contents'"),
        ("{}", "the fields are: none"),
        ('{"text": ["a"]}', "text is a list, not a string: ['a']"),
        ('{"text": null}', "text is null"),
        ('{"text": true}', "text is true or false"),
        ('{"text": 1.5}', "text is a number"),
        ('{"text": {"en": "a"}}', "text is an object"),
        ('{"text": "a", "title": 3}', "title is a number"),
        ('{"text": "a", "_id": ["x"]}', "the id is a list"),
        ('{"text": "a", "id": true}', "the id is true or false"),
        ('{"text": "ab\\ud800"}', "half a surrogate pair, '\\ud800' at character 3"),
        ('{"text": "a", "id": "\\udfff"}', "the id holds half"),
    ],
)
def test_broken_json_lines(tmp_path, line, says):
    fails(write(tmp_path / "x.jsonl", '{"text": "fine"}\n\n' + line + "\n"), "x.jsonl:3: ", says)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("id,passage\na,b", "x.csv:1: no column is named text; the columns are: 'id', 'passage'"),
        ("text,text\na,b", "x.csv:1: more than one column is named text"),
        ("id,text\na,b\nc", "x.csv:3: 1 fields, but the header has 2"),
        ("id,text\na,b, c", "x.csv:2: 3 fields"),
        ('id,text\na,"b"c', "x.csv:2: not valid CSV"),
        ('id,text\na,"b\nc\n', "x.csv:2: not valid CSV"),
    ],
)
def test_broken_csv(tmp_path, data, says):
    fails(write(tmp_path / "x.csv", data), says)


def test_broken_parquet(tmp_path):
    fails(write(tmp_path / "x.parquet", "not parquet"), "x.parquet", "not readable as Parquet")
    fails(parquet(tmp_path / "x.parquet", passage=["a"]), "x.parquet: no column is named text", "'passage'")
    fails(parquet(tmp_path / "x.parquet", text=["a", None]), "x.parquet: row 2: text is null")
    fails(parquet(tmp_path / "x.parquet", text=[1]), "x.parquet: row 1: text is a number")
    fails(parquet(tmp_path / "x.parquet", text=[b"a"]), "x.parquet: row 1: text is of type bytes")


def test_parquet_with_bytes_that_are_no_text(tmp_path):
    broken = pa.array([b"fine", b"caf\xe9"]).cast(pa.binary()).view(pa.string())
    fails(parquet(tmp_path / "x.parquet", text=broken), "x.parquet", "row")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path):
    spec = write(tmp_path / "x.jsonl", '{"text": "a"}')
    Path(spec).chmod(0)
    fails(spec, "cannot read", "x.jsonl")
