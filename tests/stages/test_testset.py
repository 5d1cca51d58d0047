"""A test set without labels: what is pooled and judged, what is used again, and what is refused."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import gecko
from gecko.cli.main import app
from gecko.core.counts import Counts
from gecko.core.errors import ConfigError, CorpusError, EvaluationError, RunError
from gecko.core.records import Grade, Passage, Query, Score
from gecko.encoder.nearest import top_k
from gecko.evaluation.beir import load_beir
from gecko.evaluation.bm25 import bm25_run
from gecko.evaluation.evaluate import evaluate_retrieval
from gecko.evaluation.testset import CUTS, grade, judged, pool, write_testset
from gecko.fret.relabel import relabel
from gecko.fret.user_queries import asked_id
from gecko.llm.fake import FakeLM
from gecko.run.folder import Run
from gecko.stages import testset
from gecko.stages.runner import Pipeline, distill
from gecko.stages.testset import Request, write

from ..conftest import write_corpus
from .test_runner import Listener, settings


@pytest.fixture(scope="module")
def finished(words: list[str], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    corpus = write_corpus(folder / "corpus.jsonl", words)
    with Run(folder / "run", settings(corpus, tiny_model, "generate.heldout=0.4")) as run:
        distill(run)
    return folder / "run"


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def log(words: list[str], tmp_path: Path) -> Path:
    path = tmp_path / "log.txt"
    path.write_text("".join(f"{words[n]} {words[n + 7]}?\n" for n in range(12)) + "zebra quagga\n")
    return path


class Counting(FakeLM):
    """Notes every pair that it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str]] = []

    def label_logprobs(self, prompt, groups):
        self.asked += [(query, group.passage) for group in groups for query in group.queries]
        return super().label_logprobs(prompt, groups)


def made(folder: Path, out: Path, teacher: FakeLM | None = None, **request: object):
    with Run(folder) as run:
        context = Pipeline(run)
        context.models.teacher = teacher or Counting()
        return write(context, Request(out, **request))  # type: ignore[arg-type]


def test_grades_are_cuts_of_the_probability() -> None:
    for odds in (-9.0, -0.01, 0.0, 0.01, 1.09, 1.1, 2.19, 2.2, 40.0):
        probability = 1 / (1 + math.exp(-odds))
        said = Score("q", "p", "t", "h", -1.0, 1, odds)
        assert grade(said) == sum(probability > cut for cut in CUTS)


def test_answered_grades_count_from_what_makes_a_positive() -> None:
    assert [grade(Grade("q", "p", "t", "h", answered)) for answered in range(4)] == [0, 0, 1, 2]


def test_held_out_queries_are_graded_as_the_obvious_way_grades_them(folder: Path, tmp_path: Path) -> None:
    found = made(folder, tmp_path / "judged", depth=4)
    with Run(folder) as run:
        context = Pipeline(run)
        queries, passages, prompts = context.heldout, context.passages, context.prompts
    assert queries and {query.id for query in found.queries} | {query.id for query in found.unanswered} == {
        query.id for query in queries
    }
    models = {"start": gecko.load_encoder(run.config.backbone), "student": gecko.load_encoder(str(folder / "model"))}
    for query in found.queries:
        wanted = set(bm25_run(passages, [(query.id, query.text)], 4)[query.id])
        for model in models.values():
            places, _ = top_k(model.queries([query.text], "search result"), model.passages(passages), 4)
            wanted |= {passages[place].id for place in places[0].tolist()}
        assert set(found.grades[query.id]) == wanted
        pairs = [(passage, [query]) for passage in passages if passage.id in wanted]
        scores = relabel(pairs, FakeLM(), prompts["likelihood"], prompts["relevance"], Counts())
        assert found.grades[query.id] == {score.passage_id: grade(score) for score in scores}

    data = load_beir(tmp_path / "judged")
    assert data.qrels == found.grades and data.queries == [(query.id, query.text) for query in found.queries]
    assert [(one.id, one.title, one.text) for one in data.passages] == [
        (one.id, one.title, one.text) for one in passages
    ]
    assert evaluate_retrieval([data], models)["judged"].mean("start") > 0
    card = (tmp_path / "judged" / "README.md").read_text()
    assert f"| queries | {len(found.queries):,} |" in card and str(tmp_path) not in card and "no human" in card
    table = pq.read_table(tmp_path / "judged" / "judgements.parquet")
    assert len(table) == sum(map(len, found.grades.values())) + len(
        [row for row in table.to_pylist() if row["query_id"] in {query.id for query in found.unanswered}]
    )


