"""From an LLM SPEC to a teacher: one row a backend.

A backend is a module with ``identity`` and ``load`` (:class:`gecko.llm.base.Backend`), which is imported when one of its
SPECs is named.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, cast

from gecko.config.stages import RelabelConfig
from gecko.core.errors import ConfigError, TeacherError
from gecko.core.progress import Ui
from gecko.llm.answers import Kind
from gecko.llm.base import Backend, LanguageModel
from gecko.prompts import Prompt


@dataclass(frozen=True)
class Row:
    """A kind of SPEC.

    Attributes:
        form: how it is written, with a colon where a name follows.
        module: where its backend is.
        reads_once: whether the text that calls share is read once; else each call is paid for in full.
        answers: whether it can be asked questions that are answered in words.
        asked: whether what it can do is found out by asking it, as of a server.
    """

    form: str
    module: str
    reads_once: bool = True
    answers: bool = False
    asked: bool = False


# By what a SPEC begins with, up to its colon.
BACKENDS = {
    "default": Row("default", "gecko.llm.local"),
    "default-small": Row("default-small", "gecko.llm.local"),
    "smollm2": Row("smollm2", "gecko.llm.local"),
    "hf": Row("hf:NAME", "gecko.llm.local"),
    "gguf": Row("gguf:PATH", "gecko.llm.local"),
    "openai": Row("openai:URL#MODEL", "gecko.llm.openai", reads_once=False, answers=True, asked=True),
    "fake": Row("fake", "gecko.llm.fake", answers=True),
}
RETIRED = {"vllm": Row("vllm:NAME", "gecko.llm.local", reads_once=False)}  # runs that were made with it are still read


def row(spec: str) -> Row:
    """What is known of the backend of an LLM SPEC. Raises ConfigError: the SPEC is of no known form."""
    kind, colon, name = spec.partition(":")
    found = (BACKENDS | RETIRED).get(kind)
    if found is None or not (":" in found.form) == bool(colon) == bool(name):
        forms = [row.form for row in BACKENDS.values()]
        raise ConfigError(f"--llm {spec!r} is of no known form; use {', '.join(forms[:-1])} or {forms[-1]}")
    return found


def known(spec: str) -> Row:
    """:func:`row`, and for a SPEC of no known form the defaults of one: of runs whose backend is gone."""
    return (BACKENDS | RETIRED).get(spec.partition(":")[0], Row("", ""))


def _backend(spec: str) -> Backend:
    return cast("Backend", import_module(row(spec).module))


def teacher_identity(spec: str) -> str:
    """What a teacher's answers depend on, as a hash, without loading it.

    Raises ConfigError: the SPEC is of no known form, or its file does not exist.
    """
    return _backend(spec).identity(spec)


def load_teacher(spec: str, config: RelabelConfig, ui: Ui) -> LanguageModel:
    """Fetch, convert and load a teacher; ``config`` says how many tokens of a passage it reads and packs together.

    Raises ConfigError: the SPEC is of no known form. TeacherError: it cannot be fetched or loaded.
    """
    return _backend(spec).load(spec, teacher_identity(spec), config, ui)


def check_scores(teacher: LanguageModel) -> None:
    """Refuse a teacher that cannot give query likelihoods. Raises TeacherError: it cannot."""
    if not teacher.can_score:
        raise TeacherError(
            f"{teacher.name} cannot return the log-probabilities of a given text, and judging needs them; "
            "take another teacher with --llm, or judge by relevance alone with --set select.fusion=rc"
            + (", or by grades in its answers with --set relabel.judge=graded" if teacher.can_answer else "")
        )


def check_labels(teacher: LanguageModel, relevance: Prompt) -> None:
    """Refuse a teacher whose log-probabilities do not tell the labels of the prompt, before anything is paid for.

    Raises TeacherError: they do not.
    """
    if wrong := teacher.no_labels(relevance):
        raise TeacherError(
            f"{teacher.name} cannot judge by log-probabilities: {wrong}. Have it judge by its answers with --set "
            "relabel.judge=graded, or give it a prompt whose labels it begins with (prompts.relevance)"
        )


def check_answers(teacher: LanguageModel, prompts: Sequence[Prompt], form: str) -> None:
    """Refuse a teacher whose answers to the prompts of a form, ``graded`` or ``listwise``, cannot be read.

    Raises TeacherError: they cannot.
    """
    kinds: tuple[Kind, ...] = ("grades",) if form == "graded" else ("order", "label")
    for prompt, kind in zip(prompts, kinds, strict=True):
        if wrong := teacher.no_answers(prompt, kind):
            raise TeacherError(
                f"{teacher.name} cannot judge by its answers (relabel.judge={form}): a known question of prompt "
                f"{prompt.name!r} got no answer that can be read ({wrong})"
            )


def judging_form(
    teacher: LanguageModel, relevance: Prompt, graded: Prompt, *, likelihood: bool = False
) -> tuple[Literal["logprobs", "graded"], str]:
    """How a teacher can judge, and a sentence that says so: by log-probabilities if it has them, else by grades.

    ``relevance`` is the prompt of RC, ``graded`` that of grades. With ``likelihood`` QL is needed, too; a teacher that
    has RC alone then judges by grades. Raises TeacherError: in neither way.
    """
    no_labels = teacher.no_labels(relevance)
    if not no_labels and likelihood and not teacher.can_score and not teacher.no_answers(graded, "grades"):
        return "graded", (
            f"{teacher.name} judges by grades in its answers: it has the log-probabilities of its answers, but not those of "
            "a given text; --set relabel.judge=logprobs --set select.fusion=rc judges by the first alone"
        )
    if not no_labels:
        return "logprobs", f"{teacher.name} judges by the log-probabilities of its answers"
    no_answers = teacher.no_answers(graded, "grades")
    if no_answers:
        raise TeacherError(
            f"{teacher.name} cannot judge: not by log-probabilities, because {no_labels}, and not by grades, because a known "
            f"question got no answer that can be read ({no_answers}); take another model or server with --llm"
        )
    return "graded", (
        f"{teacher.name} judges by grades in its answers, not by log-probabilities ({no_labels}); relabel.judge=listwise has "
        "it put candidates in order instead"
    )
