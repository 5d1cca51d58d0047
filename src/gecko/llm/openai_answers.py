"""Questions to an OpenAI-compatible server whose answer is a text of a known form, such as grades.

What is notable here:

- The answer is asked for as JSON by a schema (``response_format``), where a known question shows that the server has it;
  else in plain lines.
- A text that cannot be read is asked for again, drawn otherwise. A question of several queries that stays without an answer,
  or that the server refuses, is asked in halves, so that one text takes no other with it. What is left is refused, and
  counted by kind.
- A model that thinks first has ``thinking_tokens`` more for it. What it thinks is no part of the answer.
"""

import re
import threading
from collections.abc import Sequence
from typing import Any

from gecko.core.errors import TeacherError
from gecko.llm.answers import (
    THINKING,
    Answer,
    Kind,
    Question,
    UnreadableError,
    instruction,
    most_tokens,
    read_answer,
    schema,
    slots,
    without_thinking,
)
from gecko.llm.openai_address import Address
from gecko.llm.openai_http import KNOWN, Requests
from gecko.llm.openai_kept import ROUNDS
from gecko.llm.openai_replies import DamagedError, RefusedError, written
from gecko.prompts import Prompt, fill

CHARS_PER_TOKEN = 4  # the tokenizer is the server's: passages are cut, and tokens estimated, by characters
TEMPERATURES = (0.0, 0.5, 1.0)  # of the attempts at an answer that can be read
KNOWN_QUERIES = ("where does the dog sleep", "how do I renew a passport")
_PASSPORT = "A passport is renewed at the town hall; bring the old one, a photograph and the fee."
_KNOWN: dict[Kind, Question] = {
    "grades": Question("grades", (KNOWN,), KNOWN_QUERIES),
    "order": Question("order", (_PASSPORT, KNOWN), KNOWN_QUERIES[:1]),
    "label": Question("label", (KNOWN,), KNOWN_QUERIES[:1]),
}
_CALLED: dict[Kind, str] = {"grades": "grades", "order": "an order of passages", "label": "one of the labels"}

# What chat templates and tokenizers use as control tokens: <|...|> of most, <｜...｜> of DeepSeek, and those in plain
# brackets that Llama 2, Mistral, Gemma and reasoning models have.
_CONTROL = re.compile(
    r"<(?=[|｜][^<>\n]{1,60}>|[^<>\s][^<>\n]{0,59}[|｜]>|<?/?SYS>>"
    r"|/?(?:s|bos|eos|pad|unk|mask|cls|sep|think|tool_call|tool_response|start_of_turn|end_of_turn|unused\d+)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|IMG|THINK|PREFIX|SUFFIX|MIDDLE)\])",
    re.IGNORECASE,
)


def defused(text: str) -> str:
    """``text`` in which no string is a control token: a space is put after its first bracket."""
    return _CONTROL.sub(lambda found: found[0] + " ", text)


