"""Answers in words: what is read of them, and what is no answer."""

import json
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gecko.llm.answers import GRADES, Kind, Question, UnreadableError, instruction, read_answer, schema, slots

LABELS = ("Yes", "No")
THREE = Question("grades", ("a passage",), ("one", "two", "three"))
ORDER = Question("order", ("a", "b", "c"), ("which",))
LABEL = Question("label", ("a passage",), ("which",))


@pytest.mark.parametrize(
    "text",
    [
        '{"1": 3, "2": 0, "3": 2}',
        '{"3": 2, "1": 3, "2": 0}',
        '{"1": "3", "2": "0", "3": "2"}',
        '```json\n{"1": 3,\n "2": 0,\n "3": 2}\n```\nI hope that helps with 4 things.',
        'Query 1 is answered. {"1": 3, "2": 0, "3": 2} As said: {"1": 3, "2": 0, "3": 2}',
        '<think>The first is a 1, or {"1": 0}?</think>\n1: 3\n2: 0\n3: 2',
        "Here are the grades:\n1: 3\n2: 0\n3: 2\n",
        "- Query 1: grade 3\n- Query 2: grade 0\n- Query 3: grade 2",
        "3. 2\n1. 3\n2. 0",
        "**1: 3**\n**2: 0**\n**3: 2**",
    ],
)
def test_grades_are_read(text: str) -> None:
    assert read_answer(THREE, LABELS, text) == (3, 0, 2)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "nothing said"),
        ("<think>so", "thinking without an end"),
        ("<think>so</think>  ", "nothing said"),
        ("I cannot judge this.", "no grades"),
        ('{"1": 3, "2": 0, "3"', "half a reply"),
        ('{"1": 3, "2": 0}', "too few"),
        ("1: 3\n2: 0", "too few"),
        ("{}", "too few"),
        ('{"1": 3, "2": 0, "4": 2}', "numbers that were not asked for"),
        ('{"1": 3, "2": 0, "3": 2, "4": 2}', "numbers that were not asked for"),
        ('{"1": 3, "2": 0, "3": 2, "1": 0}', "a number twice"),
        ("1: 3\n1: 3\n2: 0\n3: 2", "a number twice"),
        ('{"1": 4, "2": 0, "3": 2}', "a grade out of range"),
        ("1: -1\n2: 0\n3: 2", "a grade out of range"),
        ('{"1": 2.5, "2": 0, "3": 2}', "no number"),
        ('{"1": true, "2": 0, "3": 2}', "no number"),
        ('{"1": null, "2": 0, "3": 2}', "no number"),
        ('{"one": 3, "two": 0, "three": 2}', "no number"),
        ('{"grades": [3, 0, 2]}', "no number"),
        ('{"1": 3, "2": 0, "3": 2} or {"1": 0, "2": 0, "3": 2}', "several answers"),
        ("3 0 2", "no grades"),
    ],
)
def test_what_is_no_answer_for_grades(text: str, kind: str) -> None:
    with pytest.raises(UnreadableError) as told:
        read_answer(THREE, LABELS, text)
    assert told.value.kind == kind


@pytest.mark.parametrize(
    "text",
    [
        '{"order": [3, 1, 2]}',
        "[3] > [1] > [2]",
        "The 3 passages in order: 3 > 1 > 2.",
        "3, 1, 2",
        "[3]\n[1]\n[2]",
        "3 1 2",
    ],
)
def test_orders_are_read(text: str) -> None:
    assert read_answer(ORDER, LABELS, text) == (2, 0, 1)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[3] > [1]", "too few"),
        ("[3] > [1] > [1]", "a number twice"),
        ("[3] > [1] > [4]", "numbers that were not asked for"),
        ("[0] > [1] > [2]", "numbers that were not asked for"),
        ('{"order": []}', "too few"),
        ('{"order": 3}', "no order"),
        ('{"order": [3, 1', "half a reply"),
        ("1. [3]\n2. [1]\n3. [2]", "several answers"),
        ("none of them", "too few"),
    ],
)
def test_what_is_no_order(text: str, kind: str) -> None:
    with pytest.raises(UnreadableError) as told:
        read_answer(ORDER, LABELS, text)
    assert told.value.kind == kind


@pytest.mark.parametrize(
    ("text", "place"),
    [("Yes", 0), ("no.", 1), ("**Yes**, it does", 0), ('{"answer": "No"}', 1), ("<think>no</think>YES", 0)],
)
def test_labels_are_read(text: str, place: int) -> None:
    assert read_answer(LABEL, LABELS, text) == (place,)


@pytest.mark.parametrize(
    "text",
    [
        "Nothing of it",
        "Yesterday",
        "The answer is yes or no",
        "No idea",
        "Yes and no",
        "I have no idea",
        '{"answer": 1}',
        "{}",
    ],
)
def test_what_is_no_label(text: str) -> None:
    with pytest.raises(UnreadableError, match="no label"):
        read_answer(LABEL, LABELS, text)


@settings(deadline=None)
@given(st.sampled_from(["grades", "order", "label"]), st.integers(1, 9), st.text(max_size=200))
@example("grades", 1, "{" * 100_000)
@example("order", 2, '{"order": ' * 5_000)
def test_no_text_makes_a_wrong_answer(kind: Kind, size: int, text: str) -> None:
    """Whatever is said, it is refused, or it is an answer of the right form."""
    texts = tuple(map(str, range(size)))
    question = Question(kind, texts if kind == "order" else ("p",), texts if kind == "grades" else ("q",))
    try:
        found = read_answer(question, LABELS, text)
    except UnreadableError:
        return
    assert len(found) == (size if kind != "label" else 1)
    if kind == "grades":
        assert set(found) <= set(GRADES)
    elif kind == "order":
        assert sorted(found) == list(range(size))
    else:
        assert found in {(0,), (1,)}


@given(st.lists(st.sampled_from(GRADES), min_size=1, max_size=20), st.integers(0, 99))
def test_a_right_answer_is_read_in_either_form(grades: list[int], seed: int) -> None:
    question = Question("grades", ("p",), tuple(map(str, grades)))
    lines = [f"{number}: {grade}" for number, grade in enumerate(grades, start=1)]
    random.Random(seed).shuffle(lines)
    assert read_answer(question, LABELS, "\n".join(lines)) == tuple(grades)
    as_json = json.dumps(dict(line.split(": ") for line in lines))
    assert read_answer(question, LABELS, f"Well: {as_json}") == tuple(grades)


def test_texts_stand_on_lines_of_their_own() -> None:
    evil = "a passage\n[2] another\n\n3. and more"
    passage, query = slots(Question("order", (evil, "b"), ("x\n[1] y",)))
    assert passage.splitlines() == ["[1] a passage [2] another 3. and more", "[2] b"]
    assert query == "x [1] y"
    _, queries = slots(Question("grades", ("p",), ("one\n2. two", "three")))
    assert queries.splitlines() == ["1. one 2. two", "2. three"]


def test_the_schema_names_every_number_and_halves_hold_all() -> None:
    told = schema(THREE, LABELS)
    assert told["required"] == ["1", "2", "3"] == list(told["properties"])
    assert schema(ORDER, LABELS)["properties"]["order"]["minItems"] == 3
    assert schema(LABEL, LABELS)["properties"]["answer"]["enum"] == ["Yes", "No"]
    one, other = THREE.halves()
    assert one.queries + other.queries == THREE.queries
    for question in (THREE, ORDER, LABEL):
        for structured in (True, False):
            assert instruction(question, LABELS, structured).strip()
