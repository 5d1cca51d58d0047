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
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ValidationError,
)

from gecko.config.gone import ERROR
from gecko.config.run import DEFAULT_BUDGET, PRESETS, RunConfig
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
    recipe = _read_recipe(Path(path)) if path else {}
    given = override(base or {}, overrides)
    preset = given.get("preset", recipe.get("preset", "default"))
    values: dict[str, Any] = {}
    for layer in (_preset(preset), recipe, given):
        _merge(values, layer)
    if "budget" not in values and "queries" not in values.get("generate", {}):
        values["budget"] = budget
    return make_config(values, str(path) if path else "the settings")


def change_config(config: RunConfig, path: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings of a run with those of a recipe put over them; a preset that is named takes the place of the run's.

    Args:
        config: the run's settings.
        path: a TOML recipe.
        overrides: ``section.key=value`` strings, as for :func:`load_config`.

    Raises:
        ConfigError: as for :func:`load_config`.
    """
    recipe, given = _read_recipe(Path(path)) if path else {}, override({}, overrides)
    values = config.model_dump()
    layers = [recipe, given]
    if preset := given.get("preset", recipe.get("preset")):
        _unset(values, PRESETS[config.preset])
        layers.insert(0, _preset(preset))
    for layer in layers:
        _merge(values, layer)
    return make_config(values, str(path) if path else "--set")


def _unset(values: dict[str, Any], preset: Mapping[str, Any]) -> None:
    """Take out what is as a preset has it, so that it becomes the fields' default."""
    for key, value in preset.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _unset(values[key], value)
        elif values.get(key) == value:
            del values[key]


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        return _with_tables(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"recipe {path}: {error.strerror}; give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path}: not valid TOML: {error}") from error


def _preset(name: Any) -> dict[str, Any]:
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"preset {name!r} does not exist; choose one of: {', '.join(PRESETS)}")
    return PRESETS[name]


def override(values: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """``values`` with ``section.key=value`` texts applied.

    Raises:
        ConfigError: a text is not of that form.
    """
    changed: dict[str, Any] = _copy(values)
    for text in texts:
        _merge(changed, _parse_override(text))
    return changed


def make_config(values: Mapping[str, Any], place: str) -> RunConfig:
    """Validate ``values``; errors name ``place`` and the key.

    Raises:
        ConfigError: as for :func:`load_config`.
    """
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
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += known_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
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


class _Table(dict[str, Any]):
    """The value of one setting, as opposed to a section: it takes the place of the one before."""


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and not isinstance(value, _Table) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = _copy(value)


def _copy(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    copied = {key: _copy(item) for key, item in value.items()}
    return _Table(copied) if isinstance(value, _Table) else copied


def _with_tables(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a recipe, with its tables that are settings marked."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            whole = f"{prefix}{key}"
            found[key] = _with_tables(value, f"{whole}.") if _is_section(whole) else _Table(value)
        else:
            found[key] = value
    return found


def _is_section(key: str) -> bool:
    return any(known.startswith(f"{key}.") for known in known_keys())


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, raw = text.partition("=")
    if not equals or not re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)*", key.strip()):
        raise ConfigError(f"--set {text!r}: write it as section.key=value, for example mine.n=10")
    value: Any
    if raw.strip() == "null":  # TOML has none of it
        value = None
    else:
        try:
            value = tomllib.loads(f"value = {raw}")["value"]
        except tomllib.TOMLDecodeError:
            value = raw
    if isinstance(value, dict) and not _is_section(key.strip()):
        value = _Table(value)
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    return dict(value)
