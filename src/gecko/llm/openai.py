"""Any OpenAI-compatible server as a teacher, over HTTP.

What is notable here:

- QL needs the log-probabilities of a *given* text. Two ways are known: ``/completions`` with ``echo`` and ``logprobs``, and
  vLLM's ``prompt_logprobs`` in ``/chat/completions``, which reads QL and RC in one request. Which of them a server has is
  found out at the start, with a known string; many servers have none, and serve for RC alone.
- RC is read from the most likely first tokens of the answer. A label that is not among them gets the log-probability of
  the least likely one shown, which is as much as it can have.
- Text goes out as text, so the server's tokenizer would parse ``<|im_end|>`` out of a passage. Such strings are broken up
  (:func:`defused`). Borders of a query are found again in the tokens that come back.
- What a server will not answer, as a content filter does, is given up and counted, and the pair has no score; a server that
  refuses more than it answers is no teacher.
- Dropped connections, time-outs, damaged replies, 429 and 5xx are asked again, with growing pauses and jitter; a pause that
  the server names holds all requests back. The key comes from the environment and goes into the header alone.
"""

import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import httpx2

from gecko.errors import ConfigError, TeacherError
from gecko.llm.base import Group, Judgement, Sampling, Usage, cut_at_stop
from gecko.prompts import Prompt, fill
from gecko.text import whole_characters

Form = Literal["chat", "completion"]
T = TypeVar("T")
R = TypeVar("R")

CHARS_PER_TOKEN = 4  # the tokenizer is the server's: passages are cut, and tokens estimated, by characters
TOP = (20, 5)  # first tokens shown, as many as the server allows
MOST_STOPS = 4  # that the API takes; texts are cut at all of them here
RETRIED = {408, 409, 425, 429}
GIVEN_UP = {400, 413, 422}  # of one text: a content filter, or one that is too long
LONGEST_WAIT = 600.0  # seconds that a server may ask for
KNOWN = (
    "The quick brown fox jumps over the lazy dog, and the dog goes on sleeping in the sun. By noon the shade has reached "
    "the old gate; a cart comes down the road, stops at the well, and two women draw water without a word."
)
LEAST_ANSWERS = 8  # after so many without any label the prompt is given up, after so many refusals the server may be
SAME = 0.05  # nats a token by which two readings of one text may differ

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


@dataclass(frozen=True)
class Address:
    """Where a model is served."""

    url: str
    model: str


def parse_address(spec: str) -> Address:
    """``openai:URL#MODEL``, the URL up to and including ``/v1``.

    Raises:
        ConfigError: a part is missing, or the URL carries a password or a key. The message never repeats those.
    """
    url, _, model = spec.removeprefix("openai:").partition("#")
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            "--llm openai:URL#MODEL: the URL holds a user, a password or a query; give the plain address, and the key "
            "in the environment variable GECKO_API_KEY"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not model:
        raise ConfigError(
            f"--llm {spec!r}: write openai:URL#MODEL, for example openai:http://localhost:8000/v1#my-model"
        )
    return Address(url.rstrip("/"), model)


def key_for(address: Address) -> str | None:
    """The key to send: ``GECKO_API_KEY``; ``OPENAI_API_KEY`` goes to its own host and to no other."""
    key = os.environ.get("GECKO_API_KEY")
    if not key and urlsplit(address.url).hostname == "api.openai.com":
        key = os.environ.get("OPENAI_API_KEY")
    return key or None


@dataclass(frozen=True)
class Patience:
    """How often and after what pause a request is made again; seconds."""

    attempts: int = 8
    first: float = 0.5
    longest: float = 60.0
    timeout: float = 300.0


class _DamagedError(Exception):
    """A reply that cannot be what the server meant to say."""


class _RefusedError(Exception):
    """The server understood and said no."""


@dataclass(frozen=True)
class _Given:
    """Tokens of a text that was given, with their log-probabilities; the first has none."""

    tokens: list[str]
    logprobs: list[float | None]


