"""The settings of a run folder: those that are saved there, those that are asked for, and what may change between them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gecko.compute.device import texts_together
from gecko.config.load import changed_keys, make_config, with_former_defaults
from gecko.config.paths import absolute_paths, moved_paths
from gecko.config.run import FREE, RunConfig
from gecko.core.errors import ConfigError, RunError
from gecko.core.files import read_json, write_json
from gecko.run.prompts import keep_prompts, read_prompts


@dataclass(frozen=True)
class Settled:
    """What a run goes on with.

    ``changed``: the folder's settings were replaced just now, by more than an amount. ``prompt_files``: the contents, by
    role, of the prompts whose files were read just now.
    """

    config: RunConfig
    changed: bool = False
    prompt_files: dict[str, list[bytes]] = field(default_factory=dict)


def settle(
    path: Path, config: RunConfig | None, *, force: bool, keep: bool, same_prompts: bool, say: Callable[[str], None]
) -> Settled:
    """The settings to go on with in a folder; see :class:`gecko.run.folder.Run` for the arguments.

    Raises RunError: something was paid for with other settings, and ``force`` is not given. ConfigError: the saved
    settings cannot be read.
    """
    file = path / "config.json"
    saved = _saved(file) if file.exists() else None
    if config is None:
        if saved is None:
            raise RunError(f"{file} is missing")
        return Settled(_with_batch(saved, saved))
    if saved is not None:
        asked = config
        config = with_former_defaults(config, saved, amount=_is_paid(path) and not force)
        if config.budget != asked.budget or config.generate.queries != asked.generate.queries:
            kept = f"budget of {config.budget}" if config.budget else f"generate.queries = {config.generate.queries}"
            say(f"the folder's {kept} is kept; name another to change it")
    config = _with_batch(absolute_paths(config, saved), saved)
    before = config if saved is None else moved_paths(saved, config)
    prompt_files, changes = read_prompts(path, config, saved or config, before, same_prompts and saved is not None, say)
    changes += [change for change in changed_keys(before, config) if change.partition(":")[0] not in FREE]
    changed = bool(changes) and saved is not None
    if changed and not force and _is_paid(path):
        listed = "\n  ".join(changes)
        raise RunError(
            f"{path} holds a run with other settings:\n  {listed}\n"
            "Use another folder, or --restart to go on here with the new ones: the stages they touch are done again, "
            f"and their old output is kept in {path / 'archive'}"
        )
    if keep or saved is None:
        write_json(file, config.model_dump())
        keep_prompts(path, config, prompt_files)
    return Settled(config, changed, prompt_files)


def _saved(file: Path) -> RunConfig:
    """The settings in the folder; keys that came later than they did have their defaults."""
    values = read_json(file)
    if not isinstance(values, dict):
        raise RunError(f"{file} is damaged (no table); it is kept as it is; move it away to have it made again")
    try:
        return make_config(values, str(file))
    except ConfigError as error:
        raise ConfigError(
            f"{error}\nThe run was made by another version of Gecko, whose settings this one cannot read: "
            "use that version, mend the file, or take another folder"
        ) from error


def _is_paid(path: Path) -> bool:
    """Whether a teacher has worked for this run; before that, other settings cost nothing."""
    return any(any((path / stage).glob("part-*.parquet")) for stage in ("generate", "relabel"))


def _with_batch(config: RunConfig, saved: RunConfig | None) -> RunConfig:
    """The settings with a batch of ``generate``: what it was when the run began, else what this machine is best given.

    It is settled once a run, since shards are counted by it: another machine goes on with the same.
    """
    batch = config.generate.batch or (saved and saved.generate.batch) or texts_together(config.llm)
    return config.model_copy(update={"generate": config.generate.model_copy(update={"batch": batch})})