class Answering(Requests):
    """What asks questions, and puts texts into requests; for ``rest`` see :class:`gecko.llm.openai_http.Requests`.

    Longer passages are cut to about ``passage_tokens``, and counted in ``usage.truncated``. A model may write
    ``thinking_tokens`` before its answer.
    """

    def __init__(self, address: Address, *, passage_tokens: int = 256, thinking_tokens: int = 0, **rest: Any) -> None:
        super().__init__(address, **rest)
        self.passage_tokens, self.thinking_tokens = passage_tokens, thinking_tokens
        self._structured: dict[str, bool] = {}  # by kind of question, whether it is answered by a schema

    def answer(self, prompt: Prompt, questions: Sequence[Question]) -> list[Answer]:
        """See :class:`gecko.llm.base.LanguageModel`."""
        kinds = {question.kind for question in questions}
        for kind in kinds - self._structured.keys():
            if wrong := self.no_answers(prompt, kind):
                raise TeacherError(f"{self._where} cannot be asked for {_CALLED[kind]}: {wrong}")
        whole = [self._short(question) for question in questions]
        found: list[list[int | None]] = [[None] * question.size for question in whole]
        pieces = [(place, 0, question) for place, question in enumerate(whole)]
        while pieces:
            asked = {slots(question): question for *_, question in pieces}

            def ask(item: tuple[str, str], stop: threading.Event, asked: Any = asked) -> tuple[int, ...]:
                try:
                    return self._read_again(prompt, asked[item], item, stop)
                except RefusedError as refusal:
                    refusal.in_parts = _has_parts(asked[item])
                    raise

            items = [slots(question) for *_, question in pieces]
            answers = self._all(ask, items, [place for place, *_ in pieces], calls=ROUNDS)
            left = []
            for (place, start, question), answer in zip(pieces, answers, strict=True):
                if answer is not None:
                    found[place][start : start + question.size] = answer
                elif _has_parts(question):
                    one, other = question.halves()
                    left += [(place, start, one), (place, start + one.size, other)]
            pieces = left
        return [tuple(answer) for answer in found]

    def no_answers(self, prompt: Prompt, kind: Kind) -> str:
        """See :class:`gecko.llm.base.LanguageModel`. A known question is asked, for JSON and then for plain lines."""
        question, said = _KNOWN[kind], ""
        for structured in (True, False):
            try:
                text = self._once(*self._question(prompt, question, slots(question), structured, 0), _said)
                read_answer(question, prompt.labels, text)
            except UnreadableError as error:
                said = str(error)
                if THINKING[0] in text:
                    said += (
                        "; it thinks before it answers: give it room with --set relabel.thinking_tokens=2000, or switch "
                        "thinking off at the server"
                    )
            except (RefusedError, DamagedError) as error:
                said = str(error)
            else:
                self._structured[kind] = structured
                return ""
        return self._clean(said)

    def _read_again(
        self, prompt: Prompt, question: Question, item: tuple[str, str], stop: threading.Event
    ) -> tuple[int, ...]:
        """An answer that can be read, after as many attempts as there are temperatures.

        Raises RefusedError: there is none.
        """
        structured = self._structured[question.kind]
        for attempt in range(len(TEMPERATURES)):
            text = self._ask(*self._question(prompt, question, item, structured, attempt), _said, stop)
            try:
                return read_answer(question, prompt.labels, text)
            except UnreadableError as error:
                last = error
                with self._lock:
                    self.usage.errors[f"unreadable answer, {error.kind}"] += 1
        raise RefusedError(f"unreadable answer, {last.kind}", str(last))

    def _question(
        self, prompt: Prompt, question: Question, item: tuple[str, str], structured: bool, attempt: int
    ) -> tuple[str, dict[str, Any]]:
        """Path and body of a request; the sentence on the form of the answer stands behind the prompt."""
        path, body = self._body(prompt, *item)
        told = instruction(question, prompt.labels, structured)
        if prompt.form == "chat":
            body["messages"][-1]["content"] += f"\n\n{told}"
        else:
            body["prompt"] += f"\n\n{told}\n"
        body |= {"max_tokens": most_tokens(question) + self.thinking_tokens, "temperature": TEMPERATURES[attempt]}
        if attempt:
            body["seed"] = attempt
        if structured:
            wanted = {"name": question.kind, "strict": True, "schema": schema(question, prompt.labels)}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        return path, body

    def _short(self, question: Question) -> Question:
        queries = tuple(map(defused, question.queries))
        return Question(question.kind, tuple(self._cut(question.passages)), queries)

    def _cut(self, passages: Sequence[str]) -> list[str]:
        limit = CHARS_PER_TOKEN * self.passage_tokens
        self.usage.truncated += sum(len(passage) > limit for passage in passages)
        return [defused(passage[:limit]) for passage in passages]

    def _body(self, prompt: Prompt, passage: str, second: str) -> tuple[str, dict[str, Any]]:
        text, messages = fill(prompt, passage, second)
        if prompt.form == "completion":
            return "/completions", {"prompt": text}
        return "/chat/completions", {"messages": [{"role": role, "content": content} for role, content in messages]}


def _has_parts(question: Question) -> bool:
    return question.kind == "grades" and question.size > 1


def _said(reply: dict[str, Any]) -> str:
    """The text of an answer; where thinking took all of the tokens, what stands for thinking without an end."""
    text = written(reply)
    return text if text or reply["choices"][0].get("finish_reason") != "length" else THINKING[0]


def spoken(text: str) -> str:
    """What a model says behind its thinking, which may have no end."""
    try:
        return without_thinking(text) if THINKING[0] in text or THINKING[1] in text else text
    except UnreadableError:
        return ""
