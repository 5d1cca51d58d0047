"""What an OpenAI-compatible server's replies hold: log-probabilities, texts, token counts, and errors in any dress."""

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from gecko.core.text import whole_characters
from gecko.prompts import Prompt

Form = Literal["chat", "completion"]

# Names of errors that servers give in place of a status, or beside one that says less.
NO_MONEY = {"insufficient_quota", "insufficient_credits", "billing_hard_limit_reached", "billing_not_active"}
STATUS_OF = {"rate_limit_exceeded": 429, "content_filter": 400, "invalid_api_key": 401} | dict.fromkeys(NO_MONEY, 402)
FAULTY = 500  # of an error without a number
WORDS = 300  # characters of what a server says that are shown


class DamagedError(Exception):
    """A reply that cannot be what the server meant to say."""


class RefusedError(Exception):
    """The server will not answer one text; ``kind`` is a word or a number for all refusals of this sort.

    With ``in_parts`` the text is asked for again in parts, which are counted in its place.
    """

    in_parts = False

    def __init__(self, kind: str, said: str) -> None:
        super().__init__(said)
        self.kind = kind


@dataclass(frozen=True)
class Given:
    """Tokens of a text that was given, with their log-probabilities; the first has none."""

    tokens: list[str]
    logprobs: list[float | None]


# --- errors


def words(body: Any) -> str:
    """What an error's body, read or not, says: on one line and without markup."""
    if isinstance(body, str):
        with contextlib.suppress(ValueError):
            body = json.loads(body)
    error = body.get("error") or body if isinstance(body, dict) else body
    said, further = error, None
    if isinstance(error, dict):
        said = error.get("message") or error.get("detail") or error
        details = error.get("metadata")
        further = details.get("raw") if isinstance(details, dict) else None
    text = f"{said} ({further})" if isinstance(further, str) and further else str(said)
    if re.match(r"\s*<(!doctype|html|\?xml)", text, re.IGNORECASE):
        text = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", text, flags=re.IGNORECASE | re.DOTALL)
    return " ".join(text.split())[:WORDS]


def status_of(body: Any, status: int = FAULTY) -> int:
    """The status that an error's body names, which may say more than ``status``, the one it came with."""
    error = body.get("error") if isinstance(body, dict) else None
    fields = [one for one in (error, body) if isinstance(one, dict)]
    named = [value for one in fields for key in ("code", "type", "status") if (value := one.get(key)) is not None]
    if any(isinstance(value, str) and value in NO_MONEY for value in named):
        return 402
    if status != FAULTY:
        return status
    for value in named:
        if isinstance(value, str) and value in STATUS_OF:
            return STATUS_OF[value]
        if re.fullmatch(r"[45]\d\d", str(value)):
            return int(value)
    return status


def error_within(reply: dict[str, Any]) -> dict[str, Any] | None:
    """The error that came in place of an answer, though with status 200; a gateway may put it into the choice."""
    choices = reply.get("choices") or [{}]
    for holder in (reply, choices[0]):
        if holder.get("error"):
            return dict(holder)
    return reply if reply.get("object") == "error" else None


def held_back(reply: dict[str, Any]) -> bool:
    """Whether a content filter held the answer back; one that holds the prompt back leaves no choices."""
    choices = reply.get("choices") or ()
    if not choices and any(key in reply for key in ("prompt_filter_results", "prompt_feedback", "promptFeedback")):
        return True
    return any(choice.get("finish_reason") == "content_filter" for choice in choices)


