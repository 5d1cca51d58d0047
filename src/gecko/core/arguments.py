"""What callers give, brought into one form at the library's doors, or refused with what to give instead."""

import operator
import os
from collections.abc import Collection, KeysView, Mapping, Set
from pathlib import Path
from typing import Any, get_args

from gecko.core.errors import ConfigError
from gecko.core.formats import InputFormat
from gecko.core.records import Passage, Text
from gecko.core.text import HALF, half_of_pair


def in_order(values: Any, what: str) -> list[Any]:
    """The elements of any sequence or iterator as a list, by position and never by label.

    Args:
        values: a list, tuple, generator, numpy or Arrow array, column of a table, …
        what: the name of one element.

    Raises:
        ConfigError: it is one string, a set or a mapping, a whole table, or nothing that can be iterated.
    """
    kind = type(values).__name__
    if isinstance(values, str):
        raise ConfigError(f"{what}: one string is given ({values!r:.80}) where a list is needed; give [{what}]")
    if isinstance(values, bytes | bytearray | memoryview):
        raise ConfigError(f"{what}: bytes are no text; decode them, and give a list of strings")
    if isinstance(values, Mapping) or (isinstance(values, Set) and not isinstance(values, KeysView)):
        raise ConfigError(f"{what}: a {kind} has no places that the vectors could follow; give a list")
    shape = getattr(values, "shape", None)
    if isinstance(shape, tuple) and len(shape) != 1:
        raise ConfigError(f"{what}: a {kind} of {len(shape)} dimensions; give one column of it, or a list")
    try:
        elements = iter(values.to_pylist() if hasattr(values, "to_pylist") else values)
    except TypeError:
        raise ConfigError(f"{what}: a {kind} is no sequence ({values!r:.80}); give a list") from None
    return list(elements)


def strings(values: object, what: str = "text") -> list[str]:
    """:func:`in_order` of strings.

    Raises ConfigError: as there; or an element is no string, or cannot be written in UTF-8; the first is named, from 1.
    """
    found = in_order(values, what)
    for place, text in enumerate(found, 1):
        if not isinstance(text, str):
            raise ConfigError(f"{what} {place} is a {type(text).__name__}, not a string: {text!r:.80}")
        if half_of_pair(text):
            raise ConfigError(f"{what} {place} holds {HALF}")
    return found


def strings_for(values: object, count: int, what: str, of: str) -> list[str]:
    """``count`` strings: one for all, or one for each of what ``of`` names.

    Raises ConfigError: as :func:`strings`; or there are more or fewer of them.
    """
    if isinstance(values, str):
        return strings([values], what) * count
    found = strings(values, what)
    if len(found) != count:
        raise ConfigError(f"{count} {of} but {len(found)} {what}s; give one {what} for all, or one for each")
    return found


def passages_of(values: object) -> list[Passage | Text]:
    """:func:`in_order` of passages.

    Raises ConfigError: as there; or an element is something else, or its text or title is no valid string.
    """
    found = in_order(values, "passage")
    for place, item in enumerate(found, 1):
        if not isinstance(item, Passage | Text):
            raise ConfigError(f"passage {place} is a {type(item).__name__}; give gecko.Passage(id, title, text)")
    strings([item.text for item in found], "text of passage")
    strings([item.title for item in found], "title of passage")
    return found


def one_of(what: str, value: object, accepted: Collection[str]) -> Any:
    """The value, if it is an accepted one. Raises ConfigError: it is another."""
    if not isinstance(value, str) or value not in accepted:
        shown = value if isinstance(value, str) and value else repr(value)
        raise ConfigError(f"{what} {shown}: give one of {', '.join(accepted)}")
    return value


def form_of(value: object) -> InputFormat:
    """A text form, refused if it is none."""
    form: InputFormat = one_of("form", value, get_args(InputFormat))
    return form


def whole(what: str, value: object) -> int:
    """The value as an int, if it is a whole number of any type. Raises ConfigError: it is something else."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ConfigError(f"{what} = {value!r}: give a whole number")
    return operator.index(value)


def dim_of(value: object, full: int, spec: str) -> int:
    """How many dimensions of a model to keep; none: all that it has, ``full``.

    Raises ConfigError: it is no whole number from 1 to ``full``.
    """
    dim = full if value is None else whole("dim", value)
    if not 1 <= dim <= full:
        raise ConfigError(f"dim = {dim}: model {spec!r} has {full} dimensions; give 1 to {full}")
    return dim


def spec_of(value: "str | os.PathLike[str]", what: str = "model") -> str:
    """A SPEC or a path as text. Raises ConfigError: it is neither a string nor a path."""
    text: object = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise ConfigError(f"{what} {value!r} is a {type(value).__name__}; give a string or a path")
    return text


def folder_of(value: "str | os.PathLike[str]") -> Path:
    """A path, given as text or as a path. Raises ConfigError: it is neither."""
    return Path(spec_of(value, "folder"))
