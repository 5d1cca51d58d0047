"""Rows of local files and data sets, the same from every kind of file; errors name set, file and row."""

import csv
import gzip
import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gecko.core.errors import TrainingError
from gecko.corpus.tables import read_rows, source_identity, text_of

ROWS = [{"query": "a, b", "text": 'say "x"\nline'}, {"query": "ß", "text": ""}, {"query": "c", "text": "d"}]


def write(folder, ending, rows=ROWS):
    path = folder / f"rows{ending}"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    match ending:
        case ".jsonl" | ".ndjson":
            path.write_text("\ufeff" + lines + "\n", encoding="utf-8")
        case ".jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode()))
        case ".json":
            path.write_text(json.dumps(rows), encoding="utf-8")
        case ".csv" | ".tsv":
            with path.open("w", newline="", encoding="utf-8") as handle:
                writer = csv.DictWriter(handle, rows[0].keys(), delimiter="," if ending == ".csv" else "\t")
                writer.writeheader()
                writer.writerows(rows)
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
    return path


KINDS = [".jsonl", ".ndjson", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet"]


@pytest.mark.parametrize("ending", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, ending):
    path = write(tmp_path, ending)
    read = list(read_rows("s", str(path)))
    assert [row for _, row in read] == ROWS
    assert [place for place, _ in read] == [f"set 's', row {n} of rows{ending}" for n in (1, 2, 3)]


def test_json_lines_may_be_called_json(tmp_path):
    write(tmp_path, ".jsonl").rename(tmp_path / "rows.json")
    assert [row for _, row in read_rows("s", str(tmp_path / "rows.json"))] == ROWS


def test_a_folder_is_its_files_by_name(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"x": 2}\n')
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n')
    (tmp_path / "README.md").write_text("not data")
    assert [(place, row["x"]) for place, row in read_rows("s", str(tmp_path))] == [
        ("set 's', row 1 of a.jsonl", 1),
        ("set 's', row 2 of b.jsonl", 2),
    ]


def test_a_data_set_is_loaded_by_name(tmp_path):
    """`datasets` takes a folder for a name, so this is its own loader at work, without a network."""
    write(tmp_path, ".parquet").rename(tmp_path / "train-00000-of-00001.parquet")
    assert [row for _, row in read_rows("s", f"hf:{tmp_path}")] == ROWS


def test_an_unknown_data_set_and_an_unknown_split_are_named(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(TrainingError, match=r"set 's': the data set nobody/nothing-here, split train cannot be loaded"):
        list(read_rows("s", "hf:nobody/nothing-here"))
    write(tmp_path, ".parquet").rename(tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(TrainingError, match=r"split dev cannot be loaded.*split"):
        list(read_rows("s", f"hf:{tmp_path}", split="dev"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n', r"set 's': .*x\.jsonl cannot be read after row 1 "),
        ("x.jsonl", b'{"a": 1}\n[1]\n', r"set 's', row 2 of x\.jsonl: it is no table"),
        ("x.jsonl", b"", r"set 's': .*x\.jsonl has no rows"),
        ("x.jsonl", b'{"a": "\xff"}\n', r"x\.jsonl cannot be read after row 0"),
        ("x.csv", b"a,b\n1,2\n3\n", r"x\.csv cannot be read after row 1 \(the row has another number of fields"),
        ("x.csv", b"a,b\n1,2,3\n", r"x\.csv cannot be read after row 0"),
        ("x.parquet", b"PAR1", r"x\.parquet cannot be read"),
        ("x.txt", b"text", r"set 's': .*x\.txt is of another kind"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(TrainingError, match=message):
        list(read_rows("s", str(tmp_path / file)))


@pytest.mark.parametrize(
    ("file", "content", "place"),
    [
        ("x.jsonl", '\n{"a": "b"}\n\n{"a": "ab\\ud83d"}\n', "x.jsonl:4"),
        ("x.json", '[{"a": "b"},\n {"a": "ab\\ud83d"}]', "x.json: row 2"),
    ],
)
def test_half_a_character_is_refused_where_its_text_is_used(tmp_path, file, content, place):
    (tmp_path / file).write_text(content)
    rows = list(read_rows("s", str(tmp_path / file)))
    assert text_of(rows[0][1], "a", rows[0][0]) == "b"
    with pytest.raises(
        TrainingError, match=rf"{place}: the text holds half a surrogate pair, .*character 3.*column is a"
    ):
        text_of(rows[1][1], "a", rows[1][0])


def test_a_gzip_file_that_ends_early_is_named(tmp_path):
    whole = write(tmp_path, ".jsonl.gz", ROWS * 999)
    whole.write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(TrainingError, match=r"rows\.jsonl\.gz cannot be read after row"):
        list(read_rows("s", str(whole)))


def test_a_source_that_is_not_there_or_empty_is_named(tmp_path):
    with pytest.raises(TrainingError, match="set 's': .*gone does not exist"):
        list(read_rows("s", str(tmp_path / "gone")))
    with pytest.raises(TrainingError, match="set 's': the folder .* holds no file"):
        list(read_rows("s", str(tmp_path)))


def test_the_identity_of_a_set_on_the_hub_outlasts_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    def silent(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("GECKO_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", silent)
    unseen = source_identity("s", "hf:a/b")
    seen = []
    for commit in ("one", "two"):
        monkeypatch.setattr(
            huggingface_hub.HfApi, "dataset_info", lambda *_, commit=commit, **__: SimpleNamespace(sha=commit)
        )
        seen.append(source_identity("s", "hf:a/b"))
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", silent)
        assert source_identity("s", "hf:a/b") == seen[-1]
    assert len({unseen, *seen}) == 3
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert source_identity("s", "hf:a/b") == seen[-1]


def test_the_identity_follows_the_content(tmp_path):
    path = write(tmp_path, ".jsonl")
    before = source_identity("s", str(path))
    assert before == source_identity("t", str(path))
    write(tmp_path, ".jsonl", ROWS[:2])
    assert source_identity("s", str(path)) != before
