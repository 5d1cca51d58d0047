"""A run with two teachers, and one whose teacher cannot score a given text."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from gecko.config.load import load_config
from gecko.config.stages import RelabelConfig
from gecko.core.errors import TeacherError
from gecko.core.files import digest
from gecko.core.progress import Ui
from gecko.core.records import Example, Score
from gecko.fret.view import all_scores
from gecko.llm import registry
from gecko.llm.base import Group
from gecko.llm.fake import FakeLM
from gecko.prompts import Prompt
from gecko.run.folder import Run
from gecko.stages.runner import Pipeline


class Second(FakeLM):
    """Says something else, and counts what it is asked."""

    name, identity = "second", "second-1"
    asked = 0

    def score(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[tuple[float, int]]]:
        type(self).asked += sum(len(group.queries) for group in groups)
        return [
            [(-1.0 - int(digest(group.passage, query)[:4], 16) / 65536, 1) for query in group.queries]
            for group in groups
        ]


class Third(Second):
    name, identity = "third", "third-1"
    asked = 0


class Mute(FakeLM):
    name, identity, can_score = "mute", "mute-1", False

    def score(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[tuple[float, int]]]:
        raise AssertionError("it cannot")

    judge = score  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"fake": FakeLM, "second": Second, "third": Third, "mute": Mute}

    def load_teacher(spec: str, config: RelabelConfig, ui: Ui) -> FakeLM:
        return known[spec]()

    monkeypatch.setattr(registry, "load_teacher", load_teacher)
    monkeypatch.setattr(registry, "teacher_identity", lambda spec: known[spec].identity)
    monkeypatch.setattr(Second, "asked", 0)
    monkeypatch.setattr(Third, "asked", 0)


def settings(folder: Path, words: list[str], model: Path, *more: str):
    corpus = folder / "corpus.jsonl"
    rows = [
        {"_id": f"p{n}", "text": " ".join(words[(n * 7 + k * (1 + n % 5)) % len(words)] for k in range(12))}
        for n in range(30)
    ]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ("generate.queries=8", "generate.min_seed_chars=10", "mine.n=4", "select.min_rc=null", *more)
    base = {"corpus": {"sources": [str(corpus)]}, "llm": "fake", "backbone": str(model)}
    return load_config(None, (*overrides, "check.enabled=false"), base)


def rows_of(pipeline: Pipeline) -> list[Example]:
    pipeline.ingest()
    pipeline.through("select")
    return pipeline.run.read("select", Example)


def test_two_teachers(tmp_path: Path, words: list[str], tiny_model: Path) -> None:
    folder = tmp_path / "run"
    with Run(folder, settings(tmp_path, words, tiny_model)) as run:
        alone = rows_of(Pipeline(run))
        count = len(all_scores(run))
    with Run(folder, settings(tmp_path, words, tiny_model, 'relabel.teachers=["second"]'), force=True) as run:
        pipeline = Pipeline(run, force=True)
        together = rows_of(pipeline)
        scores = all_scores(run)
        assert Second.asked == count and len(scores) == 2 * count
        assert {score.teacher for score in scores} == {"fake-1", "second-1"}
        ranks = [label.ql_rank for row in pipeline.labels.values() for label in row]
        assert any(rank != int(rank) for rank in ranks)
    assert [row.query_id for row in together] == [row.query_id for row in alone]
    assert [row.fused for row in together] != [row.fused for row in alone]
    with Run(folder, settings(tmp_path, words, tiny_model), force=True) as run:  # and back: nobody is asked again
        assert rows_of(Pipeline(run, force=True)) == alone
    assert Second.asked == count


def test_teachers_in_another_place_of_the_list_are_not_asked_again(
    tmp_path: Path, words: list[str], tiny_model: Path
) -> None:
    folder, asked = tmp_path / "run", []
    for teachers in ('["second","third"]', '["third","second"]', '["third"]', "[]", '["third","second"]'):
        given = settings(tmp_path, words, tiny_model, f"relabel.teachers={teachers}")
        with Run(folder, given, force=True) as run:
            rows_of(Pipeline(run, force=True))
            assert len(all_scores(run)) == (1 + teachers.count('d"')) * len(run.read("relabel", Score))
        asked.append((Second.asked, Third.asked))
    assert 0 < asked[0][0] == asked[0][1]
    assert len(set(asked)) == 1


def test_a_teacher_without_likelihood(tmp_path: Path, words: list[str], tiny_model: Path) -> None:
    with (
        Run(tmp_path / "refused", settings(tmp_path, words, tiny_model, "llm=mute")) as run,
        pytest.raises(TeacherError, match="mute cannot return the log-probabilities .* --set select.fusion=rc"),
    ):
        rows_of(Pipeline(run))
    only = settings(tmp_path, words, tiny_model, "llm=mute", "select.fusion=rc")
    with Run(tmp_path / "run", only) as run:
        assert len(rows_of(Pipeline(run))) > 3
        assert {score.ql_tokens for score in all_scores(run)} == {0}


def test_the_estimate_names_each_stage_and_pays_for_none(tmp_path: Path, words: list[str], tiny_model: Path) -> None:
    with Run(tmp_path / "run", settings(tmp_path, words, tiny_model, 'relabel.teachers=["second"]')) as run:
        text = Pipeline(run).estimate()
        assert run.manifest("generate") is None and run.manifest("relabel") is None
    lines = {line.partition(":")[0]: line for line in text.splitlines()}
    assert [name for name in lines if name.isalpha()] == ["generate", "mine", "relabel", "train"]
    assert "30 passages" in text and "by each of 1 further teachers" in lines["relabel"]
    assert Second.asked == 0