class OpenAILM:
    """A model behind an OpenAI-compatible server. Call :meth:`probe` before anything else.

    Args:
        address: where it is served.
        identity: hash of the address.
        key: sent as a bearer token; none: no header.
        passage_tokens: longer passages are cut to about so many tokens, and counted in ``usage.truncated``.
        requests: how many are under way at a time.
        patience: about failures.
    """

    def __init__(
        self,
        address: Address,
        *,
        identity: str,
        key: str | None = None,
        passage_tokens: int = 256,
        requests: int = 16,
        patience: Patience | None = None,
    ) -> None:
        self.name = address.model
        self.identity = identity
        self.passage_tokens = passage_tokens
        self.usage = Usage()
        self.can_score = False
        self.reason = "it was not probed"  # why it cannot score
        self._address = address
        self._where = f"{address.model} at {address.url}"
        self._key = key
        self._patience = patience or Patience()
        self._requests = requests
        self._random = random.Random(identity)
        self._lock = threading.Lock()
        self._answers = self._seen = self._answered = 0
        self._not_before = 0.0
        self._echo: int | None = None  # tokens that must be generated for an echo: 0, or 1 where 0 is refused
        self._chat_scores = False
        self._top: dict[Form, int] = {"chat": 0, "completion": 0}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx2.Limits(max_connections=requests, max_keepalive_connections=requests)
        timeout = httpx2.Timeout(self._patience.timeout, connect=min(30.0, self._patience.timeout))
        self._client = httpx2.Client(headers=headers, limits=limits, timeout=timeout)

    # --- the protocol

    def generate(
        self, prompt: Prompt, passages: Sequence[str], sampling: Sampling, variables: Sequence[str] = ()
    ) -> list[str]:
        """See :class:`gecko.llm.base.LanguageModel`."""
        common = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            **({"stop": list(prompt.stop[:MOST_STOPS])} if prompt.stop else {}),
        }

        def write(item: tuple[str, str, int], stop: threading.Event) -> str:
            passage, asked, seed = item
            path, body = self._body(prompt, passage, defused(asked))
            text = self._ask(path, body | common | {"seed": seed}, _written, stop)
            return cut_at_stop(text, prompt.stop)[0]

        chosen = variables or [""] * len(passages)
        texts = self._all(write, list(zip(self._cut(passages), chosen, sampling.seeds, strict=True)))
        return [text or "" for text in texts]

    def score(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[tuple[float, int]]]:
        """See :class:`gecko.llm.base.LanguageModel`."""
        self._needs_query(prompt)
        self._can_score_under(prompt)
        rows = self._pairs(lambda passage, query, stop: self._likelihood(prompt, passage, query, stop)[:2], groups)
        return [[(math.nan, 0) if found is None else found for found in row] for row in rows]

    def label_logprobs(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[tuple[float, ...]]]:
        """See :class:`gecko.llm.base.LanguageModel`."""
        self._needs_query(prompt)
        self._can_answer_under(prompt)
        shown = self._pairs(lambda passage, query, stop: self._shown(prompt, passage, query, stop), groups)
        return self._labels(prompt, shown)

    def judge(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[Judgement]]:
        """See :class:`gecko.llm.base.LanguageModel`. In one request where the server can, else in two."""
        self._needs_query(prompt)
        self._can_score_under(prompt)
        self._can_answer_under(prompt)

        def both(passage: str, query: str, stop: threading.Event) -> tuple[float, int, dict[str, float]]:
            if prompt.form == "chat":
                return self._likelihood(prompt, passage, query, stop, answer=True)
            total, count, _ = self._likelihood(prompt, passage, query, stop)
            return total, count, self._shown(prompt, passage, query, stop)

        read = self._pairs(both, groups)
        labels = self._labels(prompt, [[found[2] if found else None for found in row] for row in read])
        return [
            [
                Judgement(*(found[:2] if found else (math.nan, 0)), answer)
                for found, answer in zip(row, answers, strict=True)
            ]
            for row, answers in zip(read, labels, strict=True)
        ]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See :class:`gecko.llm.base.LanguageModel`. An estimate: four characters a token."""
        return [math.ceil(len(text) / CHARS_PER_TOKEN) for text in texts]

    # --- what the server can do

    def probe(self) -> None:
        """Find out what the server can do, with a known string.

        Raises:
            TeacherError: it does not answer at all, or it knows neither chat nor completions.
        """
        refusals = []
        paths: dict[Form, str] = {"chat": "/chat/completions", "completion": "/completions"}
        for form, path in paths.items():
            for top in TOP:
                try:
                    self._once(path, self._first_token(form, KNOWN) | _wanted(form, top), _SHOWN[form])
                except (_RefusedError, _DamagedError) as refusal:
                    refusals.append(f"{path}: {refusal}")
                    continue
                self._top[form] = top
                break
        try:
            self._chat_scores = self._reliable(self._chat_given)
        except (_RefusedError, _DamagedError) as refusal:
            refusals.append(f"prompt_logprobs: {refusal}")
        for most in (0, 1):
            self._echo = most
            try:
                if self._reliable(self._echo_given):
                    break
            except (_RefusedError, _DamagedError) as refusal:
                refusals.append(f"echo with max_tokens={most}: {refusal}")
            self._echo = None
        self.can_score = self._chat_scores or self._echo is not None
        if not self.can_score and not any(self._top.values()):
            raise TeacherError(
                f"{self._where} neither scores a given text nor shows the likeliest tokens of an answer; a teacher "
                f"needs one of them ({self._clean('; '.join(refusals[-3:]))})"
            )
        if not self.can_score and not self.reason.startswith("its log-probabilities"):
            self.reason = self._clean("; ".join(refusals[-3:]))

    def _reliable(self, given: Callable[[str], _Given]) -> bool:
        """Whether a known text comes back whole, and its log-probabilities do not hang on what was asked before."""
        other = f"{KNOWN[:120]} is long gone."
        first, _, again = given(KNOWN), given(other), given(KNOWN)
        if KNOWN not in "".join(first.tokens):
            raise _DamagedError("the tokens do not add up to the text that was given")
        pairs = [
            (one, two)
            for one, two in zip(first.logprobs, again.logprobs, strict=False)
            if one is not None and two is not None
        ]
        moved = max((abs(one - two) for one, two in pairs), default=0.0)
        if first.tokens != again.tokens or moved > SAME:
            self.reason = (
                f"its log-probabilities of one text differ from request to request by {moved:.2g} nats a token; a vLLM "
                "server must be started with --no-enable-prefix-caching"
            )
            return False
        if not pairs or len({round(one, 6) for one, _ in pairs}) == 1:
            raise _DamagedError("it gives no log-probabilities of the text")
        return True

    def _chat_given(self, text: str) -> _Given:
        body = self._first_token("chat", text) | {"prompt_logprobs": 0}
        return self._once("/chat/completions", body, _prompt_logprobs)

    def _echo_given(self, text: str) -> _Given:
        return self._once("/completions", self._echo_body(text), self._echoed)

    def _once(self, path: str, body: dict[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
        """Ask for what may not be there: a damaged reply is an answer, too."""
        return self._ask(path, body, read, threading.Event(), probing=True)

    def _can_score_under(self, prompt: Prompt) -> None:
        if not self.can_score:
            raise TeacherError(
                f"{self._where} cannot score a given text ({self.reason}); take another server, or judge "
                "by relevance alone: select.fusion=rc"
            )
        if not (self._chat_scores if prompt.form == "chat" else self._echo is not None):
            other = "a completion prompt, such as query_likelihood" if prompt.form == "chat" else "a chat prompt"
            raise TeacherError(
                f"{self._where} cannot score a text inside the {prompt.form} prompt {prompt.name!r}; set "
                f"prompts.query_likelihood to {other}"
            )

    def _can_answer_under(self, prompt: Prompt) -> None:
        if not self._top[prompt.form]:
            raise TeacherError(
                f"{self._where} shows no likeliest tokens of an answer to a {prompt.form} prompt, and the "
                f"labels of {prompt.name!r} are read from them; take a prompt of the other form, or another server"
            )
        if len(set(prompt.labels)) != len(prompt.labels) or len(prompt.labels) < 2:
            raise TeacherError(f"prompt {prompt.name!r} has labels {prompt.labels}; give two or more, all different")

    @staticmethod
    def _needs_query(prompt: Prompt) -> None:
        if not prompt.has_query:
            raise TeacherError(f"prompt {prompt.name!r} has no {{query}}, so there is nothing to score; add it")

    # --- reading

    def _likelihood(
        self, prompt: Prompt, passage: str, query: str, stop: threading.Event, *, answer: bool = False
    ) -> tuple[float, int, dict[str, float]]:
        """(sum, tokens, shown first tokens) of one pair; the last only with ``answer``."""

        def read(under: Prompt, asked: str) -> tuple[_Given, dict[str, float]]:
            path, body = self._body(under, passage, asked)
            if under.form == "completion":
                return self._ask(path, self._echo_body(body["prompt"]), self._echoed, stop), {}
            body |= {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
            if not answer:
                return self._ask(path, body, _prompt_logprobs, stop), {}
            body |= _wanted("chat", self._top["chat"])
            return self._ask(path, body, lambda reply: (_prompt_logprobs(reply), _first_shown(reply)), stop)

        given, shown = read(prompt, query)
        before, after = prompt.around_query
        if prompt.form == "completion":
            before = fill(prompt, passage, query)[0].removesuffix(query + after)
        else:  # the template's text stands around the message; its last line is enough to know the place
            before, after = before.rpartition("\n")[2], after.partition("\n")[0]
        chosen = _places(given.tokens, before, query, after)
        if chosen is None:
            # A character cut into several tokens comes back broken. The prompt without a query shows where the query is.
            chosen = _between(given.tokens, read(_tight(prompt), "")[0].tokens)
        known = [value for value in (given.logprobs[place] for place in chosen) if value is not None]
        if not known or len(known) < len(chosen):
            raise TeacherError(f"{self.name}: the tokens of query {query!r} cannot be told from the prompt around them")
        return sum(known), len(known), shown

    def _shown(self, prompt: Prompt, passage: str, query: str, stop: threading.Event) -> dict[str, float]:
        """The likeliest first tokens of the answer."""
        path, body = self._body(prompt, passage, query)
        wanted = _wanted(prompt.form, self._top[prompt.form])
        return self._ask(path, body | wanted | {"max_tokens": 1, "temperature": 0}, _SHOWN[prompt.form], stop)

    def _labels(
        self, prompt: Prompt, shown: Sequence[Sequence[dict[str, float] | None]]
    ) -> list[list[tuple[float, ...]]]:
        found = [[[_label(label, prompt.labels, one or {}) for label in prompt.labels] for one in row] for row in shown]
        self._answers += sum(one is not None for row in shown for one in row)
        self._seen += sum(any(value is not None for value in values) for row in found for values in row)
        if self._answers >= LEAST_ANSWERS and not self._seen:
            raise TeacherError(
                f"none of {self._answers} answers of {self.name} has a label of prompt {prompt.name!r} "
                f"({', '.join(prompt.labels)}) among its likeliest first tokens; choose other labels, or a model that "
                "follows the instruction"
            )
        return [
            [
                tuple(min(one.values(), default=math.nan) if value is None else value for value in values)
                for values, one in zip(row, [one or {} for one in line], strict=True)
            ]
            for row, line in zip(found, shown, strict=True)
        ]

    # --- requests

    def _cut(self, passages: Sequence[str]) -> list[str]:
        limit = CHARS_PER_TOKEN * self.passage_tokens
        self.usage.truncated += sum(len(passage) > limit for passage in passages)
        return [defused(passage[:limit]) for passage in passages]

    def _body(self, prompt: Prompt, passage: str, second: str) -> tuple[str, dict[str, Any]]:
        text, messages = fill(prompt, passage, second)
        if prompt.form == "completion":
            return "/completions", {"prompt": text}
        return "/chat/completions", {"messages": [{"role": role, "content": content} for role, content in messages]}

    @staticmethod
    def _first_token(form: Form, text: str) -> dict[str, Any]:
        asked = {"prompt": text} if form == "completion" else {"messages": [{"role": "user", "content": text}]}
        return asked | {"max_tokens": 1, "temperature": 0}

    def _echo_body(self, text: str) -> dict[str, Any]:
        return {"prompt": text, "max_tokens": self._echo, "temperature": 0, "echo": True, "logprobs": 1}

    def _pairs(self, ask: Callable[[str, str, threading.Event], T], groups: Sequence[Group]) -> list[list[T | None]]:
        """``ask`` for each pair, several at a time; the results stand where their pairs do. None: it was refused."""
        passages = self._cut([group.passage for group in groups])
        pairs = [
            (passage, defused(query))
            for group, passage in zip(groups, passages, strict=True)
            for query in group.queries
        ]
        found = iter(self._all(lambda pair, stop: ask(*pair, stop), pairs))
        return [[next(found) for _ in group.queries] for group in groups]

    def _all(self, ask: Callable[[R, threading.Event], T], items: Sequence[R]) -> list[T | None]:
        stop = threading.Event()

        def one(item: R) -> T | None:
            try:
                found = ask(item, stop)
            except _RefusedError as refusal:
                self._give_up(refusal)
                return None
            with self._lock:
                self._answered += 1
            return found

        with ThreadPoolExecutor(max_workers=self._requests) as pool:
            waiting = [pool.submit(one, item) for item in items]
            try:
                return [one.result() for one in waiting]
            except BaseException:
                stop.set()  # those that wait for another attempt give up
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _give_up(self, refusal: _RefusedError) -> None:
        """Count what was refused.

        Raises:
            TeacherError: more was refused than answered, so it is not the text that is at fault.
        """
        with self._lock:
            self.usage.refused += 1
            refused, asked = self.usage.refused, self.usage.refused + self._answered
        if refused >= LEAST_ANSWERS and 2 * refused > asked:
            raise TeacherError(
                f"{self._where} refused {refused:,} of {asked:,} texts, the last with {refusal}; mend what it complains of, "
                "or take another server. What was finished before is kept, run the same command again"
            )

    def _ask(
        self,
        path: str,
        body: dict[str, Any],
        read: Callable[[dict[str, Any]], T],
        stop: threading.Event,
        *,
        probing: bool = False,
    ) -> T:
        """One answer, after as many attempts as it takes; ``read`` refuses a reply that cannot be right.

        Raises:
            _RefusedError: the server will not answer this.
            TeacherError: it cannot answer anything.
        """
        cause = ""
        attempts = min(3, self._patience.attempts) if probing else self._patience.attempts
        for attempt in range(attempts):
            self._hold(stop)
            try:
                response = self._client.post(self._address.url + path, json=body | {"model": self._address.model})
            except httpx2.RequestError as error:
                cause = f"{type(error).__name__} {error}".strip()
            else:
                if response.status_code == 200:
                    try:
                        reply = response.json()
                        if _filtered(reply):
                            self._count(reply)
                            raise _RefusedError("200: the answer was held back by a content filter")
                        found = read(reply)
                        self._count(reply)
                        return found
                    except (_DamagedError, ValueError, LookupError, TypeError, AttributeError) as error:
                        if probing:
                            raise _DamagedError(f"not in the reply: {error}") from error
                        cause = f"damaged reply ({error})"
                elif response.status_code in RETRIED or response.status_code >= 500:
                    cause = self._complaint(response)
                    self._pause_all(response)
                    if probing and response.status_code >= 500 and attempt == attempts - 1:
                        raise _RefusedError(cause)
                elif response.status_code in (401, 403):
                    raise TeacherError(
                        f"{self._address.url} refuses the key ({self._complaint(response)}); put a valid one in the "
                        "environment variable GECKO_API_KEY"
                    )
                elif probing or response.status_code in GIVEN_UP:
                    raise _RefusedError(self._complaint(response))
                else:
                    raise TeacherError(f"{self._address.url}{path}: {self._complaint(response)}")
            if attempt < attempts - 1:
                pause = min(self._patience.longest, self._patience.first * 2**attempt) * self._random.uniform(0.5, 1.0)
                if stop.wait(pause):
                    break
        raise TeacherError(
            f"{self._address.url}{path}: no usable answer after {attempts} attempts, the last: {self._clean(cause)}; what "
            "was finished before is kept, run the same command again"
        )

    def _hold(self, stop: threading.Event) -> None:
        """Wait until the server's own pause is over."""
        while (left := self._not_before - time.monotonic()) > 0 and not stop.is_set():
            stop.wait(left + self._random.uniform(0, self._patience.first))

    def _pause_all(self, response: httpx2.Response) -> None:
        asked = response.headers.get("Retry-After", "").strip()
        try:
            seconds = float(asked)
        except ValueError:
            try:
                seconds = (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds()
            except (ValueError, TypeError):
                return
        if math.isfinite(seconds):
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + min(seconds, LONGEST_WAIT))

    def _complaint(self, response: httpx2.Response) -> str:
        try:
            body = response.json()
            said = body.get("error", body) if isinstance(body, dict) else body
            text = str(said.get("message", said) if isinstance(said, dict) else said)
        except ValueError:
            text = response.text
        return f"{response.status_code}: {self._clean(' '.join(text.split())[:300])}"

    def _clean(self, text: str) -> str:
        """What a server or a library said, without the key, should it repeat it."""
        return text.replace(self._key, "***") if self._key else text

    def _count(self, reply: dict[str, Any]) -> None:
        said = reply.get("usage") or {}
        with self._lock:
            self.usage.read += _number(said.get("prompt_tokens") or 0)
            self.usage.written += _number(said.get("completion_tokens") or 0)

    def _echoed(self, reply: dict[str, Any]) -> _Given:
        found = reply["choices"][0]["logprobs"]
        tokens, values = list(found["tokens"]), list(found["token_logprobs"])
        if len(tokens) != len(values) or not all(isinstance(token, str) for token in tokens):
            raise _DamagedError(f"{len(tokens)} tokens with {len(values)} log-probabilities")
        said = reply.get("usage") or {}
        read, written = said.get("prompt_tokens"), said.get("completion_tokens") or 0
        if read is None:
            read = len(tokens) - (self._echo or 0)
        elif len(tokens) not in (read, read + written):
            raise _DamagedError(f"{len(tokens)} tokens for a prompt of {read}")
        return _given(tokens[:read], values[:read])


