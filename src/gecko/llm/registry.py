"""From an LLM SPEC to a teacher: one row a backend.

A backend is a module with ``identity`` and ``load`` (:class:`gecko.llm.base.Backend`), which is imported when one of its
SPECs is named.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import cast

from gecko.config.stages import RelabelConfig
from gecko.core.errors import ConfigError, TeacherError
from gecko.core.progress import Ui
from gecko.llm.base import Backend, LanguageModel


@dataclass(frozen=True)
class Row:
    """A kind of SPEC.

    Attributes:
        form: how it is written, with a colon where a name follows.
        module: where its backend is.
        reads_once: whether the text that calls share is read once; else each call is paid for in full.
    """

    form: str
    module: str
    reads_once: bool = True


# By what a SPEC begins with, up to its colon.
BACKENDS = {
    "default": Row("default", "gecko.llm.local"),
    "default-small": Row("default-small", "gecko.llm.local"),
    "smollm2": Row("smollm2", "gecko.llm.local"),
    "hf": Row("hf:NAME", "gecko.llm.local"),
    "gguf": Row("gguf:PATH", "gecko.llm.local"),
    "openai": Row("openai:URL#MODEL", "gecko.llm.openai", reads_once=False),
    "fake": Row("fake", "gecko.llm.fake"),
}
RETIRED = {"vllm": Row("vllm:NAME", "gecko.llm.vllm", reads_once=False)}  # runs that were made with it are still read


def row(spec: str) -> Row:
    """What is known of the backend of an LLM SPEC.

    Raises:
        ConfigError: the SPEC is of no known form.
    """
    kind, colon, name = spec.partition(":")
    found = (BACKENDS | RETIRED).get(kind)
    if found is None or not (":" in found.form) == bool(colon) == bool(name):
        forms = [row.form for row in BACKENDS.values()]
        raise ConfigError(f"--llm {spec!r} is of no known form; use {', '.join(forms[:-1])} or {forms[-1]}")
    return found


def reads_once(spec: str) -> bool:
    """See :class:`Row`; what has no row is taken to."""
    found = (BACKENDS | RETIRED).get(spec.partition(":")[0])
    return found is None or found.reads_once


def _backend(spec: str) -> Backend:
    return cast("Backend", import_module(row(spec).module))


def teacher_identity(spec: str) -> str:
    """What a teacher's answers depend on, as a hash, without loading it.

    Raises:
        ConfigError: the SPEC is of no known form, or its file does not exist.
    """
    return _backend(spec).identity(spec)


def load_teacher(spec: str, config: RelabelConfig, ui: Ui) -> LanguageModel:
    """Fetch, convert and load a teacher.

    Args:
        spec: an LLM SPEC.
        config: how many tokens of a passage it reads, and how many it packs together.
        ui: where the progress goes.

    Raises:
        ConfigError: the SPEC is of no known form.
        TeacherError: it cannot be fetched or loaded.
    """
    return _backend(spec).load(spec, teacher_identity(spec), config, ui)


def check_scores(teacher: LanguageModel) -> None:
    """Refuse a teacher that cannot give query likelihoods.

    Raises:
        TeacherError: it cannot.
    """
    if not teacher.can_score:
        raise TeacherError(
            f"{teacher.name} cannot return the log-probabilities of a given text, and judging needs them; "
            "take another teacher with --llm, or judge by relevance alone with --set select.fusion=rc"
        )
