"""What a teacher must be able to do, and the plain data that goes in and out.

A *group* is one passage with the queries that are asked of it. The prompt's text up to the end of the passage is shared by
all of them, so a backend may read it once; that is where nearly all of the cost of relabelling is saved.
"""

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from gecko.config.stages import RelabelConfig
from gecko.core.errors import TeacherError
from gecko.core.progress import Ui
from gecko.llm.answers import Answer, Kind, Question
from gecko.prompts import Prompt


@dataclass(frozen=True)
class Group:
    """One passage and the queries that are asked of it."""

    passage: str
    queries: tuple[str, ...]


@dataclass(frozen=True)
class Judgement:
    """What a teacher says of one query and one passage.

    Attributes:
        ql_sum: log-probability of the query's tokens given the passage, summed; ``ql_tokens`` is their number.
        labels: log-probabilities of the prompt's labels' first tokens.
    """

    ql_sum: float
    ql_tokens: int
    labels: tuple[float, ...]


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string in it, and whether there is one."""
    found = re.search("|".join(map(re.escape, stops)), text) if stops else None
    return (text[: found.start()], True) if found else (text, False)


NOTHING = Judgement(0.0, 0, ())


@dataclass(frozen=True)
class Sampling:
    """How a text is drawn.

    ``temperature`` 0 is greedy. ``seeds`` holds one seed a prompt: a text never depends on the prompts beside it.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Refusal:
    """A text or a pair that a teacher would not answer.

    Attributes:
        place: which of the call's passages it belongs to.
        reason: short, and the same for all refusals of a sort.
        said: what the teacher said.
    """

    place: int
    reason: str
    said: str


@dataclass
class Usage:
    """What a backend has read and written since it was made, in tokens that it really processed.

    ``truncated`` and ``refused`` count passages that were cut, and texts and pairs that it would not answer; ``refusals``
    say why, where the backend knows. A server counts ``requests``, and by kind the ``errors`` that they came to, each
    attempt for itself.
    """

    read: int = 0
    written: int = 0
    truncated: int = 0
    refused: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    requests: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def tokens(self) -> int:
        """Read and written together."""
        return self.read + self.written


class LanguageModel(Protocol):
    """A teacher. What it refuses to answer (``usage.refused``) is an empty text, or a pair whose scores are NaN.

    A backend inherits from it; what it does not say of itself is as it stands here.

    Attributes:
        name: what to call it before people.
        identity: hash of its weights or address: a part of the fingerprint of what it makes.
        usage: tokens so far.
        can_score: whether it can return the log-probabilities of a given text.
        can_answer: whether it can be asked questions whose answer is a text (:meth:`answer`).
        needs_many: whether it is at its speed with many texts at a time alone, as a GPU is.
        pack_tokens: tokens that it reads in one pass; 0: it is not for the caller to know.
    """

    name: str
    identity: str
    usage: Usage
    can_score: bool = True
    can_answer: bool = False
    needs_many: bool = False
    pack_tokens: int = 0

    @abstractmethod
    def generate(
        self, prompt: Prompt, passages: Sequence[str], sampling: Sampling, variables: Sequence[str] = ()
    ) -> list[str]:
        """One text a passage, up to the first stop string (which is cut off).

        ``variables`` holds what goes into the slot of that name, one text a passage; none: nothing goes there.
        """
        ...

    @abstractmethod
    def score(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[tuple[float, int]]]:
        """For each group and query: (sum of the log-probabilities of the query's tokens, their number)."""
        ...

    @abstractmethod
    def label_logprobs(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[tuple[float, ...]]]:
        """For each group and query: the natural logarithms of the probabilities of the prompt's labels' first tokens.

        Raises:
            TeacherError: two labels begin with the same token.
        """
        ...

    def judge(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[Judgement]]:
        """``score`` and ``label_logprobs`` under one prompt, in one pass where a backend can."""
        scores, labels = self.score(prompt, groups), self.label_logprobs(prompt, groups)
        return [
            [Judgement(total, count, values) for (total, count), values in zip(row, answers, strict=True)]
            for row, answers in zip(scores, labels, strict=True)
        ]

    def answer(self, prompt: Prompt, questions: Sequence[Question]) -> list[Answer]:
        """The answers to questions of one kind, of as many numbers each as the question's ``size``.

        None stands in the place of a number that could not be had, and is counted in ``usage.refused``.

        Raises:
            TeacherError: it cannot be asked, or none of its answers can be read.
        """
        raise TeacherError(f"{self.name} gives no answers in words to judge by; judge with relabel.judge=logprobs")

    def no_labels(self, prompt: Prompt) -> str:
        """Why the labels of a prompt cannot be read from the log-probabilities; empty: they can."""
        return ""

    def no_answers(self, prompt: Prompt, kind: Kind) -> str:
        """Why questions of a kind are not answered in a way that can be read; empty: they are."""
        return "" if self.can_answer else f"{self.name} gives no answers in words"

    @abstractmethod
    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, as data, before any truncation."""
        ...

    def asked_anew(self) -> AbstractContextManager[None]:
        """While it lasts no answer that was kept is given, and none is kept: so that speeds can be measured."""
        return nullcontext()


class Backend(Protocol):
    """A module that makes teachers: what :mod:`gecko.llm.registry` has a row for. Both functions are given the whole SPEC."""

    def identity(self, spec: str) -> str:
        """What the answers of a teacher depend on, as a hash, without loading it.

        Raises:
            ConfigError: the SPEC is incomplete, or its file does not exist.
        """
        ...

    def load(self, spec: str, identity: str, config: RelabelConfig, ui: Ui) -> LanguageModel:
        """Fetch, convert and load a teacher.

        Raises:
            TeacherError: it cannot be fetched or loaded.
        """
        ...