# --- replies


def _number(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise _DamagedError(f"{value!r} is no number of tokens")
    return value


def _logprob(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= 1e-3 or not math.isfinite(value):
        raise _DamagedError(f"{value!r} is no log-probability")
    return float(value)


def _given(tokens: list[str], values: list[Any]) -> _Given:
    if len(tokens) < 2:
        raise _DamagedError(f"{len(tokens)} tokens of the given text")
    # Only the first token has nothing before it that could predict it.
    return _Given(tokens, [None if values[0] is None else _logprob(values[0]), *map(_logprob, values[1:])])


def _prompt_logprobs(reply: dict[str, Any]) -> _Given:
    """vLLM: for each token of the prompt ``{id: {"logprob": ..., "decoded_token": ...}}``, the given token first."""
    entries = reply.get("prompt_logprobs") or reply["choices"][0]["prompt_logprobs"]
    read = (reply.get("usage") or {}).get("prompt_tokens")
    if read is not None and read != len(entries):
        raise _DamagedError(f"{len(entries)} tokens for a prompt of {read}")
    tokens, values = [""], [None]
    for entry in entries[1:]:
        first = next(iter(entry.values()))
        tokens.append(str(first["decoded_token"]))
        values.append(first["logprob"])
    return _given(tokens, values)


def _first_shown(reply: dict[str, Any]) -> dict[str, float]:
    return _likeliest(
        (one["token"], one["logprob"]) for one in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    )


def _first_completed(reply: dict[str, Any]) -> dict[str, float]:
    return _likeliest(reply["choices"][0]["logprobs"]["top_logprobs"][0].items())


def _likeliest(items: Iterable[tuple[str, Any]]) -> dict[str, float]:
    shown: dict[str, float] = {}
    for token, value in items:
        number = -9999.0 if value == -math.inf else _logprob(value)
        shown[token] = max(number, shown.get(token, -math.inf))
    if not shown:
        raise _DamagedError("no likeliest tokens")
    return shown


_SHOWN: dict[Form, Callable[[dict[str, Any]], dict[str, float]]] = {
    "chat": _first_shown,
    "completion": _first_completed,
}


def _wanted(form: Form, top: int) -> dict[str, Any]:
    return {"logprobs": True, "top_logprobs": top} if form == "chat" else {"logprobs": top}


def _filtered(reply: dict[str, Any]) -> bool:
    return any(choice.get("finish_reason") == "content_filter" for choice in reply.get("choices") or ())


def _written(reply: dict[str, Any]) -> str:
    choice = reply["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return "" if text is None else whole_characters(str(text))


def _label(label: str, labels: Sequence[str], shown: dict[str, float]) -> float | None:
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


def _places(tokens: Sequence[str], before: str, query: str, after: str) -> list[int] | None:
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


def _tight(prompt: Prompt) -> Prompt:
    """The prompt without the space before the query, which belongs to the query."""
    messages = tuple((role, content.replace(" {query}", "{query}")) for role, content in prompt.messages)
    return replace(prompt, text=prompt.text.replace(" {query}", "{query}"), messages=messages)


def _between(tokens: Sequence[str], reference: Sequence[str]) -> list[int]:
    """Which tokens stand between the beginning and the end that both have."""
    most = min(len(tokens), len(reference))
    first = next((place for place in range(most) if tokens[place] != reference[place]), most)
    same = next((place for place in range(most - first) if tokens[-1 - place] != reference[-1 - place]), most - first)
    return list(range(first, len(tokens) - same))
