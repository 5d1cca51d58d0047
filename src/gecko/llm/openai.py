"""Any OpenAI-compatible server as a teacher, over HTTP.

What is notable here:

- QL needs the log-probabilities of a *given* text. Two ways are known: ``/completions`` with ``echo`` and ``logprobs``, and
  vLLM's ``prompt_logprobs`` in ``/chat/completions``, which reads QL and RC in one request. Which of them a server has is
  found out at the start, with a known string; many servers have none, and serve for RC alone.
- RC is read from the most likely first tokens of the answer. A label that is not among them gets the log-probability of
  the least likely one shown, which is as much as it can have.
- Text goes out as text, so the server's tokenizer would parse ``<|im_end|>`` out of a passage. Such strings are broken up
  (:func:`defused`). Borders of a query are found again in the tokens that come back.
- A server without any log-probabilities judges by what it answers (:mod:`gecko.llm.openai_answers`).
- What a server will not answer, as a content filter does, is given up and counted, and the pair has no score; a server that
  refuses more than it answers is no teacher (:mod:`gecko.llm.openai_http`).
- The key comes from the environment and goes into the header alone.
"""

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gecko.config.stages import RelabelConfig
from gecko.core.errors import ConfigError, TeacherError
from gecko.core.files import digest
from gecko.core.progress import Ui
from gecko.llm.base import Group, Judgement, LanguageModel, Sampling, cut_at_stop
from gecko.llm.openai_address import Address, key_for, parse_address
from gecko.llm.openai_answers import CHARS_PER_TOKEN, KNOWN_QUERIES, Answering, defused, spoken
from gecko.llm.openai_http import KNOWN
from gecko.llm.openai_refusals import LEAST_ANSWERS
from gecko.llm.openai_replies import (
    SHOWN,
    DamagedError,
    Form,
    Given,
    RefusedError,
    between,
    first_shown,
    given,
    label_logprob,
    places,
    prompt_logprobs,
    tight,
    wanted,
    written,
)
from gecko.prompts import Prompt, fill
from gecko.weights.cache import cache_folder

T = TypeVar("T")

TOP = (20, 5)  # first tokens shown, as many as the server allows
MOST_STOPS = 4  # that the API takes; texts are cut at all of them here
SAME = 0.05  # nats a token by which two readings of one text may differ


