"""CSV and TSV as programs and people write them, in corpora, training tables and query logs alike."""

import csv
import gzip
import io
import itertools
import tracemalloc
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gecko.config.stages import AskedConfig, CorpusConfig
from gecko.core.counts import Counts
from gecko.core.errors import CorpusError, TrainingError
from gecko.corpus.bounds import lines
from gecko.corpus.delimited import Skipped, _Row
from gecko.corpus.readers import Reader as CorpusReader
from gecko.corpus.readers import read_placed, read_source
from gecko.corpus.tables import read_rows
from gecko.fret.user_queries import read_asked

CELL = st.text(st.one_of(st.sampled_from('\t\n", a\r'), st.characters(codec="utf-8", exclude_characters="\0")))
TABLE = st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5)
FAST = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def texts(path: Path, data: str | bytes) -> list[str]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return [passage.text for passage in read_source(str(path))]


def by_csv(rows: list[tuple[str, str]], separator: str) -> str:
    sink = io.StringIO(newline="")
    csv.writer(sink, "excel" if separator == "," else "excel-tab").writerows([("title", "text"), *rows])
    return sink.getvalue()


def by_pandas(rows: list[tuple[str, str]], separator: str) -> str:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(rows, columns=["title", "text"]).to_csv(sep=separator, index=False)


def by_polars(rows: list[tuple[str, str]], separator: str) -> str:
    polars = pytest.importorskip("polars")
    return polars.DataFrame(rows, schema=["title", "text"], orient="row").write_csv(separator=separator)


def looks_like_lines(data: str) -> bool:
    """Whether each line of a TSV is a row of two, and no cell has a sign that only a program leaves."""
    physical = [line for line in io.StringIO(data, newline="\n") if line.strip("\r\n")]
    return all(line.count("\t") == 1 for line in physical) and '""' not in data


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize("write", [by_csv, by_pandas, by_polars])
@FAST
@given(rows=TABLE)
def test_what_programs_write_is_read_cell_for_cell(tmp_path, write, separator, rows):
    # pandas leaves a CR unquoted, so that one at the end of a row is half of its line end.
    rows = [(title, text.rstrip("\r") if write is by_pandas else text) for title, text in rows]
    data = write(rows, separator)
    if separator == "\t" and looks_like_lines(data) and any("\n" in cell for row in rows for cell in row):
        return  # the next test
    path = tmp_path / ("x.csv" if separator == "," else "x.tsv")
    path.write_bytes(data.encode())
    assert [(passage.title, passage.text) for passage in read_source(str(path))] == rows
    assert [(row["title"], row["text"]) for _, row in read_rows("s", str(path))] == rows


def test_lines_that_are_all_rows_are_rows_although_quotation_marks_pair(tmp_path):
    data = 'id\ttext\n1\tone\n2\t"two\n3\tthree\n4\tfour"\n5\tfive\n'
    assert texts(tmp_path / "x.tsv", data) == ["one", '"two', "three", 'four"', "five"]
    # One line that is no row, a quoted header or a doubled mark shows that a program wrote it.
    assert texts(tmp_path / "y.tsv", data + '6\t"a\nb"\n') == ["one", "two\n3\tthree\n4\tfour", "five", "a\nb"]
    quoted = data.replace("id\ttext", '"id"\t"text"')
    assert texts(tmp_path / "z.tsv", quoted) == ["one", "two\n3\tthree\n4\tfour", "five"]
    assert texts(tmp_path / "v.tsv", data + '""\t6\n')[1:] == ["two\n3\tthree\n4\tfour", "five", "6"]
    assert texts(tmp_path / "w.tsv", data + '6\t"say ""b"""\n')[1:] == ["two\n3\tthree\n4\tfour", "five", 'say "b"']


@pytest.mark.parametrize(
    ("cells", "read"),
    [
        (['"open', "plain", 'the 24" wheel'], None),
        (['"Old Tom" sat', "plain", '"Old Tom"'], None),  # some are no program's, so none are taken off
        (['"Old Tom"', "plain"], ["Old Tom", "plain"]),
        (['"', "a", '"'], None),
        (['""', '"a, b"', '"say ""x"""'], ["", "a, b", 'say "x"']),
        (['"a\rb"', '"tab\tin it"'], ["a\rb", "tab\tin it"]),
    ],
)
def test_quotation_marks_of_a_tsv(tmp_path, cells, read):
    assert texts(tmp_path / "x.tsv", "id\ttext\n" + "".join(f"{n}\t{cell}\n" for n, cell in enumerate(cells))) == (
        read or cells
    )


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ('text\none\n"two\nthree"\n', "x.tsv:3: a field begins with"),
        ('id\ttext\n1\t"two\n2\tthree\n4\n', "x.tsv:4: 1 fields, but the header has 2"),
        ('id\ttext\n1\t"a\n2\tb"\n3\t5" x\n4\n', "x.tsv:5: 1 fields, but the header has 2"),
        ('id\ttext\n1\t"a\n2\tb"\n3\t5" x\n4\t"c\nd"\n', "x.tsv:2: a field begins with"),
    ],
)
def test_what_cannot_be_told_is_an_error_with_its_line(tmp_path, data, says):
    with pytest.raises(CorpusError, match=says.replace(".", r"\.")):
        texts(tmp_path / "x.tsv", data)
    with pytest.raises(TrainingError, match=f"line {says.split(':')[1]}"):
        list(read_rows("s", str(tmp_path / "x.tsv")))


