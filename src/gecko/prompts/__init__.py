"""Prompts as data: TOML files, read here, known by the hash of their content.

A prompt has two slots, ``{passage}`` and then ``{query}`` (a generation prompt has only the first, or ``{variables}`` as
the second), so everything up to the end of the passage is a prefix that all queries of a passage share. What goes into a
slot is data: a backend never parses control tokens out of it.
"""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from gecko.core.errors import ConfigError
from gecko.core.files import digest

NAMES = tuple(sorted(file.name[:-5] for file in files("gecko.prompts").iterdir() if file.name.endswith(".toml")))
QUERY, VARIABLES, VALUE = "{query}", "{variables}", "{value}"
KINDS, KIND_SLOT = "kinds", "{kind}"
KIND = "kind"  # the variable by which a prompt of several kinds is drawn

_FIELD = re.compile(r"^(\w+):", re.MULTILINE)
_FIELD_LINE = re.compile(r"^[ \t]*(\w+)[ \t]*:", re.MULTILINE)


@dataclass(frozen=True)
class Variable:
    """A way in which the queries that a prompt asks for differ.

    Attributes:
        name: of the table in the prompt's file.
        text: what the prompt says of it, with ``{value}``.
        phrases: how values are worded; one that is not there stands for itself.
        weights: how often each value is drawn, of 1, in the order of the values' names; none yet: not at all.
    """

    name: str
    text: str
    phrases: dict[str, str]
    weights: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Prompt:
    """One prompt, ready for a backend.

    Attributes:
        name: what it is for, in words.
        form: ``completion``: ``text`` is continued as it is; ``chat``: ``messages`` go through the model's chat
            template.
        text: the whole text of a completion prompt, slots included.
        messages: (role, content) of a chat prompt, slots included.
        labels: answers to tell apart; without ``values`` the relevant one is first.
        stop: where a generated text ends.
        examples: the few-shot examples that it shows, for the check that none is copied.
        hash: of the file's content.
        values: the relevance that each label stands for, on any scale; none: 1 for the first label, 0 for the others.
        neutral: a query that says nothing, such as ``N/A``: what a label's log-probability is with it for a passage is taken
            off what it is with a real query (contextual calibration, Zhao et al. 2021); none: nothing is.
        variables: what a generation prompt can ask of a query, in the order in which it says so.
        languages: of the passages, where one's own is to be named.
        kinds: of a generation prompt of several kinds, that of each kind by name; its own text is that of the first.
    """

    name: str
    form: Literal["completion", "chat"]
    text: str
    messages: tuple[tuple[str, str], ...]
    labels: tuple[str, ...]
    stop: tuple[str, ...]
    examples: tuple[dict[str, str], ...]
    hash: str
    values: tuple[float, ...] = ()
    neutral: str = ""
    variables: tuple[Variable, ...] = ()
    languages: tuple[str, ...] = ()
    kinds: tuple[tuple[str, "Prompt"], ...] = ()

    def of(self, drawn: Mapping[str, str]) -> "Prompt":
        """The prompt of the kind that is drawn; one that has no kinds is that of all."""
        return dict(self.kinds)[drawn[KIND]] if self.kinds else self

    @property
    def varies(self) -> bool:
        """Whether anything is drawn for each query."""
        return any(one.weights for one in self.variables)

    @property
    def has_query(self) -> bool:
        """Whether there is a slot for a query."""
        return any(QUERY in part for part in self._parts)

    @property
    def slot(self) -> str:
        """The slot after the passage: of the query, or of what is asked of one."""
        return VARIABLES if self.variables else QUERY

    @property
    def around_query(self) -> tuple[str, str]:
        """The fixed text right before and after the query, within its message and after the passage's slot."""
        part = next(part for part in self._parts if "{query}" in part)
        before, _, after = part.partition("{query}")
        return before.rpartition("{passage}")[2], after

    @cached_property
    def fields(self) -> frozenset[str]:
        """Words that begin a line of the prompt before a colon, such as ``Passage`` and ``Query``, in lower case."""
        shown = "".join(f"\n{value}" for example in self.examples for value in example.values())
        text = "\n".join(self._parts)
        return frozenset(map(str.lower, _FIELD.findall(text))) - frozenset(map(str.lower, _FIELD.findall(shown)))

    @property
    def _parts(self) -> tuple[str, ...]:
        return (self.text, *(content for _, content in self.messages))


