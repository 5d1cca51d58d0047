"""A teacher's forms of judging in words held against that of log-probabilities, each answer asked for once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gecko.core.errors import ConfigError, TeacherError
from gecko.core.progress import Silent
from gecko.core.records import Grade, Place
from gecko.encoder import Encoder, load_encoder
from gecko.evaluation.builtin import probe
from gecko.evaluation.teacher.answers import Judge, load_form
from gecko.evaluation.teacher.probe import run_probe
from gecko.evaluation.teacher.value import ValueConfig, forms_of, teacher_value
from gecko.llm.answers import Answer, Question
from gecko.llm.base import Refusal
from gecko.llm.fake import FakeLM
from gecko.prompts import Prompt, load_prompt
from gecko.report.teacher import form_rows, value_markdown, value_verdict

from .test_value import SETS, Teacher, cache, start

__all__ = ["cache", "start"]  # fixtures

CONFIG = ValueConfig(forms=("relevance", "graded", "listwise"), queries=12, candidates=6, resamples=200, window=4)


class Wordy(Teacher):
    """Says in words what it knows, but grades the other way round where its sign is."""

    def __init__(self, sign: int = 1, batches: int = 10**9, *, words: int = 1, refuses: str = "nothing") -> None:
        super().__init__(sign, batches)
        self.words, self.refuses = words, refuses
        self.questions: list[Question] = []

    def answer(self, prompt: Prompt, questions: Sequence[Question]) -> list[Answer]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.questions += questions
        self.usage.read += 11 * len(questions)
        found: list[Answer] = []
        for place, question in enumerate(questions):
            values = [self.words * self.value(one, query) for one in question.passages for query in question.queries]
            if any(self.refuses in query for query in question.queries):
                self.usage.refused += 1
                self.usage.refusals.append(Refusal(place, "refused by the teacher (400)", "no"))
                found.append(tuple([None] * question.size))
            elif question.kind == "order":
                found.append(tuple(sorted(range(len(values)), key=lambda one: -values[one])))
            elif question.kind == "grades":
                found.append(tuple(3 if value >= 1 else 0 for value in values))
            else:
                found.append((int(values[0] < 1),))
        return found


def measure(teacher: FakeLM, start: Encoder, config: ValueConfig = CONFIG, name: str = "t") -> dict[str, Any]:
    judge = Judge(name, lambda: teacher, config.passage_tokens, Silent(), window=config.window)
    return teacher_value(SETS, config, judge, lambda: start, "start")


def test_all_forms_of_a_knowing_teacher(start: Encoder) -> None:
    teacher = Wordy()
    result = measure(teacher, start)
    rows = {form: numbers["macro"] for form, numbers in result["forms"].items()}
    assert [list(row)[1:] for row in rows.values()] == [
        ["retriever", "ql", "rc", "rrf", "rrf+retriever"],
        ["retriever", "rc"],
        ["retriever", "rc"],
    ]
    # What it knows is a positive and the rest in any order, so all forms reach what the candidates allow.
    assert rows["graded"]["rc"] == rows["listwise"]["rc"] == rows["relevance"]["rc"]
    assert result["forms"]["graded"]["over_first"] == [0, 0, 0]
    table = form_rows(result)
    assert table[0][:2] == ("form", "retriever") and "rrf or rc − retriever (95 %)" in table[0]
    assert [row[0] for row in table[1:]] == ["relevance", "graded", "listwise"] and table[2][2] == "–"
    assert "| graded |" in value_markdown(result | {"settings": {"backbone": "b", "seed": 0, "resamples": 200}})
    asked = len(teacher.questions)
    assert measure(teacher, start)["forms"] == result["forms"] and len(teacher.questions) == asked
    more = ValueConfig(forms=("listwise",), queries=12, candidates=6, resamples=200, window=3)
    measure(teacher, start, more)
    assert len(teacher.questions) > asked, "another window is another order"


def test_the_best_form_is_named_with_its_setting(start: Encoder, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('form = "completion"\ntemplate = "{passage}\\n{query}"\n')
    result = measure(Wordy(sign=-1, words=-1), start, ValueConfig(("relevance", f"graded:{own}"), 12, 6, resamples=200))
    assert result["best"]["form"] == f"graded:{own}" and result["best"]["verdict"] == "passes"
    said = value_verdict(result)
    assert f"(--set relabel.judge=graded --set prompts.graded={own})" in said and "prompts.query_likelihood" not in said
    assert measure(Wordy(words=-1), start, name="other")["best"]["form"] == "relevance"
    with pytest.raises(ConfigError, match="form graded:generate: prompt .* has no {query}"):
        load_form("graded:generate")


def test_a_check_that_was_stopped_goes_on(start: Encoder) -> None:
    whole = Wordy()
    result = measure(whole, start)
    stopped = Wordy(batches=7)
    judge = Judge("other", lambda: stopped, 256, Silent(), window=4)
    with pytest.raises(KeyboardInterrupt):
        teacher_value(SETS, CONFIG, judge, lambda: start, "start")
    second = Wordy()
    judge = Judge("other", lambda: second, 256, Silent(), window=4)
    again = teacher_value(SETS, CONFIG, judge, lambda: start, "start")
    assert again["forms"].keys() == result["forms"].keys() and again["best"]["form"] == result["best"]["form"]
    assert len(second.questions) < len(whole.questions)


def test_a_query_that_one_form_has_no_answer_to_is_left_out_of_all(start: Encoder) -> None:
    bad = SETS[0].queries[0][1]
    with_all = measure(Wordy(), start)
    judge = Judge("bad", lambda: Wordy(refuses=bad), 256, Silent(), window=4)
    result = teacher_value(SETS, CONFIG, judge, lambda: start, "start")
    for form in CONFIG.forms:
        counted = [numbers["sets"]["one"]["queries"] for numbers in (result["forms"][form], with_all["forms"][form])]
        assert counted[0] <= counted[1] == 12
    assert len({numbers["sets"]["one"]["queries"] for numbers in result["forms"].values()}) == 1


def test_judgements_come_back_as_records(start: Encoder) -> None:
    passages = SETS[0].passages[:3]
    judge = Judge("t", Wordy, 256, Silent())
    query = passages[1].text
    groups = [(passage, [query]) for passage in passages]
    for name, kind in (("graded", Grade), ("listwise", Place)):
        form = load_form(name)
        assert judge.ask(form, groups, "test", {query: passages}) == 3
        found = [judge.score(form, "q", query, passage) for passage in passages]
        assert {type(one) for one in found} == {kind}
        assert judge.ask(form, groups, "test", {query: passages}) == 0
        if isinstance(found[1], Grade):
            assert [one.grade for one in found] == [0, 3, 0]  # type: ignore[union-attr]
        else:
            assert (found[1].first, found[1].second, found[1].relevant) == (1, 1, True)  # type: ignore[union-attr]


def test_forms_that_a_teacher_has() -> None:
    assert forms_of(FakeLM()) == ("relevance", "graded", "listwise")

    class Mute(FakeLM):
        can_answer = False

    assert forms_of(Mute()) == ("relevance",)

    class Speaking(FakeLM):
        def no_labels(self, prompt: Prompt) -> str:
            return "it shows none"

    assert forms_of(Speaking()) == ("graded", "listwise")

    class Neither(Mute, Speaking):
        pass

    with pytest.raises(TeacherError, match="it shows none"):
        forms_of(Neither())


@pytest.mark.parametrize("judging", ["graded", "listwise"])
def test_the_probe_of_a_run(judging: Any, tiny_model: Path) -> None:
    grades = {
        (passage.content, text): topic.qrels[key].get(passage.id, 0)
        for topic in probe()
        for key, text in topic.queries
        for passage in topic.passages
    }

    class Knowing(FakeLM):
        name, identity = "knowing", "knowing"

        def answer(self, prompt: Prompt, questions: Sequence[Question]) -> list[Answer]:
            found: list[Answer] = []
            for question in questions:
                known = [grades[one, query] for one in question.passages for query in question.queries]
                order = sorted(range(len(known)), key=lambda place: -known[place])
                found.append(
                    tuple(order) if question.kind == "order" else tuple(known) if question.kind == "grades" else (0,)
                )
            return found

    prompts = {"graded": ("graded", "graded"), "listwise": ("listwise", "relevance")}[judging]
    likelihood, relevance = map(load_prompt, prompts)
    result = run_probe(
        Knowing(),
        likelihood,
        relevance,
        load_encoder(str(tiny_model)),
        passage_tokens=256,
        resamples=200,
        seed=0,
        judging=judging,
        window=99,
    )
    assert result.rc == 1.0 and result.ql is None and result.rrf is None and result.low > 0