def test_a_tsv_in_an_archive_is_looked_through_too(tmp_path):
    data = b'id\ttext\n1\t"one\n2\ttwo\n'
    (tmp_path / "x.tsv.gz").write_bytes(gzip.compress(data))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.tsv", data)
    for name in ("x.tsv.gz", "x.zip"):
        assert [passage.text for passage in read_source(str(tmp_path / name))] == ['"one', "two"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks(tmp_path, end, mark):
    rows = ["id,text", "a,one", "b,two"]
    assert texts(tmp_path / "x.csv", mark + end.join(rows)) == ["one", "two"]
    assert texts(tmp_path / "x.tsv", mark + end.join(rows).replace(",", "\t") + end) == ["one", "two"]
    assert texts(tmp_path / "x.jsonl", mark + end.join(['{"text": "one"}', '{"text": "two"}'])) == ["one", "two"]
    assert next(row for _, row in read_rows("s", str(tmp_path / "x.csv"))) == {"id": "a", "text": "one"}
    assert [row["text"] for _, row in read_rows("s", str(tmp_path / "x.jsonl"))] == ["one", "two"]
    (tmp_path / "log.txt").write_bytes((mark + end.join(["first query", "second query"])).encode())
    asked = read_asked(AskedConfig(sources=[str(tmp_path / "log.txt")]), 0.0, 0, 0, Counts())
    assert {query.text for query in asked} == {"first query", "second query"}
    places = [place for place, _ in read_placed(str(tmp_path / "x.csv"), CorpusReader())]
    assert places == [f"{tmp_path / 'x.csv'}:2", f"{tmp_path / 'x.csv'}:3"]


@FAST
@given(st.lists(st.text("a\r\n", max_size=9), max_size=6))
def test_lines_lose_no_byte(parts):
    data = "".join(parts).encode()
    found = list(lines(io.BytesIO(data), 1000))
    assert b"".join(line or b"" for line in found) == data
    lone = data.replace(b"\r\n", b"\n")
    if lone.find(b"\r") in range(len(lone.split(b"\n")[0])) and data[-1:] != b"\r":
        assert found == data.splitlines(keepends=True)


def test_a_long_line_of_an_old_file_is_left_out():
    data = b"id\r" + b"x" * 50 + b"\rlast\r\n"
    assert list(lines(io.BytesIO(data), 10)) == [b"id\r", None, b"last\r\n"]
    assert list(lines(io.BytesIO(b"id\r" + b"x" * (3 << 20) + b"\rlast"), 1 << 20)) == [b"id\r", None, b"last"]


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@FAST
@given(text=st.text(st.characters(codec="utf-8", categories=["L", "M"]), min_size=1))
def test_no_text_is_normalised(tmp_path, form, text):
    text = f"Ǻ ﬁ é ḍ̇ {unicodedata.normalize(form, f'é가ﬁ{text}')}"
    assert texts(tmp_path / "x.tsv", f"id\ttext\n1\t{text}") == [text]
    assert texts(tmp_path / "x.txt", text) == [text]
    assert [row["text"] for _, row in read_rows("s", str(tmp_path / "x.tsv"))] == [text]
    asked = read_asked(AskedConfig(sources=[str(tmp_path / "x.tsv")]), 0.0, 0, 0, Counts())
    assert [query.text for query in asked] == [text]


LONG = "x" * (2 << 20)


@pytest.mark.parametrize("end", ["\n", "\r"])
@pytest.mark.parametrize(
    ("rows", "read"),
    [
        ('1,"begin\n{}\nend"', []),  # its middle is too long
        ('1,"{}\nmore\nend"', []),  # its first line
        ('1,"begin\nmore\n{}"', []),  # its last
        ('1,"begin\n{}""\n"",y"', []),  # marks that end no field
        ('1,"{}"\n5,"kept\nwhole"', ["kept\nwhole"]),
        ('1,a 24" {}\n5,kept', ["kept"]),  # a mark that begins none
        ('1,"begin\n{}\nmore\n{}\nend"\n5,kept', ["kept"]),
    ],
)
def test_a_row_with_a_line_too_long_is_left_out_whole(tmp_path, rows, read, end):
    table = "id,text\n0,first\n" + rows.replace("{}", LONG) + '\n9,"last\none"\n'
    for name, data in (("x.csv", table), ("x.tsv", table.replace(",", "\t"))):
        path = tmp_path / name
        path.write_bytes(data.replace("\n", end).encode())
        reader = CorpusReader(CorpusConfig(document_mb=1))
        found = [passage.text.replace("\r", "\n") for passage in read_source(str(path), reader)]
        if name == "x.csv" or '24"' not in rows:
            assert found == ["first", *read, "last\none"]
        assert reader.counts.drops == {"line too long": rows.count("{}")}


@given(data=st.text('a",', max_size=12), inside=st.booleans(), cuts=st.lists(st.integers(0, 12), max_size=3))
def test_the_quotation_marks_of_a_skipped_line(data, inside, cuts):
    row = _Row(",", _open=[] if inside else None)
    try:
        is_open = not row.take(data + "\n")
    except ValueError:
        return
    skipped = Skipped(",")
    for start, stop in itertools.pairwise([0, *sorted(cuts), len(data) + 13]):
        skipped.take(f"{data}\n"[start:stop].encode())
    assert skipped.end()[inside] == is_open
    assert skipped.end() == (False, True)  # of an empty line


def test_a_stray_quotation_mark_takes_no_memory(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text('id\ttext\n0\t"stray\n' + f"1\t{'word ' * 200}\n" * 5000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_source(str(path))) == 5001
        assert tracemalloc.get_traced_memory()[1] < 2 << 20  # of a file of 5 MB
    finally:
        tracemalloc.stop()