def load_prompt(name: str) -> Prompt:
    """Read a shipped prompt by name, or a file by path (one that ends in ``.toml``).

    Raises:
        ConfigError: there is no such prompt, or it lacks what its form needs.
    """
    return make_prompt(name, read_files(name))


def read_files(name: str) -> list[bytes]:
    """What a prompt's file holds, and behind it that of the prompt whose examples it shows, and so on.

    Raises:
        ConfigError: there is no such prompt, or it is no TOML.
    """
    found: dict[str, bytes] = {}
    while name:
        if name in found:
            raise ConfigError(f"prompt {name}: its examples are its own (examples_of); write them out")
        found[name] = _read(name)
        other: str = _parse(name, found[name]).get("examples_of") or ""
        # A file's path is relative to the file that names it.
        is_beside = name.endswith(".toml") and other.endswith(".toml")
        name = str(Path(name).parent / other) if is_beside else other
    return list(found.values())


def make_prompt(name: str, contents: Sequence[bytes]) -> Prompt:
    """A prompt from the content of its files, as :func:`read_files` gives them.

    Args:
        name: what errors call it.
        contents: its own file's first.

    Raises:
        ConfigError: it lacks what its form needs.
    """
    raw, *rest = contents
    values = _parse(name, raw)
    if KINDS in values:
        return _of_kinds(name, values, digest(raw))
    if not rest:
        return _build(name, values, digest(raw))
    shared = make_prompt(values["examples_of"], rest)
    values["examples"] = [dict(example) for example in shared.examples]
    return _build(name, values, digest(raw, shared.hash))


def _read(name: str) -> bytes:
    if name in NAMES:
        return files("gecko.prompts").joinpath(f"{name}.toml").read_bytes()
    if not name.endswith(".toml"):
        raise ConfigError(f"prompt {name!r} is neither a .toml file nor one of: {', '.join(NAMES)}")
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"prompt {name}: {error.strerror}; give the path of a TOML file") from error


