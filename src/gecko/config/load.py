"""The settings of a run: one pydantic tree, one TOML file, two presets.

Unknown keys are errors that name the key and its nearest neighbour. The presets differ in selection, loss and mining:
``default`` is what was measured to work best at small scale, ``paper`` follows the Gecko paper to the letter.
``docs/explanation/the-paper.md`` maps each field to the place in the paper that it comes from.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from gecko.config.gone import ERROR
from gecko.config.run import AMOUNT, DEFAULT_BUDGET, FORMER, GIVE_WAY, PRESETS, RunConfig
from gecko.core.errors import ConfigError


def load_config(
    path: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
    budget: str = DEFAULT_BUDGET,
) -> RunConfig:
    """A run's settings: preset, then recipe file, then ``base`` values, then ``key=value`` overrides.

    Args:
        path: a TOML recipe; it may name a ``preset``.
        overrides: ``section.key=value`` strings; a value is read as TOML, and as a plain string where that fails.
        base: values from the command line's own options.
        budget: where neither a budget nor a number of queries is given.

    Raises:
        ConfigError: an unknown key, a bad value or an unreadable file; the message names it.
    """
    recipe, base = _read_recipe(Path(path)) if path else {}, base or {}
    preset = override(base, overrides).get("preset", recipe.get("preset", "default"))
    named: dict[str, Any] = {}
    for layer in (recipe, base):
        _merge(named, layer)
    named = override(named, overrides)
    values = deepcopy(_preset(preset))
    _merge(values, named)
    _give_way(values, named)
    if "budget" not in values and "queries" not in values.get("generate", {}):
        values["budget"] = budget
    config = make_config(values, str(path) if path else "the settings")
    config._named = frozenset(_flatten(named))
    return config


def with_former_defaults(config: RunConfig, saved: RunConfig, *, amount: bool = True) -> RunConfig:
    """``config`` with the former defaults and the amount of work of the folder's ``saved`` one, where nobody names others.

    Without ``amount`` it has its own amount of work.
    """
    if config._named is None or config.preset != saved.preset:
        return config
    had = _flatten(saved.model_dump())
    kept = [
        f"{key}={'null' if value is None else repr(value)}"
        for key, value in FORMER.items()
        if had[key] == value and key not in config._named
    ]
    if amount and not config._named & AMOUNT:
        kept += [f"{key}={'null' if had[key] is None else repr(had[key])}" for key in sorted(AMOUNT)]
    return make_config(override(config.model_dump(), kept), "the folder's settings")


def change_config(config: RunConfig, path: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings of a run with those of a TOML recipe and ``section.key=value`` texts put over them.

    A preset that is named takes the place of the run's. Raises ConfigError: as for :func:`load_config`.
    """
    recipe = _read_recipe(Path(path)) if path else {}
    values = config.model_dump()
    if preset := override({}, overrides).get("preset", recipe.get("preset")):
        _unset(values, PRESETS[config.preset])
        _merge(values, _preset(preset))
    _merge(values, recipe)
    values = override(values, overrides)
    _give_way(values, override(recipe, overrides))
    return make_config(values, str(path) if path else "--set")


def _give_way(values: dict[str, Any], named: Mapping[str, Any]) -> None:
    """Give up what a preset has where a setting is named that asks for something else."""
    flat = _flatten(named)
    given = {key for key, value in flat.items() if value is not None}
    for key, others in GIVE_WAY.items():
        section, name = key.split(".")
        held = values.get(section)
        if others & given and key not in flat and isinstance(held, dict):
            held.pop(name, None)


def _unset(values: dict[str, Any], preset: Mapping[str, Any]) -> None:
    """Take out what is as a preset has it, so that it becomes the fields' default."""
    for key, value in preset.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _unset(values[key], value)
        elif values.get(key) == value:
            del values[key]


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"recipe {path}: {error.strerror}; give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path}: not valid TOML: {error}") from error


def _preset(name: Any) -> dict[str, Any]:
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"preset {name!r} does not exist; choose one of: {', '.join(PRESETS)}")
    return PRESETS[name]


def override(values: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """``values`` with ``section.key=value`` texts applied. Raises ConfigError: a text is not of that form."""
    changed = deepcopy(dict(values))
    for text in texts:
        (*path, last), value = _parse_override(text)
        place: dict[str, Any] = changed
        section: type[BaseModel] | None = RunConfig
        for key in path:
            section = _section(section, key)
            if not isinstance(place.get(key), dict):
                place[key] = {}
            place = place[key]
        _merge(place, {last: value}, section)
    return changed


def make_config(values: Mapping[str, Any], place: str) -> RunConfig:
    """Validate ``values``; errors name ``place`` and the key. Raises ConfigError: as for :func:`load_config`."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(entry, place) for entry in error.errors())) from error


def _explain(entry: Any, place: str) -> str:
    key = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == ERROR:
        gone = entry["ctx"]
        return f"{place}: {key}{'.' if key else ''}{gone['key']} = {gone['value']!r}: {entry['msg']}"
    if entry["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, sorted({*known_keys(), *RunConfig.model_fields}), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; known sections: {', '.join(RunConfig.model_fields)}"
        return f"{place}: unknown key {key}{hint}"
    what = entry["msg"].removeprefix("Value error, ")
    return f"{place}: {key} = {entry['input']!r}: {what}" if key else f"{place}: {what}"


def known_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every key that a recipe may hold, dotted."""
    keys = []
    for name in section.model_fields:
        inner = _section(section, name)
        keys += known_keys(inner, f"{prefix}{name}.") if inner else [prefix + name]
    return keys


def changed_keys(old: RunConfig, new: RunConfig) -> list[str]:
    """``key: old -> new`` for each setting in which two configurations differ."""
    before, after = _flatten(old.model_dump()), _flatten(new.model_dump())
    keys = dict.fromkeys([*before, *after])
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys if before.get(key) != after.get(key)]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _merge(into: dict[str, Any], values: Mapping[str, Any], section: type[BaseModel] | None = RunConfig) -> None:
    """Put ``values`` over those of a section: sections key by key, while a setting that is a table is replaced whole."""
    for key, value in values.items():
        inner = _section(section, key)
        if inner is not None and isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value, inner)
        else:
            into[key] = deepcopy(value)


def _section(section: type[BaseModel] | None, key: str) -> type[BaseModel] | None:
    """The class of the section ``key`` of a section; none where that is a setting, or unknown."""
    field = section.model_fields.get(key) if section else None
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _parse_override(text: str) -> tuple[list[str], Any]:
    key, equals, raw = text.partition("=")
    if not equals or not re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)*", key.strip()):
        raise ConfigError(f"--set {text!r}: write it as section.key=value, for example mine.n=10")
    keys = key.strip().split(".")
    if raw.strip() == "null":  # TOML has none of it
        return keys, None
    try:
        return keys, tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return keys, raw
