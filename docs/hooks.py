"""The reference pages, made from the code when the site is built: commands, settings and the Python interface.

Nothing here loads torch. `mkdocs.yml` names this file under `hooks`; `tests/test_reference.py` holds it to be complete.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
SCALARS = {str: "text", int: "whole number", float: "number", bool: "true or false", NoneType: "unset"}
BLOCK = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Example|Examples):")
ENTRY = re.compile(r"(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): (.*)")


def on_files(files: Any, config: Any) -> Any:
    """Puts the three pages among the site's files."""
    from mkdocs.structure.files import File

    for path, make in PAGES.items():
        files.append(File.generated(config, path, content=make()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Shows a file of the repository that is no page by its path: on the site there is nothing to link to."""
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+((?:data|recipes)/[^)]+)\)", r"\1 (`\2`)", markdown)


def cli_page() -> str:
    """Every command with its arguments, options and help."""
    from typer.main import get_command

    from gecko.cli.main import app

    group: Any = get_command(app)
    commands: dict[str, Any] = group.commands
    parts = ["# Commands", _plain(group.help), "Every command prints its own help: `gecko COMMAND --help`."]
    links = (
        f"- [`gecko {name}`](#gecko-{name}): {_plain(each.help).splitlines()[0]}" for name, each in _shown(commands)
    )
    parts.append("\n".join(links))
    for name, command in _shown(commands):
        parts += [f"## `gecko {name}` {{#gecko-{name}}}", _plain(command.help), f"```\n{_usage(name, command)}\n```"]
        if rows := list(_options(command)):
            parts.append("\n".join(["| option | value | what it does |", "|---|---|---|", *rows]))
    parts.append("Read on: [all settings](settings.md).")
    return _joined(parts)


def settings_page() -> str:
    """Every key of a recipe, and the limits of a server."""
    from gecko.config.run import PRESETS, RunConfig
    from gecko.serving.config import ServeConfig

    parts = [
        "# Settings",
        "A recipe is a TOML file with these tables and keys: `gecko distill CORPUS -o RUN -c recipe.toml`.\n"
        "One key is set with `--set section.key=value`.\n"
        "`unset` is left out of a recipe, and written `null` behind `--set`.",
        'A value behind *paper* is what `preset = "paper"` sets instead: '
        "[where the paper is silent](../explanation/the-paper.md) says why.",
    ]
    presets = {name: dict(_flat(values)) for name, values in PRESETS.items()}
    for prefix, title, model in _sections(RunConfig):
        parts += [f"## {title}", _doc(model.__doc__), _table(prefix, model, presets)]
    parts += [
        "## A server",
        f"{_doc(ServeConfig.__doc__)}\nFor `gecko serve MODEL --set key=value`.",
        _table("", ServeConfig, {}),
        "Read on: [the Python interface](python-api.md).",
    ]
    return _joined(parts)


def api_page() -> str:
    """Every public name of the package with its signature and docstring."""
    import gecko

    names = [name for name in gecko.__all__ if name != "__version__"]
    parts = [
        "# Python interface",
        "`import gecko` gives these names; everything else may move.\n`gecko.__version__` is the version.",
        "\n".join(f"- [`gecko.{name}`](#gecko.{name})" for name in names),
    ]
    for name in names:
        parts += _public(name, getattr(gecko, name))
    parts.append("Read on: [use the model](../how-to/use-the-model.md).")
    return _joined(parts)


PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": cli_page,
    "reference/settings.md": settings_page,
    "reference/python-api.md": api_page,
}


# Commands


def _shown(commands: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, command) for name, command in commands.items() if not command.hidden]


def _usage(name: str, command: Any) -> str:
    arguments = [_metavar(each) for each in command.params if each.param_type_name == "argument"]
    return " ".join([f"gecko {name}", *arguments, "[OPTIONS]"])


def _metavar(argument: Any) -> str:
    text = (argument.metavar or argument.name.upper()) + ("..." if argument.nargs == -1 else "")
    return text if argument.required else f"[{text}]"


def _options(command: Any) -> Iterator[str]:
    """A row of the table for each argument and option that the help shows."""
    types = {name: each.annotation for name, each in inspect.signature(command.callback).parameters.items()}
    for each in command.params:
        if getattr(each, "hidden", False) or each.name == "help":
            continue
        if each.param_type_name == "argument":
            names, value = f"`{_metavar(each)}`", ""
        else:
            names = ", ".join(f"`{option}`" for option in (*each.opts, *each.secondary_opts))
            kind = type_text(types.get(each.name, str)).removesuffix(" or unset").removeprefix("list of ")
            value = "" if getattr(each, "is_flag", False) else kind
        default = getattr(each.default, "value", each.default)
        if not (default is None or default is False or callable(default)):
            value += f"; default `{default}`"
        notes = [_plain(getattr(each, "help", "") or "")]
        notes += ["Required."] if each.required and each.param_type_name == "option" else []
        notes += ["Can be repeated."] if getattr(each, "multiple", False) and "repeated" not in notes[0] else []
        yield _row(names, value, " ".join(notes))


# Settings


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, type[BaseModel]]]:
    """The section, and those below it: the prefix of the keys, the title, the class."""
    yield prefix, f"`[{prefix[:-1]}]`" if prefix else "A run", model
    for name, field in model.model_fields.items():
        below = _models(field.annotation)
        for each in below:
            if len(below) == 1:
                yield from _sections(each, f"{prefix}{name}.")
            else:
                kinds = " and ".join(f"`{kind}`" for kind in get_args(each.model_fields["kind"].annotation))
                yield f"{prefix}{name}.", f"`[[{prefix}{name}]]` of kind {kinds}", each


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a type is made of."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) for model in _models(each)]


def _table(prefix: str, model: type[BaseModel], presets: Mapping[str, Mapping[str, Any]]) -> str:
    rows = ["| key | type | default | what it is |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            continue  # a table of its own
        key = prefix + name
        default = _shown_default(presets.get("default", {}).get(key, _default(field)))
        if key in presets.get("paper", {}):
            default += f"; *paper*: {_shown_default(presets['paper'][key])}"
        rows.append(_row(f"`{key}`", field_type(field), default, _plain(field.description or "")))
    return "\n".join(rows)


def _default(field: FieldInfo) -> Any:
    return field.default_factory() if field.default_factory else field.default  # type: ignore[call-arg]


def _shown_default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    return "unset" if value is None else f"`{json.dumps(value, ensure_ascii=False, default=str)}`"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def field_type(field: FieldInfo) -> str:
    """The type of a setting in words, with its bounds."""
    bounds = [
        f"{sign} {getattr(each, name):g}" for each in field.metadata for name, sign in BOUNDS if hasattr(each, name)
    ]
    return ", ".join([type_text(field.annotation), *bounds])


def type_text(annotation: Any) -> str:
    """A type in words: `Literal["a", "b"]` as "`a`, `b`", `int | None` as "whole number or unset"."""
    origin, below = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(below[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in below)
    if origin in (Union, UnionType):
        return " or ".join(type_text(each) for each in below)
    if origin is list:
        return "tables" if _models(below[0]) else f"list of {type_text(below[0])}"
    if origin is dict:
        return "table"
    if hasattr(annotation, "__members__"):
        return ", ".join(f"`{member.value}`" for member in annotation)
    return SCALARS.get(annotation, getattr(annotation, "__name__", str(annotation)).lower())


# The Python interface


def _public(name: str, thing: Any) -> Iterator[str]:
    """A name's heading, signature and docstring; of a class its public methods, too."""
    yield f"## `gecko.{name}` {{#gecko.{name}}}"
    if inspect.isclass(thing) and issubclass(thing, BaseModel):
        yield f"{_doc(thing.__doc__)}\n\nIts keys are those of the [settings](settings.md)."
        return
    if inspect.isclass(thing) and issubclass(thing, Exception):
        yield _doc(thing.__doc__)
        yield "\n".join(_below(thing))
        return
    yield f"```python\n{_signature(name, thing)}\n```"
    yield _doc(inspect.getdoc(thing))
    for member, value in vars(thing).items() if inspect.isclass(thing) else ():
        plain = getattr(value, "__func__", value)
        if member.startswith("_"):
            continue
        if isinstance(plain, property):
            yield f"### `{name}.{member}`"
            yield _doc(inspect.getdoc(plain))
        elif inspect.isfunction(plain):
            yield f"### `{name}.{member}()`"
            yield f"```python\n{_signature(member, getattr(thing, member))}\n```"
            yield _doc(inspect.getdoc(plain))


def _below(error: type[Exception], depth: int = 0) -> Iterator[str]:
    for each in error.__subclasses__():
        if each.__module__.startswith("gecko."):
            yield f"{'    ' * depth}- `{each.__name__}`: {_doc(each.__doc__).splitlines()[0]}"
            yield from _below(each, depth + 1)


def _signature(name: str, thing: Any) -> str:
    """A call as Python writes it, a parameter a line where it is long; names of types without their modules."""
    signature = inspect.signature(thing)
    if inspect.isclass(thing):
        signature = signature.replace(return_annotation=inspect.Signature.empty)
    text = f"{name}{signature}"
    if len(text) > 100:
        inner = str(signature.replace(return_annotation=inspect.Signature.empty))[1:-1]
        inner = re.sub(r", (?=(?:\*{0,2}[a-z_]\w*(?::|,|$))|\*,|/)", ",\n    ", inner)
        text = f"{name}(\n    {inner},\n){str(signature)[str(signature).rindex(')') + 1 :]}"
    text = re.sub(r"<.+? at 0x[0-9a-f]+>", "...", text)  # a default that has no text of its own
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", text).replace("'", '"')


def _doc(text: str | None) -> str:
    """A docstring as Markdown: blocks such as ``Args:`` become lists."""
    parts: list[str] = []
    block = ""
    for line in inspect.cleandoc(text or "").splitlines():
        if found := BLOCK.fullmatch(line):
            block = found[1]
            parts += [f"**{block}**", ""]
        elif block and line.startswith("    "):
            entry = ENTRY.fullmatch(line[4:]) if block != "Returns" else None
            parts.append(
                f"- `{entry[1]}`: {entry[2]}" if entry else f"  {line.strip()}" if block != "Returns" else line[4:]
            )
        else:
            block = "" if line.strip() else block
            parts.append(line)
    return _plain("\n".join(parts)).strip()


# Markdown


def _plain(text: str) -> str:
    """Text of help or docstring as Markdown: one kind of code span, no roles."""
    return re.sub(r":\w+:`[^`]*?([^`.]+)`", r"`\1`", text or "").replace("``", "`")


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.removeprefix("; ").split()).replace("|", "\\|") for cell in cells) + " |"


def _joined(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"
