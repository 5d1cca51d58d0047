"""Runs whose teacher judges by answers in words: from the judgements to rows, labels, a release and its card."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gecko.config.load import load_config
from gecko.config.run import RunConfig
from gecko.core.errors import ConfigError, RunError, TeacherError
from gecko.core.records import Candidate, Example, Grade, Judged, Passage, Place, Query
from gecko.evaluation.ablate import as_judged
from gecko.fret.answered import grade_pairs, order_lists
from gecko.fret.export_rows import export_rows
from gecko.fret.release import load_release, read_release, write_release
from gecko.fret.select import group_labels
from gecko.fret.view import all_scores, judgements
from gecko.llm import registry
from gecko.llm.answers import Answer, Question
from gecko.llm.fake import FakeLM
from gecko.prompts import Prompt
from gecko.report.cards import dataset_card
from gecko.run.folder import Run
from gecko.stages.dataset import released_rows
from gecko.stages.reuse import REUSED
from gecko.stages.runner import Pipeline, distill

from ..conftest import Listener, write_corpus

RECORDS: dict[str, type[Judged]] = {"graded": Grade, "listwise": Place}


class Counting(FakeLM):
    """Counts the questions, and breaks down after a while."""

    def __init__(self, breaks: int | None = None) -> None:
        super().__init__()
        self.breaks, self.asked = breaks, []  # type: ignore[var-annotated]

    def answer(self, prompt: Prompt, questions: Sequence[Question]) -> list[Answer]:
        if self.breaks is not None and len(self.asked) >= self.breaks:
            raise TeacherError("it is down")
        self.asked += questions
        return super().answer(prompt, questions)


@pytest.fixture(scope="module")
def corpus(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", words)


def settings(corpus: Path, model: Path, judge: str, *more: str) -> RunConfig:
    overrides = (
        "generate.queries=16",
        "generate.neighbourhood=4",
        "generate.heldout=0.25",
        "generate.min_seed_chars=10",
        "mine.n=6",
        "relabel.shard_passages=4",
        "train.formats=['native']",
        "train.epochs=1",
        "train.min_steps=0",
        "train.batch=4",
        "train.max_tokens=32",
        "train.loss.distill=0.5",
        "evaluate.resamples=100",
        "check.enabled=false",
        f"relabel.judge={judge}",
        *more,
    )
    base = {"corpus": {"sources": [str(corpus)]}, "llm": "fake", "backbone": str(model)}
    return load_config(None, overrides, base)


def through(path: Path, config: RunConfig, teacher: FakeLM, stage: str = "relabel") -> list[Judged]:
    with Run(path, config) as run:
        pipeline = Pipeline(run)
        pipeline.models.teacher = teacher
        pipeline.ingest()
        pipeline.through(stage)
        return judgements(run, "relabel")


@pytest.mark.parametrize("judge", RECORDS)
def test_a_whole_run(judge: str, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    ui = Listener()
    with Run(tmp_path / "run", settings(corpus, tiny_model, judge)) as run:
        result = distill(run, ui)
        assert result["agreement"]["queries"] > 0
        found = judgements(run, "relabel")
        assert {type(one) for one in found} == {RECORDS[judge]}
        candidates, queries = run.read("mine", Candidate), run.read("generate", Query)
        by_id = {passage.id: passage for passage in run.read("ingest", Passage)}
        expected = judged_at_once(judge, queries, candidates, by_id)
        assert sorted(map(str, found)) == sorted(map(str, expected))
        rows = run.read("select", Example)
        assert rows and all(list(row.fused) == sorted(row.fused, reverse=True) for row in rows)
        for row in rows:
            best = [one for one in found if (one.query_id, one.passage_id) == (row.query_id, row.positive.id)]
            assert all(one.grade >= 2 if isinstance(one, Grade) else one.relevant for one in best)  # type: ignore[union-attr]
        assert run.finished("relabel").parts["judge"] == judge
        assert ("teacher" in run.finished("relabel").parts) and "prompt likelihood" not in run.finished("plan").parts
        said = [text for text in ui.said if "Kendall's tau" in text]
        assert len(said) == (judge == "listwise")
        assert "nan" not in (run.path / "report.html").read_text().replace("finance", "")
        card = (run.path / "model" / "README.md").read_text()
        assert {"graded": "grade of 2 or more", "listwise": "a yes of its own"}[judge] in card
        assert "query likelihood" not in card
        _shared(run, judge, queries, candidates, tmp_path)


def judged_at_once(
    judge: str, queries: list[Query], candidates: list[Candidate], passages: dict[str, Passage]
) -> list[Judged]:
    """What the library says of all pairs in one call, without shards."""
    from gecko.core.counts import Counts
    from gecko.prompts import load_prompt

    lists = {
        query.id: [passages[one.passage_id] for one in candidates if one.query_id == query.id] for query in queries
    }
    if judge == "listwise":
        asked = [(query, lists[query.id]) for query in queries]
        return list(order_lists(asked, FakeLM(), load_prompt("listwise"), load_prompt("relevance"), 20, Counts()))
    pairs = [(passage, [query]) for query in queries for passage in lists[query.id]]
    return list(grade_pairs(pairs, FakeLM(), load_prompt("graded"), Counts()))


def _shared(run: Run, judge: str, queries: list[Query], candidates: list[Candidate], folder: Path) -> None:
    """The release of a run reads back as the run's own labels, its card says what the columns are, and rows are exported."""
    pipeline = Pipeline(run)
    write_release(released_rows(run), folder / "fret.parquet")
    names = pq.read_schema(folder / "fret.parquet").field("candidates").type.value_type.names
    extra = {"graded": ["grade"], "listwise": ["first", "second", "relevant"]}[judge]
    assert names == ["passage_id", "content", "cosine", "ql_sum", "ql_tokens", "rc", *extra]
    released = load_release(folder, pipeline.by_id, run.config.select)
    assert released.labels.keys() == pipeline.labels.keys()
    for key, labels in released.labels.items():
        assert [(one.passage_id, one.rc_rank, one.fused) for one in labels] == [
            (one.passage_id, one.rc_rank, one.fused) for one in pipeline.labels[key]
        ]
        assert [one.rc for one in labels] == pytest.approx([one.rc for one in pipeline.labels[key]], nan_ok=True)
    again, some, judged = as_judged(released)
    labels = group_labels(again, some, judged, run.config.select)
    assert {key: [one.passage_id for one in row] for key, row in labels.items()} == {
        key: [one.passage_id for one in row] for key, row in pipeline.labels.items()
    }
    card = dataset_card(list(read_release(folder)), run.config, {"graded": "hash"})
    assert {"graded": "a grade from 0 to 3", "listwise": "in order"}[judge] in card and "(QL)" not in card
    counts = export_rows(pipeline, folder / "st", "sentence-transformers")
    assert counts["train"] == len(run.read("select", Example))
    if judge == "graded":
        export_rows(pipeline, folder / "ce", "cross-encoder")
        scores = set(pq.read_table(folder / "ce" / "train.parquet")["score"].to_pylist())
        assert all(any(math.isclose(score, value) for value in (0.125, 0.375, 0.625, 0.875)) for score in scores)
    else:
        with pytest.raises(RunError, match=r"in order \(relabel\.judge=listwise\).*take sentence-transformers"):
            export_rows(pipeline, folder / "ce", "cross-encoder")


