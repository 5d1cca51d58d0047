import json
from dataclasses import replace
from pathlib import Path

import pytest

from gecko.encoder import load_encoder
from gecko.errors import ConfigError, EvaluationError
from gecko.evaluation import load_beir
from gecko.evaluation.evaluate import dense_run
from gecko.evaluation.sets import load_sets


def write(folder: Path, qrels: str = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\t3\t1\n") -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": "d1", "title": "A", "text": "one"}, {"_id": "d2", "text": "two"}, {"_id": 3, "text": "three"}]
    queries = [{"_id": "q0", "text": "zero"}, {"_id": "q2", "text": "dos"}, {"_id": "q1", "text": "uno"}]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


def test_reads(tmp_path: Path) -> None:
    data = load_beir(str(write(tmp_path / "scifact")))
    assert (data.name, data.split, data.task) == ("scifact", "test", "fact checking")
    assert [(one.id, one.title, one.text) for one in data.passages] == [
        ("d1", "A", "one"),
        ("d2", "", "two"),
        ("3", "", "three"),
    ]
    assert data.queries == [("q2", "dos"), ("q1", "uno")]
    assert data.qrels == {"q2": {"3": 1}, "q1": {"d1": 2, "d2": 0}}
    assert list(data.qrels) == ["q2", "q1"]
    assert data.unknown_documents == data.unknown_queries == 0


def test_queries_that_are_passages_do_not_find_themselves(tmp_path: Path) -> None:
    folder = write(tmp_path / "arguana")
    assert not load_beir(str(folder)).exclude_own
    (folder / "queries.jsonl").write_text('{"_id": "d1", "text": "one "}\n{"_id": "d2", "text": "two"}\n')
    (folder / "qrels" / "test.tsv").write_text("d1\td2\t1\nd2\td1\t1\n")
    assert load_beir(str(folder)).exclude_own
    (folder / "queries.jsonl").write_text('{"_id": "d1", "text": "uno"}\n{"_id": "d2", "text": "dos"}\n')
    assert not load_beir(str(folder)).exclude_own  # the ids alone say nothing


def test_split_and_header(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", "q1\td1\t1\r\nq1\tgone\t1\nqx\td1\t1\n")
    (folder / "qrels" / "dev.tsv").write_text("q2\td2\t1\n")
    data = load_beir(str(folder))
    assert (data.task, data.unknown_documents, data.unknown_queries) == ("search result", 1, 1)
    assert data.qrels == {"q1": {"d1": 1, "gone": 1}}
    assert load_beir(f"{folder}@dev").qrels == load_beir(str(folder), "dev").qrels == {"q2": {"d2": 1}}
    with pytest.raises(EvaluationError, match="no split 'train'; it has: dev, test"):
        load_beir(f"{folder}@train")


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("corpus.jsonl", "{oops", r"corpus.jsonl:4: not valid JSON"),
        ("corpus.jsonl", '{"text": "x"}', r"corpus.jsonl:4: .*_id"),
        ("corpus.jsonl", '{"_id": "d1", "text": "x"}', r"corpus.jsonl:4: .*twice"),
        ("corpus.jsonl", '{"_id": "d9", "text": 1}', r'corpus.jsonl:4: "text" must be a string'),
        ("queries.jsonl", '{"_id": "q1"', r"queries.jsonl:4: not valid JSON"),
        ("qrels/test.tsv", "q1 d1 1", r"test.tsv:5: 1 columns"),
        ("qrels/test.tsv", "q1\td3\thigh", r"test.tsv:5: grade 'high'"),
        ("qrels/test.tsv", "q1\td1\t1", r"test.tsv:5: .*another grade"),
    ],
)
def test_broken_lines(tmp_path: Path, file: str, line: str, message: str) -> None:
    folder = write(tmp_path / "set")
    with (folder / file).open("a") as handle:
        handle.write(line + "\n")
    with pytest.raises(EvaluationError, match=message):
        load_beir(str(folder))


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="not a folder"):
        load_beir(str(tmp_path / "none"))
    folder = write(tmp_path / "set", "other\td1\t1\n")
    with pytest.raises(EvaluationError, match="ids match"):
        load_beir(str(folder))
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(EvaluationError, match=r"corpus.jsonl is missing"):
        load_beir(str(folder))


def test_questions_that_are_looked_for_by_questions_have_one_form(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "quora"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(
        '{"_id": "a", "title": "", "text": "red river"}\n{"_id": "b", "text": "a cat"}\n'
    )
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "red river"}\n')
    (folder / "qrels" / "test.tsv").write_text("q\ta\t1\n")
    data = load_beir(str(folder))
    assert data.symmetric
    for form in ("native", "unified"):
        encoder = load_encoder(str(tiny_model), form=form)
        assert dense_run(data, encoder)["q"]["a"] == pytest.approx(1.0, abs=1e-5)
    assert dense_run(replace(data, symmetric=False), encoder)["q"]["a"] < 0.9999


def test_a_path_is_a_test_set(tmp_path: Path) -> None:
    folder = write(tmp_path / "scifact")
    assert load_beir(folder) == load_beir(str(folder))
    assert load_sets([folder]) == load_sets([str(folder)])
    assert load_beir(tmp_path / "scifact@test").split == "test"
    with pytest.raises(ConfigError, match="one string is given"):
        load_sets(str(folder))
    with pytest.raises(ConfigError, match="test set 3 is a int; give a string or a path"):
        load_beir(3)  # type: ignore[arg-type]
