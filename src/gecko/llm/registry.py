"""From an LLM SPEC to a teacher: one row a backend.

A backend is a module with ``identity`` and ``load`` (:class:`gecko.llm.base.Backend`), which is imported when one of its
SPECs is named.
"""

from importlib import import_module
from typing import cast

from gecko.config import RelabelConfig
from gecko.errors import ConfigError, TeacherError
from gecko.llm.base import Backend, LanguageModel
from gecko.progress import Ui

# What a SPEC begins with: how it is written, with a colon where a name follows; and the module.
BACKENDS = {
    "default": ("default", "gecko.llm.local"),
    "default-small": ("default-small", "gecko.llm.local"),
    "smollm2": ("smollm2", "gecko.llm.local"),
    "hf": ("hf:NAME", "gecko.llm.local"),
    "gguf": ("gguf:PATH", "gecko.llm.local"),
    "openai": ("openai:URL#MODEL", "gecko.llm.openai"),
    "fake": ("fake", "gecko.llm.fake"),
}
RETIRED = {"vllm": ("vllm:NAME", "gecko.llm.vllm")}  # runs that were made with it are still read


def backend(spec: str) -> Backend:
    """The module that makes a teacher.

    Raises:
        ConfigError: the SPEC is of no known form.
    """
    kind, colon, name = spec.partition(":")
    form, module = (BACKENDS | RETIRED).get(kind, ("", ""))
    if not module or (":" in form) != bool(colon and name):
        forms = [form for form, _ in BACKENDS.values()]
        raise ConfigError(f"--llm {spec!r} is of no known form; use {', '.join(forms[:-1])} or {forms[-1]}")
    return cast("Backend", import_module(module))


def teacher_identity(spec: str) -> str:
    """What a teacher's answers depend on, as a hash, without loading it.

    Raises:
        ConfigError: the SPEC is of no known form, or its file does not exist.
    """
    return backend(spec).identity(spec)


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
    return backend(spec).load(spec, teacher_identity(spec), config, ui)


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