def asked_pause(header: str) -> float | None:
    """Seconds that a ``Retry-After`` asks to wait, of which it says the number or the end."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


# --- answers


def number(value: object) -> int:
    """A count of tokens. Raises DamagedError: it is none."""
    if not isinstance(value, int) or value < 0:
        raise DamagedError(f"{value!r} is no number of tokens")
    return value


def _logprob(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= 1e-3 or not math.isfinite(value):
        raise DamagedError(f"{value!r} is no log-probability")
    return float(value)


def given(tokens: list[str], values: list[Any]) -> Given:
    """Tokens and log-probabilities of a given text.

    Raises DamagedError: there are too few, or a value is no log-probability.
    """
    if len(tokens) < 2:
        raise DamagedError(f"{len(tokens)} tokens of the given text")
    # Only the first token has nothing before it that could predict it.
    return Given(tokens, [None if values[0] is None else _logprob(values[0]), *map(_logprob, values[1:])])


def prompt_logprobs(reply: dict[str, Any]) -> Given:
    """vLLM: for each token of the prompt ``{id: {"logprob": ..., "decoded_token": ...}}``, the given token first."""
    entries = reply.get("prompt_logprobs") or reply["choices"][0]["prompt_logprobs"]
    read = (reply.get("usage") or {}).get("prompt_tokens")
    if read is not None and read != len(entries):
        raise DamagedError(f"{len(entries)} tokens for a prompt of {read}")
    tokens, values = [""], [None]
    for entry in entries[1:]:
        first = next(iter(entry.values()))
        tokens.append(str(first["decoded_token"]))
        values.append(first["logprob"])
    return given(tokens, values)


def first_shown(reply: dict[str, Any]) -> dict[str, float]:
    """The likeliest first tokens of a chat answer, with their log-probabilities."""
    return _likeliest(
        (one["token"], one["logprob"]) for one in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    )


def _likeliest(items: Iterable[tuple[str, Any]]) -> dict[str, float]:
    shown: dict[str, float] = {}
    for token, value in items:
        number = -9999.0 if value == -math.inf else _logprob(value)
        shown[token] = max(number, shown.get(token, -math.inf))
    if not shown:
        raise DamagedError("no likeliest tokens")
    return shown


SHOWN: dict[Form, Callable[[dict[str, Any]], dict[str, float]]] = {
    "chat": first_shown,
    "completion": lambda reply: _likeliest(reply["choices"][0]["logprobs"]["top_logprobs"][0].items()),
}


def wanted(form: Form, top: int) -> dict[str, Any]:
    """What a request must say to be shown the ``top`` likeliest tokens."""
    return {"logprobs": True, "top_logprobs": top} if form == "chat" else {"logprobs": top}


def written(reply: dict[str, Any]) -> str:
    """The text of an answer."""
    choice = reply["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return "" if text is None else whole_characters(str(text))


def label_logprob(label: str, labels: Sequence[str], shown: dict[str, float]) -> float | None:
    """Log-probability of a label's first token: the label itself, with a space before it, or its longest clear beginning."""
    for token in (label, f" {label}", f"▁{label}"):
        if token in shown:
            return shown[token]
    beginnings: dict[str, float] = {}
    for token, value in shown.items():
        bare = token.lstrip(" ▁")
        beginnings[bare] = max(value, beginnings.get(bare, value))
    clear = [
        token
        for token in beginnings
        if token and label.startswith(token) and sum(other.startswith(token) for other in labels) == 1
    ]
    return beginnings[max(clear, key=len)] if clear else None


def places(tokens: Sequence[str], before: str, query: str, after: str) -> list[int] | None:
    """Which tokens hold the query, where they add up to ``before + query + after``; a space before it belongs to it.

    A token that reaches over the border counts to the query. It does so in the same way under every passage, since the text
    around the border is the same.
    """
    joined = "".join(tokens)
    at = joined.rfind(before + query + after)
    if at < 0:
        return None
    first = at + len(before.removesuffix(" "))
    last = at + len(before) + len(query)
    chosen, start = [], 0
    for place, token in enumerate(tokens):
        if start + len(token) > first and start < last:
            chosen.append(place)
        start += len(token)
    return chosen


def tight(prompt: Prompt) -> Prompt:
    """The prompt without the space before the query, which belongs to the query."""
    messages = tuple((role, content.replace(" {query}", "{query}")) for role, content in prompt.messages)
    return replace(prompt, text=prompt.text.replace(" {query}", "{query}"), messages=messages)


def between(tokens: Sequence[str], reference: Sequence[str]) -> list[int]:
    """Which tokens stand between the beginning and the end that both have."""
    most = min(len(tokens), len(reference))
    first = next((place for place in range(most) if tokens[place] != reference[place]), most)
    same = next((place for place in range(most - first) if tokens[-1 - place] != reference[-1 - place]), most - first)
    return list(range(first, len(tokens) - same))