def _parse(name: str, raw: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompt {name}: not valid TOML: {error}") from error


def _of_kinds(name: str, values: dict[str, Any], content_hash: str) -> Prompt:
    """A prompt of several kinds: ``[kinds.NAME]`` has examples, a weight (1) and a text for the slot ``{kind}``."""
    tables = values.pop(KINDS)
    if not isinstance(tables, dict) or not tables or {"examples", "examples_of", "shots"} & values.keys():
        raise ConfigError(f"prompt {name}: write a table [kinds.NAME] for each kind, and its examples in it alone")
    if KIND in values.get("variables", {}):
        raise ConfigError(f"prompt {name}: variables.{KIND} is what [kinds] draws; give the variable another name")
    kinds, weights = [], {}
    for kind, table in tables.items():
        known = isinstance(table, dict) and table.keys() <= {"examples", "weight", "text"}
        text, weight = (table.get("text", ""), table.get("weight", 1)) if known else ("", -1)
        is_number = isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0
        if not (is_number and isinstance(text, str) and table.get("examples")):
            raise ConfigError(
                f"prompt {name}: kinds.{kind} must have examples, and may have a weight from 0 on and a text; "
                f"its keys are {', '.join(table) if isinstance(table, dict) else repr(table)}"
            )
        own = {"name": f"{values.get('name', name)}: {kind}", "examples": table["examples"]}
        own["template"] = values.get("template", "").replace(KIND_SLOT, text)
        own["messages"] = [
            {key: part.replace(KIND_SLOT, text) for key, part in entry.items()} for entry in values.get("messages", [])
        ]
        kinds.append((kind, _build(name, {**values, **own}, digest(content_hash, kind))))
        weights[kind] = float(weight)
    if not any(weights.values()):
        raise ConfigError(f"prompt {name}: no kind has a weight above 0; give one, or leave the weights out")
    first = kinds[0][1]
    drawn = Variable(KIND, "", {kind: kind for kind in weights}, shares(weights))
    return replace(
        first,
        name=values.get("name", name),
        hash=content_hash,
        variables=(drawn, *first.variables),
        kinds=tuple(kinds),
    )


def shares(weights: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Weights as shares of 1, by name, without those that are 0."""
    total = sum(weights.values())
    return tuple((name, weight / total) for name, weight in sorted(weights.items()) if weight)


def shielded(prompt: Prompt, text: str) -> str:
    """A passage or query in which no line can be taken for the prompt's own: ``Query: …`` becomes ``> Query: …``.

    Backends keep control tokens out of data; a prompt's plain words look the same wherever they stand.
    """
    return _FIELD_LINE.sub(lambda found: f"> {found[0]}" if found[1].lower() in prompt.fields else found[0], text)


def fill(prompt: Prompt, passage: str, second: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Text and messages of a prompt with its slots filled; a slot's name inside a passage stays as it is."""

    def put(template: str) -> str:
        before, slot, after = template.partition("{passage}")
        if not slot:
            return template.replace(prompt.slot, second)
        return before + passage + after.replace(prompt.slot, second)

    return put(prompt.text), tuple((role, put(content)) for role, content in prompt.messages)


def _build(name: str, values: dict[str, Any], content_hash: str) -> Prompt:
    form = values.get("form")
    examples = values.get("examples", [])
    if "shots" in values:
        if wrong := [place for place in values["shots"] if place not in range(len(examples))]:
            raise ConfigError(f"prompt {name}: shots names example {wrong[0]!r}; there are 0 to {len(examples) - 1}")
        examples = [examples[place] for place in values["shots"]]
    text = ""
    messages: tuple[tuple[str, str], ...] = ()
    shown = "".join(_fill(values.get("example", "").lstrip("\n"), example) for example in examples)
    if form == "completion":
        text = values.get("template", "").lstrip("\n").replace("{examples}", shown)
        whole = text
    elif form == "chat":
        entries = values.get("messages", [])
        if any(not {"role", "content"} <= entry.keys() for entry in entries):
            raise ConfigError(f"prompt {name}: each of the messages must have role and content")
        messages = tuple(
            (entry["role"], entry["content"].lstrip("\n").replace("{examples}", shown)) for entry in entries
        )
        whole = "".join(content for _, content in messages)
    else:
        raise ConfigError(f"prompt {name}: form = {form!r}; write completion or chat")
    if whole.count("{passage}") != 1 or whole.count("{query}") > 1 or "{passage}" in whole.partition("{query}")[2]:
        raise ConfigError(f"prompt {name}: it must hold {{passage}} once, and after it {{query}} at most once")
    variables = _variables(name, values.get("variables", {}), whole)
    labels, grades = values.get("labels", []), values.get("values", [])
    if not all(isinstance(label, str) and label for label in labels):
        raise ConfigError(f"prompt {name}: labels = {labels!r}; each must be a word in quotation marks")
    if grades and not (
        len(grades) == len(labels)
        and all(isinstance(grade, int | float) and math.isfinite(grade) for grade in grades)
        and min(grades) < max(grades)
    ):
        raise ConfigError(
            f"prompt {name}: values = {grades!r} for labels = {labels!r}; give one number a label, not all the same"
        )
    neutral = values.get("neutral", "")
    if not isinstance(neutral, str) or (neutral and not labels):
        raise ConfigError(f"prompt {name}: neutral = {neutral!r}; write a query in quotation marks, and labels")
    return Prompt(
        name=values.get("name", name),
        form=form,
        text=text,
        messages=messages,
        labels=tuple(labels),
        stop=tuple(values.get("stop", ())),
        examples=tuple(examples),
        hash=content_hash,
        values=tuple(map(float, grades)),
        neutral=neutral,
        variables=variables,
    )


def _variables(name: str, tables: Any, whole: str) -> tuple[Variable, ...]:
    """The ``[variables]`` of a prompt's file, held against its text."""
    _, slot, after = whole.partition(VARIABLES)
    if not isinstance(tables, dict):
        raise ConfigError(f"prompt {name}: variables = {tables!r}; write a table [variables.NAME] for each")
    if bool(slot) != bool(tables) or "{passage}" in after or VARIABLES in after or (slot and QUERY in whole):
        raise ConfigError(
            f"prompt {name}: a prompt with [variables] must hold {VARIABLES} once, after {{passage}}, and no {QUERY}; "
            "one without must hold none"
        )
    found = []
    for key, table in tables.items():
        known = isinstance(table, dict) and table.keys() <= {"text", "values"}
        text, phrases = (table.get("text"), table.get("values", {})) if known else (None, {})
        wordings = isinstance(phrases, dict) and all(isinstance(one, str) for one in phrases.values())
        if not (isinstance(text, str) and text.count(VALUE) == 1 and wordings):
            raise ConfigError(
                f'prompt {name}: variables.{key} must have text = "… {VALUE} …", and may have values of name = "wording"'
            )
        found.append(Variable(key, text, dict(phrases)))
    return tuple(found)


def _fill(template: str, values: dict[str, str]) -> str:
    for key, value in values.items():
        template = template.replace("{" + key + "}", value)
    return template
