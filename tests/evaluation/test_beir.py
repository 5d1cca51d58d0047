import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gecko.cli.main import app
from gecko.core.errors import ConfigError, EvaluationError
from gecko.encoder import load_encoder
from gecko.evaluation import load_beir
from gecko.evaluation.evaluate import dense_run
from gecko.evaluation.metrics import per_query
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


JUDGED = {"q2": {"3": 1}, "q1": {"d1": 2, "d2": 0}}


@pytest.mark.parametrize(
    "qrels",
    [
        "q1\td1\t2.0\nq1\td2\t0.0\nq2\t3\t1.\n",
        "query-id\tcorpus-id\tscore\nq1\td1\t2.0\nq1\td2\t0\nq2\t3\t1e0\n",
        "q1 0 d1 2\nq1 0 d2 0\nq2 0  3 1\n",
        "q1\tQ0\td1\t2\nq1\tQ0\td2\t0\nq2\tQ0\t3\t1\n",
        "qid iter docid rel\nq1 0 d1 2\nq1 0 d2 0\nq2 0 3 1\n",
        "\ufeffq1\td1\t2\r\nq1\td2\t0\r\n\r\nq2\t3\t1\r\n",
        "\ufeffquery_id corpus_id relevance\nq1 d1 2\nq1 d2 0\nq2 3 1\n",
        "score\tcorpus-id\tquery-id\n2\td1\tq1\n0\td2\tq1\n1\t3\tq2\n",
        "query-id\tcorpus-id\tscore\tby\nq1\td1\t2\ta\nq1\td2\t0\tb\nq2\t3\t1\t\n",
        "question\tpage\tstars\nq1\td1\t2\nq1\td2\t0\nq2\t3\t1\n",
        "q1\td1\t2\nq1\td1\t2\nq1\td2\t0\nq2\t3\t1\n",
    ],
)
def test_judgements_as_people_write_them(tmp_path: Path, qrels: str) -> None:
    data = load_beir(str(write(tmp_path / "set", qrels)))
    assert data.qrels == JUDGED
    assert not data.gaps


def test_a_grade_below_0_is_not_relevant(tmp_path: Path) -> None:
    data = load_beir(str(write(tmp_path / "set", "q1\td1\t-2\nq1\td2\t1\n")))
    assert data.qrels == {"q1": {"d1": -2, "d2": 1}}
    assert per_query({"q1": {"d1": 2.0, "d2": 1.0}}, data.qrels)["mrr@10"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("q1\td1\tgood\nq1\td2\t1\n", r"test.tsv:1: grade 'good' is not a whole number"),
        ("q1\td1\t0.5\nq2\t3\t1\n", r"test.tsv:1: grade '0.5' is not a whole number; multiply all grades"),
        ("q1\td1\t1,0\nq2\t3\t1\n", r"test.tsv:1: grade '1,0'"),
        ("q1\td1\t1\nq2\t3\tnan\n", r"test.tsv:2: grade 'nan'"),
        ("q1\td1\t1\nq2\t3\t1e12\n", r"test.tsv:2: grade '1e12' is beyond 1,000,000"),
        ("q1\td1\t1\nq1\td1\t2\n", r"test.tsv:2: .*another grade .* 1 at .*test.tsv:1; keep one"),
        ("q1 d1\n", r"test.tsv:1: 2 columns with spaces between them"),
        ("corpus-id\tquery-id\tstars\nd1\tq1\t1\n", r"test.tsv:1: the header is .*query-id, corpus-id and score"),
        ("", r"test.tsv holds no judgement"),
        ("query-id\tcorpus-id\tscore\n", r"test.tsv holds no judgement"),
        ("q1\td1\t0\n", r"calls no document relevant"),
        ("q1\tx1\t1\nq2\tx2\t1\n", r"no document that .*test.tsv judges is in .*corpus.jsonl"),
    ],
)
def test_judgements_that_cannot_be_used(tmp_path: Path, qrels: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        load_beir(str(write(tmp_path / "set", qrels)))


def test_what_judgements_name_and_the_set_lacks_is_told(tmp_path: Path, tiny_model: Path) -> None:
    folder = write(tmp_path / "set", "q1\td1\t1\nq1\tgone\t1\nq2\tgone\t1\nq7\td1\t1\n")
    assert load_beir(str(folder)).gaps == "2 judged documents missing, 1 query without text"
    arguments = ["eval", str(tiny_model), str(folder), "--no-cache"]
    for more in ([], ["--markdown"]):
        done = CliRunner().invoke(app, [*arguments, *more], catch_exceptions=False)
        assert "set: 2 judged documents missing, 1 query without text" in done.stdout
    row = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)["sets"]["set"]
    assert (row["queries"], row["unknown_documents"], row["unknown_queries"]) == (2, 2, 1)


def test_a_folder_that_lacks_a_part_is_told_with_what_is_there(tmp_path: Path) -> None:
    folder = write(tmp_path / "set")
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "test.txt")
    with pytest.raises(EvaluationError, match=r"no split 'test'; it has: none; .*holds test.txt"):
        load_sets([str(folder)])
    (folder / "queries.jsonl").rename(folder / "questions.jsonl")
    with pytest.raises(EvaluationError, match=r"queries.jsonl is missing; .*there are corpus.jsonl, qrels, questions"):
        load_sets([str(folder)])
    for name in ("corpus", "queries"):
        (folder / f"{name}.jsonl.gz").write_bytes(b"")
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(EvaluationError, match=r"corpus.jsonl is missing; .*unpack corpus.jsonl.gz"):
        load_sets([str(folder)])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"_id": "d9", "text": "caf\\ud83d"}', r"corpus.jsonl:4: the text holds half a surrogate pair"),
        ('{"_id": "\\udc00", "text": "x"}', r'corpus.jsonl:4: the "_id" holds half a surrogate pair'),
        ('{"id": "d9", "text": "x"}', r'corpus.jsonl:4: needs an object with an "_id", and is an object with id, text'),
        ('{"_id": 9.5, "text": "x"}', r'corpus.jsonl:4: the "_id" is 9.5; write a string or a whole number'),
    ],
)
def test_rows_that_no_set_can_hold(tmp_path: Path, line: str, message: str) -> None:
    folder = write(tmp_path / "set")
    with (folder / "corpus.jsonl").open("a") as handle:
        handle.write(line + "\n")
    with pytest.raises(EvaluationError, match=message):
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
