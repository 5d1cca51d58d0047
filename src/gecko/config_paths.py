"""The settings that name files and folders, made absolute: a run means the same from whatever folder it is called.

Identities of sources are of their content, so a path is not part of what a stage depends on, but for a few settings whose
text is hashed (the names of logs and of released rows). Where a saved setting names the same file in another way, the
saved one is kept, so that no fingerprint changes.
"""

import os
from collections.abc import Mapping
from typing import Any

from gecko.config import RunConfig, make_config

_FILES = ("corpus.sources", "asked.sources", "select.released", "evaluate.sets", "pretrain.sources")
_MODELS = ("llm", "rate.llm", "relabel.teachers", "backbone", "student", "mine.model")
_PROMPTS = ("prompts.generate", "prompts.query_likelihood", "prompts.relevance", "prompts.rate")
_SETS = "mixture.sets"
_NO_FILES = frozenset(
    {"stdlib", "stdlib-questions", "fret-stdlib", "minilm", "smollm2", "default", "default-small", "fake", "teacher"}
)


def absolute_paths(config: RunConfig, saved: RunConfig | None = None) -> RunConfig:
    """The settings with absolute paths of files and folders that exist, and of prompts.

    Args:
        config: as they are given; relative paths are relative to the working folder.
        saved: those of a run; where one names the same files, it is kept as it is written there.
    """
    values, before = config.model_dump(), {} if saved is None else saved.model_dump()
    for key in (*_FILES, *_MODELS, *_PROMPTS, _SETS):
        *sections, name = key.split(".")
        section, old = values, before
        for part in sections:
            section, old = section[part], old.get(part, {})
        found = _absolute(key, section[name])
        section[name] = old[name] if name in old and _absolute(key, old[name]) == found else found
    return make_config(values, "the settings")


def _absolute(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute(key, entry) for entry in value]
    if isinstance(value, Mapping):  # a set of the mixture
        return {name: _absolute(key, one) if name in ("source", "passages") else one for name, one in value.items()}
    if not isinstance(value, str) or value in _NO_FILES:
        return value
    if key in _PROMPTS:
        return _path(value) if value.endswith(".toml") else value
    kind, colon, rest = value.partition(":")
    if key in _MODELS and colon and kind in ("hf", "gguf", "vllm"):
        return f"{kind}:{_path(rest)}" if os.path.exists(rest) else value  # noqa: PTH110 - any text
    return _path(value) if _names_files(value) else value


def _path(text: str) -> str:
    return os.path.abspath(os.path.expanduser(text))  # noqa: PTH100, PTH111 - links and trailing marks stay as they are


def _names_files(text: str) -> bool:
    """Whether the text is the path of something that is there, DIR@SPLIT, or a pattern."""
    if not text.strip() or "://" in text:
        return False
    path = os.path.expanduser(text)  # noqa: PTH111
    folder, at, _ = path.rpartition("@")
    return os.path.exists(path) or bool(at and os.path.exists(folder)) or any(mark in text for mark in "*?[")  # noqa: PTH110
