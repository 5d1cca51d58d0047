"""llama.cpp's own server with the pinned SmolLM2: a real server, of a model too weak to teach, is asked in every form."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import pytest

from gecko.config.stages import RelabelConfig
from gecko.core.errors import TeacherError
from gecko.core.progress import Silent
from gecko.llm.answers import GRADES, Question
from gecko.llm.base import Group, Sampling
from gecko.llm.openai import OpenAILM
from gecko.llm.registry import check_answers, check_scores, judging_form, load_teacher
from gecko.prompts import load_prompt
from gecko.weights.embedded import fetch

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("xllamacpp") is None, reason="needs xllamacpp")]
GRADED, LISTWISE, RELEVANCE, GENERATE = map(load_prompt, ("graded", "listwise", "relevance", "generate"))
BREAD, TRAINS, DOG = "Bread is baked from flour, water and salt.", "Trains to the coast leave at noon.", "A dog sleeps."
ASKED = ("how is bread made", "when does the train leave", "flour\n2. or trains?")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    model = fetch("smollm2", Silent())  # before the cache is set apart
    server = Path(__file__).parent / "llama_server.py"
    with subprocess.Popen(
        [sys.executable, server, model], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture
def teacher(address: str) -> OpenAILM:
    config = RelabelConfig(requests=2, passage_tokens=64)
    return cast("OpenAILM", load_teacher(f"openai:{address}/v1#smollm2", config, Silent()))


def test_it_writes_and_judges_by_the_likeliest_tokens_but_not_by_likelihood(teacher: OpenAILM) -> None:
    assert judging_form(teacher, RELEVANCE, GRADED)[0] == "logprobs"
    with pytest.raises(TeacherError, match="cannot return the log-probabilities .*select.fusion=rc, or by grades"):
        check_scores(teacher)
    [row] = teacher.label_logprobs(RELEVANCE, [Group(BREAD, ASKED[:2])])
    assert all(value < 0 for labels in row for value in labels) and row[0] != row[1]
    texts = teacher.generate(GENERATE, [BREAD, TRAINS], Sampling(0.0, 1.0, 24, (1, 2)))
    assert all(texts) and teacher.usage.read > 0 and teacher.usage.written > 0


def test_it_grades_and_orders_by_a_schema(teacher: OpenAILM) -> None:
    check_answers(teacher, [GRADED], "graded")
    check_answers(teacher, [LISTWISE, RELEVANCE], "listwise")
    assert teacher._structured == dict.fromkeys(("grades", "order", "label"), True)
    answers = teacher.answer(GRADED, [Question("grades", (text,), ASKED) for text in (BREAD, TRAINS)])
    assert all(set(answer) <= set(GRADES) and len(answer) == 3 for answer in answers), "a schema leaves no other answer"
    assert teacher.answer(GRADED, [Question("grades", (BREAD,), ASKED)]) == answers[:1]
    [label] = teacher.answer(RELEVANCE, [Question("label", (BREAD,), ASKED[:1])])
    assert label in {(0,), (1,)}
    [order] = teacher.answer(LISTWISE, [Question("order", (DOG, BREAD, TRAINS), ASKED[:1])])
    assert sorted(place for place in order if place is not None) in ([0, 1, 2], [])  # which a schema cannot force


def test_a_text_that_is_too_long_for_it_is_refused_by_itself(teacher: OpenAILM) -> None:
    teacher.passage_tokens = 10**6
    long = Question("grades", ("lake " * 9000,), ("where",))
    assert teacher.answer(GRADED, [long, Question("grades", (BREAD,), ASKED[:1])])[0] == (None,)
    assert [one.place for one in teacher.usage.refusals] == [0] and "400" in teacher.usage.refusals[0].reason
