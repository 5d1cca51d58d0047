"""The copies of its prompts that a run keeps: ``RUN/prompts/ROLE.toml``, for prompts that are files.

A stage that is called later, or from another folder, asks the teacher what the run has asked it before, whatever has become
of the file. A prompt whose examples are those of another file has that one beside it, as ``ROLE.examples.toml``.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from gecko.config import PromptsConfig, RunConfig
from gecko.errors import ConfigError
from gecko.prompts import Prompt, load_prompt, make_prompt, read_files
from gecko.store import Run, write_bytes

FOLDER = "prompts"
ROLES = tuple(PromptsConfig.model_fields)


def run_prompt(run: Run, role: str) -> Prompt:
    """The prompt of a run for ``role``, a key of ``prompts``: the run's copy, or what the settings name.

    Raises:
        ConfigError: there is no such prompt, or it lacks what its form needs.
    """
    name = getattr(run.config.prompts, role)
    kept = [] if role in run.read_anew else _kept(run.path, role)
    return make_prompt(name, kept) if name.endswith(".toml") and kept else load_prompt(name)


def changed_prompts(path: Path, config: RunConfig, saved: RunConfig, same: bool) -> tuple[set[str], list[str]]:
    """Which prompts are to be read from their files, and in words which of those read otherwise than the run's copies.

    Args:
        path: the run's folder.
        config: the settings to come.
        saved: those of the folder.
        same: a prompt that is named as before is the one that the run keeps.
    """
    roles, changes = set(), []
    for role in ROLES:
        name, before = getattr(config.prompts, role), getattr(saved.prompts, role)
        if not name.endswith(".toml") or (same and name == before):
            continue
        roles.add(role)
        kept = _kept(path, role)
        if name == before and kept and kept != read_files(name):
            changes.append(f"prompts.{role}: {name} reads otherwise than the run's copy, {path / FOLDER / role}.toml")
    return roles, changes


def keep_prompts(path: Path, config: RunConfig, roles: Collection[str]) -> None:
    """Copy the prompts of these roles that are files into a run's folder.

    A file that cannot be read is left to the stage that needs it.
    """
    for role in roles:
        name = getattr(config.prompts, role)
        if not name.endswith(".toml"):
            continue
        try:
            files = read_files(name)
        except ConfigError:
            continue
        for place, content in zip(_places(path, role), files, strict=False):
            write_bytes(place, content)


def _places(path: Path, role: str) -> Iterator[Path]:
    place = path / FOLDER / f"{role}.toml"
    while True:
        yield place
        place = place.with_name(f"{place.name.removesuffix('.toml')}.examples.toml")


def _kept(path: Path, role: str) -> list[bytes]:
    found = []
    for place in _places(path, role):
        if not place.is_file():
            break
        found.append(place.read_bytes())
    return found
