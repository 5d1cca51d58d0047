"""A server that can only answer: what it is asked, what becomes of what it says, and what is found out at the start."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gecko.core.errors import TeacherError
from gecko.llm.answers import Answer, Question
from gecko.llm.base import Group, Sampling
from gecko.llm.fake import FakeLM
from gecko.llm.openai import OpenAILM
from gecko.llm.openai_address import Address
from gecko.llm.registry import check_answers, check_labels, judging_form

from .conftest import VARIED
from .talking import GRADED, LISTWISE, PROMPTS, RELEVANCE, Talking, chat, whole
from .test_openai_faults import BLOCKED, KNOWN, Skipping

LAKES = ("blue lake water", "deep lake water", "cold winter ice")
GRADES = [
    Question("grades", (text,), ("where lake water", "cold winter ice night", "deep lake water", "engine"))
    for text in LAKES
]
ORDERS = [Question("order", LAKES, (asked,)) for asked in ("cold ice", "deep water", "blue")]
LABELS = [Question("label", (text,), ("deep lake water",)) for text in LAKES]
BY_KIND = {"grades": GRADES, "order": ORDERS, "label": LABELS}


def connected(server: Talking, **more: Any) -> OpenAILM:
    settings = {"identity": "lakes", "clock": Skipping(), "transport": server, "requests": 3, **more}
    lm = OpenAILM(Address("http://lakes.example/v1", "m"), **settings)
    lm.probe()
    return lm


def by_fake(questions: Sequence[Question]) -> list[Answer]:
    return FakeLM().answer(PROMPTS[questions[0].kind], questions)


@pytest.mark.parametrize("kind", BY_KIND)
@pytest.mark.parametrize("schemas", [True, False])
def test_answers_are_those_of_the_server(kind: str, schemas: bool) -> None:
    server = Talking(schemas=schemas)
    lm = connected(server)
    assert not lm.can_score and lm.can_answer
    assert lm.answer(PROMPTS[kind], BY_KIND[kind]) == by_fake(BY_KIND[kind])
    known, *asked = server.asked
    assert known not in BY_KIND[kind] and sorted(map(str, asked)) == sorted(map(str, BY_KIND[kind]))
    assert all(("response_format" in body) == schemas for body in server.bodies)
    assert not lm.usage.refused and not lm.usage.errors
    assert lm.answer(PROMPTS[kind], []) == []
    server.asked.clear()
    lm.answer(PROMPTS[kind], BY_KIND[kind][:1])
    assert len(server.asked) == 1, "what it can is found out once"


def test_control_tokens_and_long_passages() -> None:
    server = Talking()
    lm = connected(server, passage_tokens=5)
    lm.answer(GRADED, [Question("grades", ("lake <|im_end|> " + 99 * "x",), ("who <|im_start|>",))])
    text = server.bodies[-1]["messages"][-1]["content"]
    assert "< |im_end|>" in text and "<|im" not in text and 21 * "x" not in text
    assert lm.usage.truncated == 1


def test_what_cannot_be_read_is_asked_again_otherwise() -> None:
    tries: list[float] = []

    def says(body: dict[str, Any], question: Question) -> str | None:
        if KNOWN in question.passages[0]:
            return None
        tries.append(body["temperature"])
        return "Well ..." if body["temperature"] < 1 else None

    lm = connected(Talking(says), requests=1)
    assert lm.answer(GRADED, GRADES[:1]) == by_fake(GRADES[:1])
    assert tries == [0.0, 0.5, 1.0]
    assert lm.usage.errors == {"unreadable answer, no grades": 2} and not lm.usage.refused


@pytest.mark.parametrize("kind", ["prose", "403", "content filter", "400"])
def test_one_query_that_is_not_answered_takes_no_other_with_it(kind: str) -> None:
    def says(body: dict[str, Any], question: Question) -> Any:
        if not any("engine" in text for text in question.queries):
            return None
        if kind == "403":
            return httpx2.Response(403, text=BLOCKED)
        if kind == "400":
            return httpx2.Response(400, json={"error": {"message": "flagged"}})
        return "I will not." if kind == "prose" else {"choices": [], "prompt_filter_results": [{}]}

    server = Talking(says)
    lm = connected(server)
    found = lm.answer(GRADED, GRADES)
    assert found == [(*answer[:3], None) for answer in by_fake(GRADES)]
    assert lm.usage.refused == len(GRADES)
    assert {one.place for one in lm.usage.refusals} == {0, 1, 2}
    reason = {"prose": "unreadable answer, no grades"}.get(kind, kind)
    assert {one.reason for one in lm.usage.refusals} == {f"refused by the teacher ({reason})"}


@pytest.mark.parametrize("kind", BY_KIND)
def test_a_server_that_answers_nothing_is_found_at_the_start(kind: str) -> None:
    lm = connected(Talking(lambda body, question: "As a language model, I like lakes."))
    with pytest.raises(TeacherError, match="cannot be asked for .*unreadable|cannot be asked for .*: .*I like lakes"):
        lm.answer(PROMPTS[kind], BY_KIND[kind])
    assert lm.usage.requests < 20


@pytest.mark.parametrize("kind", BY_KIND)
def test_a_server_that_no_longer_answers_is_given_up(kind: str) -> None:
    server = Talking(lambda body, question: None if any(KNOWN in text for text in question.passages) else "no idea")
    many = [
        Question(one.kind, tuple(f"{text} {n}" for text in one.passages), tuple(f"{text} {n}" for text in one.queries))
        for n in range(9)
        for one in BY_KIND[kind]
    ]
    with pytest.raises(
        TeacherError, match=r"refused [\d]+ of [\d]+ texts, the last with .*no idea.*run the same command again"
    ):
        connected(server).answer(PROMPTS[kind], many)


# --- what it can, asked at the start


def test_a_server_with_labels_judges_by_them() -> None:
    lm = connected(Talking(labels={"Yes": -0.1, "No": -2.0}))
    assert judging_form(lm, RELEVANCE, GRADED) == ("logprobs", "m judges by the log-probabilities of its answers")
    check_labels(lm, RELEVANCE)
    assert not lm.can_score
    name, said = judging_form(lm, RELEVANCE, GRADED, likelihood=True)
    assert name == "graded" and said.endswith("--set select.fusion=rc judges by the first alone")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (None, "it shows no likeliest tokens of an answer to a chat prompt"),
        ({"<think>": -1e-4, "Okay": -9.3}, "its answers begin with '<think>', 'Okay'"),
        ({"YES": -0.2, "NO": -1.0}, r"its answers begin with 'YES', 'NO', and none of it begins a label \(Yes, No\)"),
    ],
)
def test_a_server_without_labels_judges_by_grades(labels: dict[str, float] | None, says: str) -> None:
    lm = connected(Talking(labels=labels))
    name, said = judging_form(lm, RELEVANCE, GRADED)
    assert name == "graded" and "judges by grades in its answers" in said
    with pytest.raises(TeacherError, match=f"cannot judge by log-probabilities: {says}.*relabel.judge=graded"):
        check_labels(lm, RELEVANCE)
    check_answers(lm, [GRADED], "graded")
    check_answers(lm, [LISTWISE, RELEVANCE], "listwise")


def test_a_server_that_can_neither_is_no_teacher() -> None:
    lm = connected(Talking(lambda body, question: "Hm.", labels={"Hm": -0.1}))
    with pytest.raises(
        TeacherError, match=r"not by log-probabilities, because .*'Hm'.*, and not by grades, because .*no grades"
    ):
        judging_form(lm, RELEVANCE, GRADED)
    with pytest.raises(
        TeacherError, match=r"relabel.judge=listwise\): a known question of prompt 'order of relevance'"
    ):
        check_answers(lm, [LISTWISE, RELEVANCE], "listwise")


def test_a_model_that_is_not_there() -> None:
    class Absent(Talking):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(404, json={"error": {"message": "model 'm' not found"}})

    with pytest.raises(TeacherError, match="nor answers in /chat/completions.*model 'm' not found"):
        connected(Absent())


# --- models that think


def thinking(form: str, needs: int) -> Any:
    """What a model says that thinks for so many tokens, if it has them."""

    def says(body: dict[str, Any], question: Question) -> Any:
        from .talking import right

        answer = right(question, "response_format" in body)
        if body["max_tokens"] < needs:
            return (
                chat("<think>Let me see", ends="length")
                if form == "text"
                else chat(None, ends="length", reasoning_content="Let me")
            )
        if form == "text":
            return chat('<think>Maybe {"1": 0}, or 1: 1?</think>\n\n' + answer, written=needs)
        return chat(answer, written=needs, reasoning_content="Maybe 1: 1?")

    return says


@pytest.mark.parametrize("form", ["text", "field"])
def test_what_a_model_thinks_is_no_answer(form: str) -> None:
    lm = connected(Talking(thinking(form, 500)), thinking_tokens=600)
    before = lm.usage.written
    assert lm.answer(GRADED, GRADES) == by_fake(GRADES)
    assert lm.usage.written - before == 500 * (len(GRADES) + 1), "what it thinks is paid for"
    with pytest.raises(TeacherError, match=r"thinking without an end.*--set relabel\.thinking_tokens=2000"):
        connected(Talking(thinking(form, 500))).answer(GRADED, GRADES)


def test_a_model_that_thinks_writes_queries() -> None:
    seen: list[dict[str, Any]] = []

    class Writing(Talking):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            body = json.loads(request.read())
            if "prompt" in body and not body.get("echo") and "logprobs" not in body:
                seen.append(body)
                said = "<think>A query:\nno</think> a task\nQuery: a lake" if body["seed"] else "<think>A query:"
                return httpx2.Response(200, json={"choices": [{"text": said}], "usage": {}})
            return super().handle_request(request)

    lm = connected(Writing(), thinking_tokens=70)
    assert lm.generate(VARIED, ["lake", "ice"], Sampling(0.0, 1.0, 10, (0, 1)), ["", ""]) == ["", "a task"]
    assert {(body["max_tokens"], "stop" in body) for body in seen} == {(80, False)}


def test_settings_that_a_server_has_under_another_name() -> None:
    def says(body: dict[str, Any], question: Question) -> Any:
        if "max_tokens" in body:
            return httpx2.Response(
                400, json={"error": {"message": "Unsupported parameter: use 'max_completion_tokens' instead"}}
            )
        if "temperature" in body:
            return httpx2.Response(
                400, json={"error": {"message": "Unsupported value: 'temperature' does not support 0"}}
            )
        return None

    server = Talking(says)
    lm = connected(server)
    assert lm.answer(GRADED, GRADES) == by_fake(GRADES)
    assert "max_completion_tokens" in server.bodies[-1] and not lm.usage.refused


# --- a server that misbehaves at random

WRONG = (
    "",
    "I am sorry.",
    '{"1": 9}',
    '{"1": 3, "1": 0}',
    '{"7": 1}',
    "{}",
    '{"1": 3',
    '{"order": [1, 1, 1]}',
    "[]",
    "<think>well",
)
FAULTS = (
    lambda: httpx2.Response(429, json={"error": {"message": "slower"}}),
    lambda: httpx2.Response(500, text="down"),
    lambda: httpx2.Response(200, json={"choices": None, "error": {"message": "provider", "code": 502}}),
    lambda: httpx2.Response(200, json={"choices": []}),
    lambda: httpx2.Response(200, content=b'{"choices": [{"mess'),
    lambda: httpx2.Response(400, json={"error": {"message": "flagged"}}),
)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(BY_KIND)), st.floats(0, 0.7))
def test_a_server_that_misbehaves_at_random_never_makes_a_wrong_answer(seed: int, kind: str, share: float) -> None:
    chance = random.Random(seed)

    def says(body: dict[str, Any], question: Question) -> Any:
        if any(KNOWN in text for text in question.passages) or chance.random() >= share:
            return None
        return chance.choice(WRONG) if chance.random() < 0.6 else chance.choice(FAULTS)()

    lm = connected(Talking(says), requests=1)
    try:
        found = lm.answer(PROMPTS[kind], BY_KIND[kind])
    except TeacherError as error:
        assert "run the same command again" in str(error)
        return
    assert len(found) == len(BY_KIND[kind])
    for answer, expected in zip(found, by_fake(BY_KIND[kind]), strict=True):
        assert all(said is None or said == wanted for said, wanted in zip(answer, expected, strict=True))
    missing = sum(said is None for answer in found for said in answer)
    assert (lm.usage.refused > 0) == (missing > 0)
    assert whole(found) or kind != "grades" or lm.usage.refused == missing


# --- stopped, and gone on with


def test_answers_that_had_arrived_are_not_asked_again(tmp_path: Path) -> None:
    kept, left = tmp_path / "kept.json", iter(range(2))

    def says(body: dict[str, Any], question: Question) -> Any:
        if any(KNOWN in text for text in question.passages):
            return None
        if next(left, None) is None:
            raise KeyboardInterrupt
        return None

    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        connected(Talking(says), requests=1, kept=kept, say=said.append).answer(GRADED, GRADES)
    assert said == ["2 answers of unfinished work are kept for the next run"]
    again = Talking()
    assert connected(again, kept=kept).answer(GRADED, GRADES) == by_fake(GRADES)
    assert [question for question in again.asked if KNOWN not in question.passages[0]] == GRADES[2:]


def test_labels_of_a_server_are_as_before() -> None:
    lm = connected(Talking(labels={"Yes": -0.1, "No": -2.0}))
    assert lm.label_logprobs(RELEVANCE, [Group("a lake", ("where",))]) == [[(-0.1, -2.0)]]
