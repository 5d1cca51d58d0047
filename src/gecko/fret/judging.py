"""The forms in which a teacher can judge, and which record each of them makes.

=========  =======================================================================================  ======
logprobs   the log-probabilities of the query and of a label, pair by pair                            Score
graded     an answer with a grade for each query of a passage (:mod:`gecko.fret.answered`)            Grade
listwise   an answer with an order of a query's candidates, asked for twice                           Place
=========  =======================================================================================  ======
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from gecko.core.files import digest
from gecko.core.records import Grade, Judged, Place, Score
from gecko.llm.answers import FORMAT
from gecko.prompts import Prompt

FormName = Literal["logprobs", "graded", "listwise"]
PART = "judge"  # of a fingerprint; one that lacks it is of log-probabilities


@dataclass(frozen=True)
class JudgeForm:
    """A form of judging, named as ``relabel.judge`` has it: the record it makes of a pair, and the roles of its prompts."""

    name: FormName
    record: type[Judged]
    roles: tuple[str, ...]

    @property
    def parts(self) -> dict[str, str]:
        """What it adds to a fingerprint; nothing for log-probabilities, which were once the only one."""
        return {} if self.name == "logprobs" else {PART: self.name, "answers": FORMAT}


FORMS: dict[FormName, JudgeForm] = {
    "logprobs": JudgeForm("logprobs", Score, ("likelihood", "relevance")),
    "graded": JudgeForm("graded", Grade, ("graded",)),
    "listwise": JudgeForm("listwise", Place, ("listwise", "relevance")),
}


def form_of(parts: Mapping[str, str]) -> JudgeForm:
    """The form that a fingerprint of these parts is of."""
    return FORMS.get(cast("FormName", parts.get(PART, "logprobs")), FORMS["logprobs"])


def answers_hash(*prompts: Prompt) -> str:
    """One hash for the prompts that asked for an answer in words, and for how it was read."""
    return digest(*(prompt.hash for prompt in prompts), FORMAT)
