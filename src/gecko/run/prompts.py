"""The copies of its prompts that a run keeps: ``RUN/prompts/ROLE.json``, for prompts that are files.

A stage that is called later, or from another folder, asks the teacher what the run has asked it before, whatever has become
of the file. A copy holds the prompt's file and, where its examples are those of another file, that one, too. It is the copy
of the file that it names, and of no other.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from gecko.config.run import RunConfig
from gecko.config.stages import PromptsConfig
from gecko.core.files import read_json, write_json
from gecko.prompts import read_files

FOLDER = "prompts"
ROLES = tuple(PromptsConfig.model_fields)


def read_prompts(
    path: Path, config: RunConfig, saved: RunConfig, moved: RunConfig, same: bool, say: Callable[[str], None]
) -> tuple[dict[str, list[bytes]], list[str]]:
    """The prompts that are read from their files, by role, and in words which read otherwise than the run's copies.

    Args:
        path: the run's folder.
        config: the settings to come.
        saved: those of the folder.
        moved: those with the paths of files that have been moved since as ``config`` has them.
        same: a prompt that is named as before is the one that the run keeps.
        say: where a sentence for the user goes.

    Raises:
        ConfigError: a prompt that the run has no copy of cannot be read.
        RunError: a copy is damaged.
    """
    found, changes = {}, []
    for role in ROLES:
        name = getattr(config.prompts, role)
        if not name.endswith(".toml"):
            continue
        is_named = name == getattr(moved.prompts, role)
        kept = kept_files(path, role, getattr(saved.prompts, role)) if is_named else []
        if kept and (same or not Path(name).exists()):
            found[role] = kept
            if not same:
                say(f"prompts.{role}: {name} is gone, and the run's copy of it is used")
            continue
        found[role] = read_files(name)
        if kept and kept != found[role]:
            changes.append(f"prompts.{role}: {name} reads otherwise than the run's copy, {_place(path, role)}")
    return found, changes


def keep_prompts(path: Path, config: RunConfig, files: Mapping[str, list[bytes]]) -> None:
    """Write the copies of a run's prompts, by role, whole or not at all."""
    for role, contents in files.items():
        texts = [content.decode("utf-8") for content in contents]
        write_json(_place(path, role), {"name": getattr(config.prompts, role), "files": texts})


def _place(path: Path, role: str) -> Path:
    return path / FOLDER / f"{role}.json"


def kept_files(path: Path, role: str, name: str) -> list[bytes]:
    """What the run's copy for a role holds, if it is of the file of this name."""
    place = _place(path, role)
    if not name.endswith(".toml") or not place.exists():
        return []
    kept = read_json(place)
    return [text.encode("utf-8") for text in kept["files"]] if kept["name"] == name else []