def test_nothing_is_judged_twice(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    with Run(folder) as run:
        context = Pipeline(run)
        texts = {query.id: query.text for query in context.heldout}
        paid = {
            (texts[score.query_id], context.by_id[score.passage_id].content)
            for score in run.read("relabel", Score)
            if score.query_id in texts
        }
    first, second, third = Counting(), Counting(), Counting()
    made(folder, tmp_path / "one", first, depth=4)
    assert first.asked and not paid & set(first.asked)
    made(folder, tmp_path / "again", second, depth=4)
    assert not second.asked
    assert all(
        (tmp_path / "again" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
        for name in ("qrels/test.tsv", "queries.jsonl", "unanswered.jsonl", "judgements.parquet")
    )
    made(folder, tmp_path / "deeper", third, depth=8)
    assert third.asked and not (paid | set(first.asked)) & set(third.asked)


def test_held_out_queries_of_released_rows_are_known_by_their_text(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testset, "own_queries", lambda _: [])  # as if all of them were released
    with Run(folder) as run:
        heldout = Pipeline(run).heldout
    monkeypatch.setattr(Pipeline, "heldout", [*heldout, replace(heldout[0], id="another id")])
    first, second = Counting(), Counting()
    found = made(folder, tmp_path / "one", first, depth=3)
    queries = [*found.queries, *found.unanswered]
    assert sorted(query.id for query in queries) == sorted(asked_id(text) for text in {one.text for one in heldout})
    made(folder, tmp_path / "two", second, depth=6)
    assert second.asked and not set(first.asked) & set(second.asked)


def test_a_log_and_a_further_model(folder: Path, log: Path, tiny_model: Path, tmp_path: Path) -> None:
    with Run(folder) as run:
        taught = next(query.text for query in Pipeline(run).queries if query.split == "train")
    log.write_text(log.read_text() + f"{taught.upper()}\n")
    other = shutil.copytree(tiny_model, tmp_path / "other")
    ui = Listener()
    with Run(folder) as run:
        context = Pipeline(run, ui)
        found = write(context, Request(tmp_path / "judged", str(log), (str(other),), depth=3))
    assert "1 that the run was trained on" in "\n".join(ui.said)
    assert set(found.systems) == {"bm25", "start", "student", "other"}
    assert "zebra quagga" in {query.text for query in found.unanswered}
    lines = [json.loads(line) for line in (tmp_path / "judged" / "unanswered.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [query.text for query in found.unanswered]
    assert not {line["_id"] for line in lines} & found.grades.keys()
    second = Counting()
    made(folder, tmp_path / "fewer", second, log=str(log), depth=3)
    assert not second.asked


def test_a_stopped_test_set_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dying(Counting):
        def judge(self, prompt, groups):
            if len(self.asked) > 10:
                raise KeyboardInterrupt
            return super().judge(prompt, groups)

    dying, rest, whole = Dying(), Counting(), Counting()
    with pytest.raises(KeyboardInterrupt):
        made(folder, tmp_path / "judged", dying, depth=8)
    assert not (tmp_path / "judged").exists()
    made(folder, tmp_path / "judged", rest, depth=8)
    with Run(folder) as run:
        shutil.rmtree(run.path / "testset")
    made(folder, tmp_path / "whole", whole, depth=8)
    assert not set(rest.asked) & set(dying.asked)
    assert sorted(rest.asked + dying.asked) == sorted(whole.asked)
    for name in ("qrels/test.tsv", "unanswered.jsonl"):
        assert (tmp_path / "judged" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_makes_no_test_set(folder: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class No(FakeLM):
        def label_logprobs(self, prompt, groups):
            return [[(math.log(0.1), math.log(0.9)) for _ in group.queries] for group in groups]

    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="there is there already"):
        made(folder, tmp_path / "there")
    with pytest.raises(ConfigError, match="--depth 0: give at least 1"):
        Request(tmp_path / "none", depth=0)
    with pytest.raises(ConfigError, match="another model is called 'model' already"):
        made(folder, tmp_path / "out", models=(str(folder / "model"), str(folder / "model")))
    with pytest.raises(EvaluationError, match="no pooled passage relevant for any of 12 queries"):
        made(folder, tmp_path / "out", No(), log=str(log), limit=12)
    log.write_text("?\n!\n")
    with pytest.raises(CorpusError, match="holds no query that can be used"):
        made(folder, tmp_path / "out", log=str(log))
    with monkeypatch.context() as patched, pytest.raises(RunError, match="holds out no query"):
        patched.setattr(Pipeline, "heldout", [])
        made(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pools() -> None:
    rankings = {"one": {"q": {"a": 2.0, "b": 1.0}}, "two": {"q": {"c": 2.0, "a": 1.0}}}
    assert pool(rankings, 1) == {"q": ["a", "c"]} and pool(rankings, 2) == {"q": ["a", "b", "c"]}
    with pytest.raises(ConfigError, match="pooled 1 deep from one, no query has more than one candidate"):
        pool({"one": rankings["one"]}, 1)


def test_an_id_that_no_line_holds(tmp_path: Path) -> None:
    query = Query("q", "", "text", "", "")
    scores = [Score("q", key, "t", "", 0.0, 0, 2.0) for key in ("a\tb", "c")]
    found = judged([query], {"q": ["a\tb", "c"]}, scores, {"one": {"q": {"a\tb": 1.0, "c": 0.5}}}, 5)
    assert found.systems == {"one": 2}
    with pytest.raises(EvaluationError, match=r"the id 'a\\tb' has white space"):
        write_testset(tmp_path / "out", [Passage("c", "", "c")], found, scores, [])
    assert not list(tmp_path.iterdir())


def test_the_command(folder: Path, tmp_path: Path, own_cache: Path) -> None:
    result = CliRunner().invoke(app, ["testset", str(folder), "-o", str(tmp_path / "judged"), "--depth", "3"])
    assert result.exit_code == 0, result.output
    assert "kept apart as unanswered: " in " ".join(result.stdout.split())
    assert load_beir(tmp_path / "judged").queries