class OpenAILM(Answering, LanguageModel):
    """A model behind an OpenAI-compatible server. Call :meth:`probe` before anything else.

    ``rest``: see :class:`gecko.llm.openai_answers.Answering`.
    """

    def __init__(self, address: Address, **rest: Any) -> None:
        super().__init__(address, **rest)
        self.can_score = False
        self.reason = "it was not probed"  # why it cannot score
        self._answers = self._seen = 0
        self._echo: int | None = None  # tokens that must be generated for an echo: 0, or 1 where 0 is refused
        self._chat_scores = False
        self._top: dict[Form, int] = {"chat": 0, "completion": 0}

    # --- the protocol

    def generate(
        self, prompt: Prompt, passages: Sequence[str], sampling: Sampling, variables: Sequence[str] = ()
    ) -> list[str]:
        """See :class:`gecko.llm.base.LanguageModel`."""
        common = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens + self.thinking_tokens,
            # A stop string ends the thinking of a model that thinks, too.
            **({"stop": list(prompt.stop[:MOST_STOPS])} if prompt.stop and not self.thinking_tokens else {}),
        }

        def write(item: tuple[str, str, int], stop: threading.Event) -> str:
            passage, asked, seed = item
            path, body = self._body(prompt, passage, defused(asked))
            text = self._ask(path, body | common | {"seed": seed}, written, stop)
            return cut_at_stop(spoken(text), prompt.stop)[0]

        chosen = variables or [""] * len(passages)
        items = list(zip(self._cut(passages), chosen, sampling.seeds, strict=True))
        texts = self._all(write, items, range(len(items)))
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

        Raises TeacherError: it does not answer at all, or it knows neither chat nor completions.
        """
        refusals = []
        paths: dict[Form, str] = {"chat": "/chat/completions", "completion": "/completions"}
        for form, path in paths.items():
            for top in TOP:
                try:
                    self._once(path, self._first_token(form, KNOWN) | wanted(form, top), SHOWN[form])
                except (RefusedError, DamagedError) as refusal:
                    refusals.append(f"{path}: {refusal}")
                    continue
                self._top[form] = top
                break
        try:
            self._chat_scores = self._reliable(
                lambda text: self._once(
                    "/chat/completions", self._first_token("chat", text) | {"prompt_logprobs": 0}, prompt_logprobs
                )
            )
        except (RefusedError, DamagedError) as refusal:
            refusals.append(f"prompt_logprobs: {refusal}")
        for most in (0, 1):
            self._echo = most
            try:
                if self._reliable(lambda text: self._once("/completions", self._echo_body(text), self._echoed)):
                    break
            except (RefusedError, DamagedError) as refusal:
                refusals.append(f"echo with max_tokens={most}: {refusal}")
            self._echo = None
        self.can_score = self._chat_scores or self._echo is not None
        self.can_answer = bool(self._top["chat"]) or self._talks(refusals)
        if not self.can_score and not self.can_answer and not self.shows_tokens:
            raise TeacherError(
                f"{self._where} neither scores a given text nor shows the likeliest tokens of an answer nor answers in "
                f"/chat/completions; a teacher needs one of them ({self._clean('; '.join(refusals[-3:]))})"
            )
        if not self.can_score and not self.reason.startswith("its log-probabilities"):
            self.reason = self._clean("; ".join(refusals[-3:]))

    @property
    def shows_tokens(self) -> bool:
        """Whether it shows the likeliest tokens of an answer."""
        return any(self._top.values())

    def _talks(self, refusals: list[str]) -> bool:
        """Whether it answers in words, of which a model that thinks may have none yet."""
        try:
            self._once("/chat/completions", self._first_token("chat", KNOWN), written)
        except (RefusedError, DamagedError) as refusal:
            refusals.append(f"chat: {refusal}")
            return False
        return True

    def no_labels(self, prompt: Prompt) -> str:
        """See :class:`gecko.llm.base.LanguageModel`. Known pairs are asked."""
        if not self._top[prompt.form]:
            return f"it shows no likeliest tokens of an answer to a {prompt.form} prompt"
        shown: dict[str, float] = {}
        for query in KNOWN_QUERIES:
            path, body = self._body(prompt, KNOWN, query)
            top = wanted(prompt.form, self._top[prompt.form])
            shown = self._once(path, body | top | {"max_tokens": 1, "temperature": 0}, SHOWN[prompt.form])
            if any(label_logprob(label, prompt.labels, shown) is not None for label in prompt.labels):
                return ""
        first = ", ".join(repr(token) for token in sorted(shown, key=shown.__getitem__, reverse=True)[:3])
        return f"its answers begin with {first}, and none of it begins a label ({', '.join(prompt.labels)})"

    def _reliable(self, given: Callable[[str], Given]) -> bool:
        """Whether a known text comes back whole, and its log-probabilities do not hang on what was asked before."""
        other = f"{KNOWN[:120]} is long gone."
        first, _, again = given(KNOWN), given(other), given(KNOWN)
        if KNOWN not in "".join(first.tokens):
            raise DamagedError("the tokens do not add up to the text that was given")
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
            raise DamagedError("it gives no log-probabilities of the text")
        return True

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

        def read(under: Prompt, asked: str) -> tuple[Given, dict[str, float]]:
            path, body = self._body(under, passage, asked)
            if under.form == "completion":
                return self._ask(path, self._echo_body(body["prompt"]), self._echoed, stop), {}
            body |= {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
            if not answer:
                return self._ask(path, body, prompt_logprobs, stop), {}
            body |= wanted("chat", self._top["chat"])
            return self._ask(path, body, lambda reply: (prompt_logprobs(reply), first_shown(reply)), stop)

        given, shown = read(prompt, query)
        before, after = prompt.around_query
        if prompt.form == "completion":
            before = fill(prompt, passage, query)[0].removesuffix(query + after)
        else:  # the template's text stands around the message; its last line is enough to know the place
            before, after = before.rpartition("\n")[2], after.partition("\n")[0]
        chosen = places(given.tokens, before, query, after)
        if chosen is None:
            # A character cut into several tokens comes back broken. The prompt without a query shows where the query is.
            chosen = between(given.tokens, read(tight(prompt), "")[0].tokens)
        known = [value for value in (given.logprobs[place] for place in chosen) if value is not None]
        if not known or len(known) < len(chosen):
            raise TeacherError(f"{self.name}: the tokens of query {query!r} cannot be told from the prompt around them")
        return sum(known), len(known), shown

    def _shown(self, prompt: Prompt, passage: str, query: str, stop: threading.Event) -> dict[str, float]:
        """The likeliest first tokens of the answer."""
        path, body = self._body(prompt, passage, query)
        top = wanted(prompt.form, self._top[prompt.form])
        return self._ask(path, body | top | {"max_tokens": 1, "temperature": 0}, SHOWN[prompt.form], stop)

    def _labels(
        self, prompt: Prompt, shown: Sequence[Sequence[dict[str, float] | None]]
    ) -> list[list[tuple[float, ...]]]:
        labels = prompt.labels
        found = [[[label_logprob(label, labels, one or {}) for label in labels] for one in row] for row in shown]
        self._answers += sum(one is not None for row in shown for one in row)
        self._seen += sum(any(value is not None for value in values) for row in found for values in row)
        if self._answers >= LEAST_ANSWERS and not self._seen:
            raise TeacherError(
                f"none of {self._answers} answers of {self.name} has a label of prompt {prompt.name!r} "
                f"({', '.join(labels)}) among its likeliest first tokens; choose other labels, or a model that "
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
        owners = [place for place, group in enumerate(groups) for _ in group.queries]
        found = iter(self._all(lambda pair, stop: ask(*pair, stop), pairs, owners))
        return [[next(found) for _ in group.queries] for group in groups]

    def _echoed(self, reply: dict[str, Any]) -> Given:
        found = reply["choices"][0]["logprobs"]
        tokens, values = list(found["tokens"]), list(found["token_logprobs"])
        if len(tokens) != len(values) or not all(isinstance(token, str) for token in tokens):
            raise DamagedError(f"{len(tokens)} tokens with {len(values)} log-probabilities")
        said = reply.get("usage") or {}
        read, written = said.get("prompt_tokens"), said.get("completion_tokens") or 0
        if read is None:
            read = len(tokens) - (self._echo or 0)
        elif len(tokens) not in (read, read + written):
            raise DamagedError(f"{len(tokens)} tokens for a prompt of {read}")
        return given(tokens[:read], values[:read])


def identity(spec: str) -> str:
    """See :class:`gecko.llm.base.Backend`."""
    address = parse_address(spec)
    return digest("openai", address.url, address.model)


def load(spec: str, identity: str, config: RelabelConfig, ui: Ui) -> LanguageModel:
    """See :class:`gecko.llm.base.Backend`."""
    address = parse_address(spec)
    try:
        kept = cache_folder() / "answers" / f"{identity}.json"
    except ConfigError as error:
        ui.say(f"answers of work that is stopped are not kept for the next run: {error}")
        kept = None
    teacher = OpenAILM(
        address,
        identity=identity,
        key=key_for(address),
        passage_tokens=config.passage_tokens,
        thinking_tokens=config.thinking_tokens,
        requests=config.requests,
        kept=kept,
        say=ui.say,
    )
    teacher.probe()
    if not teacher.can_score and teacher.shows_tokens:
        ui.say(f"{teacher.name} cannot score a given text ({teacher.reason}): it serves for relevance alone")
    return teacher
