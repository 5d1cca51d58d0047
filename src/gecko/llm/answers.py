"""Questions whose answer is a text of a known form, and how such a text is read.

=======  =========================================  ==============================================
kind     what is asked                              what the answer holds
=======  =========================================  ==============================================
grades   one passage, several queries               a grade from 0 to 3 for each query
order    several passages, one query                the numbers of the passages, most relevant first
label    one passage, one query                     one of the prompt's labels, as its number
=======  =========================================  ==============================================

A reading is strict: an answer that names other numbers than were asked for, too few, one twice or a grade that is out of
range is no answer. Prose around it is left aside, and so is what a reasoning model thinks before it.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["grades", "order", "label"]
GRADES = (0, 1, 2, 3)
FORMAT = "1"  # raised by hand when what is added to a prompt, or how an answer is read, gives other answers
MOST_BRACES = 32  # that begin no object, after which no further one is looked for
THINKING = ("<think>", "</think>")

_LINE = re.compile(r"^\W*(?:query\s*)?(\d+)\s*[:.)=\-–]+\s*(?:grade\s*)?(-?\d+)\W*$", re.IGNORECASE)
_CHAIN = re.compile(r"\[?\d+\]?(?:(?:\s*[>,;]\s*|\s+)\[?\d+\]?)*")


class UnreadableError(Exception):
    """A text that is no answer to its question; ``kind`` is short, and the same for all of a sort."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {' '.join(text.split())[:200]!r}")
        self.kind = kind


@dataclass(frozen=True)
class Question:
    """What is asked in one request; of the kinds ``grades`` and ``label`` there is one passage, of the others one query."""

    kind: Kind
    passages: tuple[str, ...]
    queries: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many numbers the answer holds."""
        return {"grades": len(self.queries), "order": len(self.passages), "label": 1}[self.kind]

    def halves(self) -> "tuple[Question, Question]":
        """Two questions for grades of half of the queries each."""
        middle = (len(self.queries) + 1) // 2
        first, second = self.queries[:middle], self.queries[middle:]
        return Question(self.kind, self.passages, first), Question(self.kind, self.passages, second)


Answer = tuple[int | None, ...]  # None: there is no answer, which is counted


def slots(question: Question) -> tuple[str, str]:
    """What goes into a prompt's slots of the passage and of the query; of several texts each on a numbered line."""
    if question.kind == "grades":
        numbered = (f"{number}. {_flat(query)}" for number, query in enumerate(question.queries, start=1))
        return question.passages[0], "\n".join(numbered)
    if question.kind == "order":
        numbered = (f"[{number}] {_flat(passage)}" for number, passage in enumerate(question.passages, start=1))
        return "\n".join(numbered), _flat(question.queries[0])
    return question.passages[0], question.queries[0]


def _flat(text: str) -> str:
    return " ".join(text.split())


def instruction(question: Question, labels: Sequence[str], structured: bool) -> str:
    """The sentence behind the prompt that says how to write the answer: as JSON, or in plain lines."""
    size = question.size
    if question.kind == "grades":
        if structured:
            return (
                'Reply with a JSON object that gives each query\'s number its grade, as in {"1": 0}, and nothing else.'
            )
        return f"Reply with {size} lines and nothing else: on each a query's number, a colon and its grade, as in 1: 0"
    if question.kind == "order":
        if structured:
            return f'Reply with a JSON object {{"order": […]}} of the numbers 1 to {size}, the most relevant first.'
        return f"Reply with the numbers 1 to {size} alone, the most relevant first, as in [2] > [1]"
    if structured:
        return f'Reply with a JSON object {{"answer": …}} that holds {" or ".join(labels)}.'
    return f"Reply with {' or '.join(labels)} only."