@pytest.mark.parametrize("judge", RECORDS)
def test_a_run_that_broke_down_goes_on_and_asks_nothing_twice(
    judge: str, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    whole = Counting()
    expected = through(tmp_path / "whole", settings(corpus, tiny_model, judge), whole)
    first, second = Counting(breaks=len(whole.asked) // 2), Counting()
    config = settings(corpus, tiny_model, judge)
    with pytest.raises(TeacherError, match="it is down"):
        through(tmp_path / "run", config, first)
    assert through(tmp_path / "run", config, second) == expected
    done = {str(question) for question in first.asked}
    assert len(first.asked) + len(second.asked) >= len(whole.asked) and second.asked
    assert sum(str(question) in done for question in second.asked) <= 3 * 4  # of the shard that was not finished


@pytest.mark.parametrize("judge", RECORDS)
def test_a_run_that_grows_takes_over_what_is_paid_for(
    judge: str, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    config = settings(corpus, tiny_model, judge)
    before = through(tmp_path / "run", config, Counting())
    more = config.model_copy(update={"generate": config.generate.model_copy(update={"queries": 24})})
    teacher = Counting()
    grown = through(tmp_path / "run", more, teacher)
    assert set(before) <= set(grown) and len(grown) > len(before)
    with Run(tmp_path / "run") as run:
        assert run.finished("relabel").notes[REUSED] == len(before)
    asked = {text for question in teacher.asked for text in question.queries}
    new = {one.query_id for one in grown} - {one.query_id for one in before}
    assert len(asked) <= len(new)


def test_the_form_the_prompt_and_the_window_are_part_of_what_a_judgement_is_known_by(
    corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    prompt = tmp_path / "mine.toml"
    prompt.write_text(
        'form = "chat"\n[[messages]]\nrole = "user"\ncontent = """Grade.\\n\\nPassage: {passage}\\n\\nQueries:\\n{query}"""\n'
    )
    found = {}
    for name, more in {
        "graded": ("relabel.judge=graded",),
        "own": ("relabel.judge=graded", f"prompts.graded={prompt}"),
        "listwise": ("relabel.judge=listwise",),
        "window": ("relabel.judge=listwise", "relabel.window=3"),
        "logprobs": ("relabel.judge=logprobs",),
        "auto": ("relabel.judge=auto",),
    }.items():
        judged = through(tmp_path / name, settings(corpus, tiny_model, "auto", *more), FakeLM())
        with Run(tmp_path / name) as run:
            found[name] = run.finished("relabel").fingerprint, judged[0].prompt_hash
    assert len({one for one, _ in found.values()}) == 5 and found["auto"] == found["logprobs"]
    assert found["graded"][1] != found["own"][1] and found["listwise"][1] == found["window"][1]


def test_several_teachers_of_different_forms(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = settings(corpus, tiny_model, "graded", 'relabel.teachers=["fake"]')
    with Run(tmp_path / "run", config) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        pipeline.through("select")
        assert {type(one) for one in all_scores(run)} == {Grade}
        assert run.manifest("relabel-2").rows == run.manifest("relabel").rows  # type: ignore[union-attr]


def test_a_teacher_without_answers_is_refused_before_anything_is_paid_for(
    corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    config = settings(corpus, tiny_model, "graded").model_copy(update={"llm": "smollm2"})
    with Run(tmp_path / "run", config) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        with pytest.raises(ConfigError, match=r"relabel.judge = 'graded', but smollm2 gives log-probabilities"):
            pipeline.through("relabel")
        assert run.manifest("generate") is None


@pytest.mark.parametrize("judge", RECORDS)
def test_a_set_of_the_mixture_is_judged_in_the_form_of_the_run(
    judge: str, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [
        '{"query": "where is the river stone", "text": "the river stone lies there"}',
        '{"query": "when is the winter market", "text": "the winter market opens at noon"}',
        '{"query": "who plays the violin", "text": "a pupil of the school plays the violin"}',
    ]
    (tmp_path / "faq.jsonl").write_text("\n".join(rows) + "\n")
    config = settings(corpus, tiny_model, judge)
    sets = [{"name": "faq", "kind": "pairs", "source": str(tmp_path / "faq.jsonl"), "relabel": True}]
    config = RunConfig.model_validate(config.model_dump() | {"mixture": {"sets": sets}})
    with Run(tmp_path / "run", config) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        pipeline.through("mixture")
        assert {type(one) for one in judgements(run, "relabel-faq")} == {RECORDS[judge]}
        assert run.read("select-faq", Example)


def test_the_estimate_of_a_server_that_grades_counts_its_requests(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.BACKENDS, "fake", replace(registry.BACKENDS["fake"], reads_once=False))
    teacher, config = Counting(), settings(corpus, tiny_model, "graded")
    with Run(tmp_path / "run", config) as run:
        pipeline = Pipeline(run)
        pipeline.models.teacher = teacher
        found = re.search(r"tokens read in about (\d+) requests, (\d+) written", pipeline.estimate())
        assert found and 6 < int(found[1]) <= 16 * 6 and int(found[2]) == 16 * 6 * 6
        teacher.asked.clear()
        pipeline.through("relabel")
        assert len(teacher.asked) <= int(found[1]) <= 2 * len(teacher.asked)


def test_budgets_and_estimates_know_the_form(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    for judge in ("logprobs", *RECORDS):
        config = settings(corpus, tiny_model, judge, "generate.queries=null", "budget=6000tok")
        with Run(tmp_path / judge, replace_price(config)) as run:
            pipeline = Pipeline(run)
            said = pipeline.estimate()
            assert "relabel:" in said and "tokens read" in said
            assert "money:    about " in said and "at 2 read and 8 written a million tokens" in said


def replace_price(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"price": config.price.model_copy(update={"input": 2.0, "output": 8.0})})
