"""A chat server in process that answers rightly in words, unless it is told otherwise; it has no log-probabilities."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from gecko.llm.answers import Answer, Kind, Question
from gecko.llm.fake import FakeLM
from gecko.prompts import load_prompt

GRADED, LISTWISE, RELEVANCE = map(load_prompt, ("graded", "listwise", "relevance"))
PROMPTS = {"grades": GRADED, "order": LISTWISE, "label": RELEVANCE}


def question_of(body: dict[str, Any]) -> Question | None:
    """The question that a request asks; none: it is another request."""
    text = body["messages"][-1]["content"]
    told = text.rpartition("\n\n")[0]
    if found := re.search(r"Passage: (.*)\n\nQueries:\n(.*)", told, re.DOTALL):
        return Question("grades", (found[1],), tuple(re.findall(r"(?m)^\d+\. (.*)$", found[2])))
    if found := re.search(r"Passages:\n(.*)\n\nQuery: (.*)", told, re.DOTALL):
        return Question("order", tuple(re.findall(r"(?m)^\[\d+\] (.*)$", found[1])), (found[2],))
    if found := re.search(r"Passage: (.*)\n\nQuery: (.*)", told, re.DOTALL):
        return Question("label", (found[1],), (found[2],))
    return None


def right(question: Question, structured: bool) -> str:
    """The fake teacher's answer in words."""
    [answer] = FakeLM().answer(PROMPTS[question.kind], [question])
    numbers = [number or 0 for number in answer]
    if question.kind == "label":
        label = RELEVANCE.labels[numbers[0]]
        return json.dumps({"answer": label}) if structured else f"{label}."
    if question.kind == "order":
        listed = [number + 1 for number in numbers]
        return json.dumps({"order": listed}) if structured else " > ".join(f"[{number}]" for number in listed)
    if structured:
        return json.dumps({str(number): grade for number, grade in enumerate(numbers, start=1)})
    return "\n".join(f"{number}: {grade}" for number, grade in enumerate(numbers, start=1))


def chat(text: str | None, written: int = 9, **message: Any) -> dict[str, Any]:
    choice = {
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": message.pop("ends", "stop"),
    }
    return {"choices": [choice], "usage": {"prompt_tokens": 30, "completion_tokens": written}}


Said = str | httpx2.Response | dict[str, Any] | None


@dataclass
class Talking(httpx2.BaseTransport):
    """Attributes:
    says: what is said instead of the right answer, from the request and the question; none: the right one.
    schemas: whether ``response_format`` is known.
    labels: likeliest first tokens, where the server shows such.
    """

    says: Callable[[dict[str, Any], Question], Said] = lambda body, question: None
    schemas: bool = True
    labels: dict[str, float] | None = None
    asked: list[Question] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def kinds(self) -> Counter[Kind]:
        return Counter(question.kind for question in self.asked)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.read())
        if "messages" not in body or "prompt_logprobs" in body:
            return httpx2.Response(404, json={"error": {"message": "not here"}})
        if body.get("logprobs"):
            if self.labels is None:
                return httpx2.Response(200, json=chat("Yes"))
            shown = [{"token": token, "logprob": value} for token, value in self.labels.items()]
            reply = chat("Yes")
            reply["choices"][0]["logprobs"] = {"content": [{"top_logprobs": shown}]}
            return httpx2.Response(200, json=reply)
        if "response_format" in body and not self.schemas:
            return httpx2.Response(400, json={"error": {"message": "response_format is not supported"}})
        question = question_of(body)
        if question is None:
            return httpx2.Response(200, json=chat("Hello."))
        with self.lock:
            self.asked.append(question)
            self.bodies.append(body)
        said = self.says(body, question)
        if isinstance(said, httpx2.Response):
            return said
        if isinstance(said, dict):
            return httpx2.Response(200, json=said)
        return httpx2.Response(200, json=chat(right(question, "response_format" in body) if said is None else said))


def whole(answers: list[Answer]) -> bool:
    return all(None not in answer for answer in answers)