def schema(question: Question, labels: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of the answer."""
    if question.kind == "grades":
        grade = {"type": "integer", "enum": list(GRADES)}
        properties: dict[str, Any] = {str(number): grade for number in range(1, question.size + 1)}
    elif question.kind == "order":
        numbers = {"type": "integer", "enum": list(range(1, question.size + 1))}
        bounds = {"minItems": question.size, "maxItems": question.size}
        properties = {"order": {"type": "array", "items": numbers, **bounds}}
    else:
        properties = {"answer": {"type": "string", "enum": list(labels)}}
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def most_tokens(question: Question) -> int:
    """Tokens that the answer can have, with some room for prose around it."""
    return 48 + 10 * question.size


def without_thinking(text: str) -> str:
    """What stands behind the thinking of a reasoning model, where the server leaves that in the text.

    Raises UnreadableError: the thinking has no end.
    """
    begin, end = THINKING
    if end in text:
        return text.rpartition(end)[2].strip()
    if begin in text:
        raise UnreadableError("thinking without an end", text)
    return text.strip()


def read_answer(question: Question, labels: Sequence[str], text: str) -> tuple[int, ...]:
    """The numbers of an answer: grades in the order of the queries, places from 0 of the passages, or a label's place.

    Raises UnreadableError: it is none.
    """
    said = without_thinking(text)
    if not said:
        raise UnreadableError("nothing said", text)
    if question.kind == "grades":
        return _grades(question.size, said)
    if question.kind == "order":
        return _order(question.size, said)
    return _label(labels, said)


def _grades(size: int, text: str) -> tuple[int, ...]:
    entries = _one(list(_objects(text)), text)
    if entries is None:
        found = [_LINE.match(line) for line in text.splitlines()]
        entries = [(one[1], one[2]) for one in found if one]
        if not entries:
            raise UnreadableError("half a reply" if "{" in text else "no grades", text)
    grades: dict[int, int] = {}
    for key, value in entries:
        number, grade = _number(key, text), _number(value, text)
        if number in grades:
            raise UnreadableError("a number twice", text)
        if grade not in GRADES:
            raise UnreadableError("a grade out of range", text)
        grades[number] = grade
    _refuse_other_numbers(size, grades, text)
    return tuple(grades[number] for number in range(1, size + 1))


def _order(size: int, text: str) -> tuple[int, ...]:
    entries = _one(list(_objects(text)), text)
    if entries is not None:
        listed = dict(entries).get("order")
        if not isinstance(listed, list):
            raise UnreadableError("no order", text)
        numbers = [_number(value, text) for value in listed]
    elif "{" in text:
        raise UnreadableError("half a reply", text)
    else:
        chains = [[int(number) for number in re.findall(r"\d+", chain)] for chain in _CHAIN.findall(text)]
        numbers = max(chains, key=len, default=[])
        if sum(len(chain) == len(numbers) for chain in chains) > 1:
            raise UnreadableError("several answers", text)
    if len(set(numbers)) < len(numbers):
        raise UnreadableError("a number twice", text)
    _refuse_other_numbers(size, numbers, text)
    return tuple(number - 1 for number in numbers)


def _label(labels: Sequence[str], text: str) -> tuple[int, ...]:
    entries = _one(list(_objects(text)), text)
    said = str(dict(entries).get("answer", "")) if entries is not None else text
    plain = said.strip(" \t\r\n*_`\"'.([{").casefold()
    begun = [
        place
        for place, label in enumerate(labels)
        if plain.startswith(label.casefold()) and not re.match(r"[\w ]", plain[len(label) :])
    ]
    if len(begun) != 1:
        raise UnreadableError("no label", text)
    return (begun[0],)


def _refuse_other_numbers(size: int, found: Sequence[int] | dict[int, int], text: str) -> None:
    wanted = set(range(1, size + 1))
    if set(found) - wanted:
        raise UnreadableError("numbers that were not asked for", text)
    if wanted - set(found):
        raise UnreadableError("too few", text)


def _number(value: Any, text: str) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"-?\d{1,6}", str(value).strip()):
        raise UnreadableError("no number", text)
    return int(str(value).strip())


def _objects(text: str) -> Iterator[list[tuple[str, Any]]]:
    """The JSON objects in a text, with what surrounds them left aside; keys that come twice stand twice."""
    decoder, start, failed = json.JSONDecoder(object_pairs_hook=list), 0, 0
    while failed < MOST_BRACES and (start := text.find("{", start)) >= 0:
        try:
            found, start = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start, failed = start + 1, failed + 1
            continue
        yield found


def _one(found: list[list[tuple[str, Any]]], text: str) -> list[tuple[str, Any]] | None:
    """The one object there is; none: there is none."""
    if any(other != found[0] for other in found[1:]):
        raise UnreadableError("several answers", text)
    return found[0] if found else None
