"""A teacher without weights, for tests and for trying a pipeline: everything it says follows from shared words.

Its log-probabilities are known in closed form, so QL, RC and RRF can be worked out by hand.
"""

import math
import re
from collections.abc import Sequence

from gecko.config.stages import RelabelConfig
from gecko.core.files import digest
from gecko.core.progress import Ui
from gecko.llm.answers import GRADES, Answer, Question
from gecko.llm.base import Group, LanguageModel, Sampling, Usage
from gecko.prompts import Prompt


def words(text: str) -> list[str]:
    """Lower-case words of three or more letters, in order, each once."""
    return list(dict.fromkeys(re.findall(r"[a-z]{3,}", text.lower())))


class FakeLM(LanguageModel):
    """Deterministic stand-in for a teacher.

    - ``score``: every query word costs log 2 nats if the passage has it, log 16 if not; a word is one token.
    - ``label_logprobs``: P(Yes) is the share of the query's words that the passage has, kept within [0.02, 0.98]; a grade
      between the lowest and the highest is as likely as their weighted geometric mean, all divided by their sum.
    - ``answer``: a grade is that share in steps of a third; an order is by share, and of equal ones as they stand; the first
      label is for a share of a half or more.
    - ``generate``: a query of a few of the passage's words, in the form that the generation prompt asks for; which words
      depends on the variables, too.
    """

    name = "fake"
    identity = "fake-1"
    can_answer = True

    def __init__(self) -> None:
        self.usage = Usage()

    def generate(
        self, prompt: Prompt, passages: Sequence[str], sampling: Sampling, variables: Sequence[str] = ()
    ) -> list[str]:
        """See :class:`gecko.llm.base.LanguageModel`."""
        texts = []
        for passage, seed, asked in zip(passages, sampling.seeds, variables or [""] * len(passages), strict=True):
            known = words(passage)
            start = int(digest(passage, str(seed), *filter(None, [asked])), 16) % max(1, len(known) - 4)
            task = ("Given a question, find the answer.", "Given a search query, find a passage.")[seed % 2]
            texts.append(f" {task}\nQuery: where is {' '.join(known[start : start + 5])}")
            self.usage.read += len(known)
            self.usage.written += 8
        return texts

    def score(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[tuple[float, int]]]:
        """See :class:`gecko.llm.base.LanguageModel`."""
        results = []
        for group in groups:
            known = set(words(group.passage))
            row = []
            for query in group.queries:
                asked = words(query)
                row.append((-sum(math.log(2 if word in known else 16) for word in asked), max(1, len(asked))))
                self.usage.read += len(asked)
            results.append(row)
        return results

    def label_logprobs(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[tuple[float, ...]]]:
        """See :class:`gecko.llm.base.LanguageModel`."""
        results: list[list[tuple[float, ...]]] = []
        for group in groups:
            known = set(words(group.passage))
            row: list[tuple[float, ...]] = []
            for query in group.queries:
                yes = min(0.98, max(0.02, _share(known, query)))
                row.append(_grades(prompt.values or (1.0, 0.0), yes))
            results.append(row)
        return results

    def answer(self, prompt: Prompt, questions: Sequence[Question]) -> list[Answer]:
        """See :class:`gecko.llm.base.LanguageModel`."""
        answers: list[Answer] = []
        for question in questions:
            shares = [_share(set(words(passage)), query) for passage in question.passages for query in question.queries]
            self.usage.read += sum(len(words(text)) for text in (*question.passages, *question.queries))
            self.usage.written += question.size
            match question.kind:
                case "grades":
                    answers.append(tuple(int(share * GRADES[-1]) for share in shares))
                case "order":
                    answers.append(tuple(i for i, _ in sorted(enumerate(shares), key=lambda entry: -entry[1])))
                case "label":
                    answers.append((int(shares[0] < 0.5),))
        return answers

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See :class:`gecko.llm.base.LanguageModel`."""
        return [len(words(text)) for text in texts]


def _share(known: set[str], query: str) -> float:
    """How many of a query's words are known."""
    asked = words(query)
    return sum(word in known for word in asked) / max(1, len(asked))


def identity(spec: str) -> str:
    """See :class:`gecko.llm.base.Backend`."""
    return FakeLM.identity


def load(spec: str, identity: str, config: RelabelConfig, ui: Ui) -> LanguageModel:
    """See :class:`gecko.llm.base.Backend`."""
    return FakeLM()


def _grades(values: Sequence[float], yes: float) -> tuple[float, ...]:
    low, high = min(values), max(values)
    parts = [(value - low) / (high - low) for value in values]
    weights = [part * math.log(yes) + (1 - part) * math.log(1 - yes) for part in parts]
    total = math.log(sum(map(math.exp, weights)))
    return tuple(weight - total for weight in weights)
