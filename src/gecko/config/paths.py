"""The settings that name files and folders, made absolute: a run means the same from whatever folder it is called.

Identities of sources are of their content, so a path is not part of what a stage depends on, but for a few settings whose
text is hashed (the names of logs and of released rows). Where a saved setting names the same file in another way, the
saved one is kept, so that no fingerprint changes.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gecko.config.load import make_config
from gecko.config.run import RunConfig

_FILES = ("corpus.sources", "asked.sources", "select.released", "evaluate.sets", "pretrain.sources")
_MODELS = ("llm", "relabel.teachers", "backbone", "student", "mine.model")
_PROMPTS = ("prompts.generate", "prompts.query_likelihood", "prompts.relevance")
_SETS = "mixture.sets"
_KEYS = (*_FILES, *_MODELS, *_PROMPTS, _SETS)
_NO_FILES = frozenset(
    {"stdlib", "stdlib-questions", "fret-stdlib", "stdlib-log", "minilm", "smollm2", "default", "default-small", "fake"}
)
_SQLITE = "sqlite:///"
_NAMED = ("hf", "gguf", "vllm")  # what stands before the name or the path of a model or a data set


def absolute_paths(config: RunConfig, saved: RunConfig | None = None) -> RunConfig:
    """The settings with absolute paths of files and folders that exist, and of prompts.

    Relative paths are relative to the working folder. Where a setting names the same files as in ``saved``, it is kept as
    it is written there.
    """

    def settle(key: str, given: Any, old: Any) -> Any:
        found = _absolute(key, given)
        return old if saved is not None and _absolute(key, old) == found else found

    return _changed(config, saved or config, settle)


def moved_paths(saved: RunConfig, config: RunConfig) -> RunConfig:
    """The saved settings with the paths of ``config`` in the place of those that are gone and end in the same name.

    What a file holds is part of what the stages depend on, so one that was moved is the same file.
    """
    return _changed(saved, config, lambda _, old, given: _moved(old, given))


def _changed(config: RunConfig, other: RunConfig, change: Callable[[str, Any, Any], Any]) -> RunConfig:
    """The settings with ``change`` of each that can name files: it gets the key, the value, and that of ``other``."""
    values, others = config.model_dump(), other.model_dump()
    for key in _KEYS:
        *sections, name = key.split(".")
        section, besides = values, others
        for part in sections:
            section, besides = section[part], besides[part]
        section[name] = change(key, section[name], besides[name])
    return make_config(values, "the settings")


def _moved(old: Any, given: Any) -> Any:
    if isinstance(old, list) and isinstance(given, list) and len(old) == len(given):
        return [_moved(*pair) for pair in zip(old, given, strict=True)]
    if isinstance(old, Mapping) and isinstance(given, Mapping):
        return {
            name: _moved(one, given.get(name)) if name in ("source", "passages") else one for name, one in old.items()
        }
    if not (isinstance(old, str) and isinstance(given, str)):
        return old
    before, after = (
        Path(text.partition(":")[2] if text.startswith(("hf:", "gguf:")) else text) for text in (old, given)
    )
    is_gone = before.is_absolute() and not _names_files(str(before))
    return given if is_gone and before.name == after.name and _names_files(str(after)) else old


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
    if colon and kind in _NAMED:
        return f"{kind}:{_path(rest)}" if os.path.exists(os.path.expanduser(rest)) else value  # noqa: PTH110, PTH111
    if value.startswith(_SQLITE):
        file, mark, rest = value.removeprefix(_SQLITE).partition("#")
        return f"{_SQLITE}{_path(file)}{mark}{rest}" if file and os.path.exists(file) else value  # noqa: PTH110
    return _path(value) if _names_files(value) else value


def _path(text: str) -> str:
    return os.path.abspath(os.path.expanduser(text))  # noqa: PTH100, PTH111 - links and trailing marks stay as they are


def _names_files(text: str) -> bool:
    """Whether the text is the path of something that is there, DIR@SPLIT, or a pattern."""
    if not text.strip() or "://" in text or text.startswith("sqlite:"):
        return False
    path = os.path.expanduser(text)  # noqa: PTH111
    folder, at, _ = path.rpartition("@")
    return os.path.exists(path) or bool(at and os.path.exists(folder)) or any(mark in text for mark in "*?[")  # noqa: PTH110
