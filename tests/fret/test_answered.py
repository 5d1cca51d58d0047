"""Judging by answers: grades by hand, orders against a slow and obvious form of RankGPT, and what has no answer."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gecko.config.stages import SelectConfig
from gecko.core.counts import Counts
from gecko.core.errors import RunError
from gecko.core.records import Candidate, Grade, Passage, Place, Query, Score
from gecko.fret.answered import QUERIES_A_REQUEST, grade_pairs, order_agreement, order_lists, windows
from gecko.fret.fuse import fuse, log_odds
from gecko.fret.judging import FORMS, answers_hash, form_of
from gecko.fret.relabel import REFUSED
from gecko.fret.select import group_labels, select
from gecko.llm.answers import Answer, Question
from gecko.llm.base import Refusal
from gecko.llm.fake import FakeLM
from gecko.prompts import Prompt, load_prompt

GRADED, LISTWISE, RELEVANCE = map(load_prompt, ("graded", "listwise", "relevance"))
JAM = Passage("jam", "", "Mould grows on jam when the jar was not sealed.")
BIRD = Passage("bird", "Godwit", "The godwit flies across the whole ocean.")
NIGHT = Passage("night", "", "Stars shine.")


def query(name: str, text: str) -> Query:
    return Query(name, "task", text, "jam", "fake")


MOULD, OCEAN, SEALED = query("q1", "mould grows jam ocean"), query("q2", "godwit ocean"), query("q3", "jar sealed")


class Counting(FakeLM):
    """Counts its questions; has no answer to what speaks of ``without``."""

    def __init__(self, without: str = "nothing") -> None:
        super().__init__()
        self.without, self.asked = without, []  # type: ignore[var-annotated]

    def answer(self, prompt: Prompt, questions: Sequence[Question]) -> list[Answer]:
        self.asked += questions
        answers = super().answer(prompt, questions)
        for place, question in enumerate(questions):
            wrong = [self.without in text for text in question.queries]
            if any(wrong):
                self.usage.refused += 1
                self.usage.refusals.append(Refusal(place, "refused by the teacher (400)", "filtered"))
                bad = wrong if question.kind == "grades" else [True] * question.size
                answers[place] = tuple(None if one else said for one, said in zip(bad, answers[place], strict=True))
        return answers


def test_grades_by_hand() -> None:
    counts, teacher = Counts(), Counting()
    pairs = [(JAM, [MOULD, OCEAN, SEALED]), (BIRD, [OCEAN])]
    grades = list(grade_pairs(pairs, teacher, GRADED, counts))
    # The share of the query's words that the passage has, in steps of a third.
    assert [(one.query_id, one.passage_id, one.grade) for one in grades] == [
        ("q1", "jam", 2),
        ("q2", "jam", 0),
        ("q3", "jam", 3),
        ("q2", "bird", 3),
    ]
    assert [len(question.queries) for question in teacher.asked] == [3, 1]
    assert {(one.teacher, one.prompt_hash) for one in grades} == {("fake-1", answers_hash(GRADED))}
    assert counts.tokens == teacher.usage.tokens > 0 and not counts.notes[REFUSED]
    assert answers_hash(GRADED) != answers_hash(replace(GRADED, hash="other"))


def test_many_queries_of_a_passage_are_asked_in_parts_and_known_grades_are_not_asked_for() -> None:
    queries = [query(f"q{n}", f"jam number {n}") for n in range(QUERIES_A_REQUEST + 3)]
    teacher = Counting()
    grades = list(grade_pairs([(JAM, queries)], teacher, GRADED, Counts()))
    assert [question.size for question in teacher.asked] == [QUERIES_A_REQUEST, 3]
    assert [one.query_id for one in grades] == [one.id for one in queries]
    again = Counting()
    known = {(one.query_id, one.passage_id): replace(one, grade=3) for one in grades[:-1]}
    found = list(grade_pairs([(JAM, queries)], again, GRADED, Counts(), known))
    assert found == [*known.values(), grades[-1]]
    assert [question.queries for question in again.asked] == [(queries[-1].text,)]


def test_what_has_no_answer_has_no_grade_and_is_counted() -> None:
    counts = Counts()
    grades = list(grade_pairs([(JAM, [MOULD, OCEAN]), (BIRD, [OCEAN])], Counting("godwit"), GRADED, counts))
    assert [(one.query_id, one.passage_id) for one in grades] == [("q1", "jam")]
    assert counts.notes[REFUSED] == 2
    assert counts.drops == {"refused by the teacher (400)": 2}
    assert counts.examples["refused by the teacher (400)"] == ["passage jam: filtered", "passage bird: filtered"]


def ranked(passages: Sequence[Passage], asked: Query, width: int) -> list[Passage]:
    """RankGPT's sliding window as it is told, one window after the other."""
    order, end, lm = list(passages), len(passages), FakeLM()
    while True:
        start = max(0, end - width)
        texts = tuple(passage.content for passage in order[start:end])
        [answer] = lm.answer(LISTWISE, [Question("order", texts, (asked.text,))])
        order[start:end] = [order[start + (one or 0)] for one in answer]
        if start == 0:
            return order
        end -= max(1, width // 2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6), min_size=1, max_size=12), st.integers(2, 14))
def test_orders_are_those_of_a_sliding_window(texts: list[list[str]], width: int) -> None:
    passages = [Passage(f"p{n}", "", " ".join(letter * 3 for letter in letters)) for n, letters in enumerate(texts)]
    queries = [query("q1", "aaa bbb ccc"), query("q2", "ddd eee fff ggg")]
    places = list(order_lists([(one, passages) for one in queries], FakeLM(), LISTWISE, RELEVANCE, width, Counts()))
    for one in queries:
        mine = {place.passage_id: place for place in places if place.query_id == one.id}
        first, second = ranked(passages, one, width), ranked(passages[::-1], one, width)
        assert sorted(mine, key=lambda key: mine[key].first) == [passage.id for passage in first]
        assert sorted(mine, key=lambda key: mine[key].second) == [passage.id for passage in second]
        told = [place for place in mine.values() if place.relevant is not None]
        best = min(mine.values(), key=lambda place: (place.first + place.second, list(mine).index(place.passage_id)))
        assert told == [best]


@given(st.integers(1, 60), st.integers(2, 25))
def test_windows_reach_from_the_last_to_the_first(count: int, width: int) -> None:
    spans = windows(count, width)
    assert spans[0][1] == count and spans[-1][0] == 0
    assert all(end - start <= width for start, end in spans)
    assert all(after[1] > before[0] and after[1] < before[1] for before, after in pairwise(spans))


class Repeating(FakeLM):
    """Gives passages back in the order in which it was shown them, and says no to each."""

    def answer(self, prompt: Prompt, questions: Sequence[Question]) -> list[Answer]:
        return [tuple(range(one.size)) if one.kind == "order" else (1,) for one in questions]


def test_a_teacher_that_repeats_what_it_is_shown_changes_nothing() -> None:
    places = list(order_lists([(OCEAN, [NIGHT, BIRD, JAM])], Repeating(), LISTWISE, RELEVANCE, 20, Counts()))
    assert [(one.first, one.second, one.relevant) for one in places] == [(1, 3, False), (2, 2, None), (3, 1, None)]
    candidates = [Candidate("q2", one.passage_id, rank, 0.5) for rank, one in enumerate(places, start=1)]
    labels = group_labels([OCEAN], candidates, places, SelectConfig())["q2"]
    assert [label.passage_id for label in labels] == ["night", "bird", "jam"]
    assert order_agreement(places) == (pytest.approx(-1.0), 1)
    whole = list(order_lists([(OCEAN, [NIGHT, BIRD])], FakeLM(), LISTWISE, RELEVANCE, 20, Counts()))
    assert order_agreement(whole) == (pytest.approx(1.0), 1)
    assert math.isnan(order_agreement([])[0])


def test_a_query_without_an_order_has_no_places_and_others_are_not_touched() -> None:
    counts, lists = Counts(), [(OCEAN, [JAM, BIRD]), (MOULD, [BIRD, JAM])]
    places = list(order_lists(lists, Counting("godwit"), LISTWISE, RELEVANCE, 20, counts))
    assert {one.query_id for one in places} == {"q1"} and len(places) == 2
    assert counts.notes[REFUSED] == 2 and counts.drops.total() == 2  # asked twice
    assert counts.examples["refused by the teacher (400)"][0] == "query q2: filtered"


def test_known_places_are_used_where_the_list_is_whole() -> None:
    lists = [(OCEAN, [JAM, BIRD]), (MOULD, [BIRD, JAM])]
    before = {
        (one.query_id, one.passage_id): one for one in order_lists(lists, FakeLM(), LISTWISE, RELEVANCE, 20, Counts())
    }
    teacher = Counting()
    assert list(order_lists(lists, teacher, LISTWISE, RELEVANCE, 20, Counts(), before)) == list(before.values())
    assert not teacher.asked
    more = [(OCEAN, [JAM, BIRD, NIGHT]), lists[1]]
    found = list(order_lists(more, teacher, LISTWISE, RELEVANCE, 20, Counts(), before))
    assert len(found) == 5 and {question.queries for question in teacher.asked} == {(OCEAN.text,)}
    shorter = [(OCEAN, [BIRD])]  # of a list of two the other is gone: its places are of another list
    teacher.asked.clear()
    list(
        order_lists(
            shorter, teacher, LISTWISE, RELEVANCE, 20, Counts(), {k: replace(v, first=2) for k, v in before.items()}
        )
    )
    assert teacher.asked


# --- what becomes of them


def test_log_odds_of_answers() -> None:
    values = [log_odds(Grade("q", "p", "t", "h", grade)) for grade in range(4)]
    assert values == sorted(values) and values[1] < 0 < values[2]
    assert values == pytest.approx([-value for value in reversed(values)])
    yes, no, unknown = (log_odds(Place("q", "p", "t", "h", 1, 1, said)) for said in (True, False, None))
    assert yes == pytest.approx(math.log(3)) and no == -yes and math.isnan(unknown)


CANDIDATES = [Candidate("q1", name, rank, 0.5) for rank, name in enumerate(("a", "b", "c"), start=1)]


def grades(*values: int, teacher: str = "t") -> dict[str, Grade]:
    return {
        one.passage_id: Grade("q1", one.passage_id, teacher, "h", value)
        for one, value in zip(CANDIDATES, values, strict=True)
    }


def test_equal_grades_are_in_the_retrievers_order() -> None:
    for fusion in ("rrf", "rc"):
        labels = fuse(CANDIDATES, grades(1, 3, 3), fusion)
        assert [label.passage_id for label in labels] == ["b", "c", "a"]
        assert [label.rc_rank for label in labels] == [1, 2, 3] and all(math.isnan(label.ql) for label in labels)
    assert [label.fused for label in fuse(CANDIDATES, grades(1, 3, 3))] == pytest.approx([2, 1, 2 / 3])
    with pytest.raises(RunError, match="no query likelihood"):
        fuse(CANDIDATES, grades(1, 3, 3), "ql")
    scores = {one.passage_id: Score("q1", one.passage_id, "s", "h", 0.0, 0, 0.5) for one in CANDIDATES}
    with pytest.raises(RunError, match=r"set select\.fusion=rc"):
        fuse(CANDIDATES, scores)


def test_teachers_of_different_forms_are_fused() -> None:
    likely = {
        one.passage_id: Score("q1", one.passage_id, "s", "h", -float(one.rank), 1, float(one.rank))
        for one in CANDIDATES
    }
    labels = {label.passage_id: label for label in fuse(CANDIDATES, likely, "rrf", 0.0, [grades(0, 2, 3)])}
    assert {key: label.ql_rank for key, label in labels.items()} == {"a": 1, "b": 2, "c": 3}
    assert labels["c"].rc_rank == 1 and labels["c"].rc == pytest.approx((3 + math.log(7)) / 2)
    order = {
        one.passage_id: Place("q1", one.passage_id, "o", "h", one.rank, one.rank, True if one.rank == 1 else None)
        for one in CANDIDATES
    }
    labels = {label.passage_id: label for label in fuse(CANDIDATES, grades(0, 2, 3), "rc", 0.0, [order])}
    assert labels["b"].rc == log_odds(grades(0, 2, 3)["b"]), "an order says nothing of its second"


@pytest.mark.parametrize(("grade", "is_kept"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_positive_needs_a_grade_of_two(grade: int, is_kept: bool) -> None:
    passages = {name: Passage(name, "", f"text of {name}") for name in "abc"}
    asked = replace(MOULD, seed_id="a")
    labels = group_labels([asked], CANDIDATES, list(grades(grade, 0, 0).values()), SelectConfig())
    counts = Counts()
    rows = list(select([asked], labels, passages, SelectConfig(), 0, counts))
    assert len(rows) == is_kept and counts.drops.total() == (not is_kept)
    if rows:
        assert rows[0].positive.id == "a" and rows[0].negatives[0].id == "c"
        assert rows[0].fused == pytest.approx((2, 1, 2 / 3))


@pytest.mark.parametrize("relevant", [True, False, None])
def test_the_first_of_an_order_needs_a_yes(relevant: bool | None) -> None:
    passages = {name: Passage(name, "", f"text of {name}") for name in "abc"}
    places = [
        Place("q1", one.passage_id, "t", "h", one.rank, one.rank, relevant if one.rank == 1 else None)
        for one in CANDIDATES
    ]
    asked = replace(MOULD, seed_id="b")
    labels = group_labels([asked], CANDIDATES, places, SelectConfig())
    assert len(list(select([asked], labels, passages, SelectConfig(), 0, Counts()))) == (relevant is True)
    seed = SelectConfig(positive="seed")  # of which nobody said that it is relevant
    assert not list(select([asked], labels, passages, seed, 0, Counts()))
    assert len(list(select([asked], labels, passages, SelectConfig(min_rc=None), 0, Counts()))) == 1


def test_a_fingerprint_says_its_form() -> None:
    for form in FORMS.values():
        assert form_of(form.parts) is form
    assert FORMS["logprobs"].parts == {}  # runs from before there was a choice
