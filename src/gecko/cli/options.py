"""Options that several commands have, alone and in groups."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from gecko.core.errors import ConfigError
from gecko.core.progress import Terminal

if TYPE_CHECKING:
    from gecko.run.engine import Executor

RunArg = Annotated[Path, typer.Argument(help="The run folder.", metavar="RUN")]
Recipe = Annotated[Path | None, typer.Option("-c", "--config", help="A recipe: TOML with settings.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="One setting, as section.key=value. Can be repeated.")]
Llm = Annotated[
    str | None,
    typer.Option(help="The teacher: default, default-small, smollm2, hf:NAME, gguf:PATH, openai:URL#MODEL or fake."),
]
Backbone = Annotated[str | None, typer.Option(help="The start model: minilm, hf:NAME or a folder.")]
Budget = Annotated[str | None, typer.Option(help="Teacher time or tokens: 20m, 2h, 300000tok.")]
Force = Annotated[
    bool, typer.Option("--force", help="Go on with a refused teacher, or in a folder made with other settings.")
]
Evals = Annotated[list[str] | None, typer.Option("--eval", help="A BEIR folder (DIR or DIR@SPLIT) to measure on.")]
Split = Annotated[str | None, typer.Option(help="The split where none is named with @SPLIT.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")]
PrecisionOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or int8.")]


@dataclass(frozen=True)
class RunOptions:
    """``RUN``, ``--set`` and ``--force``: a run that exists, and what changes in it."""

    run: RunArg
    sets: Sets = None
    force: Force = False


@dataclass(frozen=True)
class EngineOptions:
    """``--engine``, ``--address`` and ``--workers``: where the work is done."""

    engine: Annotated[str, typer.Option("--engine", help="Where the work is done: local, or ray.")] = "local"
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster, or auto; none: one of this machine's own, for this call.")
    ] = None
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray workers; none: one a GPU, and without GPUs one a machine.")
    ] = None

    @property
    def on_ray(self) -> bool:
        """Whether it is Ray's.

        Raises:
            ConfigError: there is no such engine.
        """
        from gecko.core.arguments import one_of

        return bool(one_of("--engine", self.engine, ("local", "ray")) == "ray")

    @contextmanager
    def executor(self, ui: Terminal) -> Iterator["Executor"]:
        """The executor, up until the end.

        Raises:
            ConfigError: there is none of that name, or what is Ray's alone is given to another.
        """
        if self.on_ray:
            from gecko.run.ray import Cluster

            with Cluster(self.address, self.workers, say=ui.say) as cluster:
                yield cluster
            return
        from gecko.run.engine import LOCAL

        options = {"--address": self.address, "--workers": self.workers}
        if given := [option for option, value in options.items() if value is not None]:
            raise ConfigError(f"{', '.join(given)}: for --engine ray only")
        yield LOCAL


HERE = EngineOptions()


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer is to see it: in the place of a parameter that is a dataclass stand its fields."""
    parameters = inspect.signature(command).parameters.values()
    groups: dict[str, Any] = {each.name: each.annotation for each in parameters if is_dataclass(each.annotation)}
    options: list[inspect.Parameter] = []
    for each in parameters:
        own = inspect.signature(groups[each.name]).parameters.values() if each.name in groups else (each,)
        options += (option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in own)

    @wraps(command)
    def called(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    called.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    called.__annotations__ = {option.name: option.annotation for option in options}
    return called


def named(base: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Settings, with those of the options that are given."""
    return base | {key: value for key, value in options.items() if value is not None}


def chosen(option: str, value: str, names: Any) -> Any:
    """The value, if it is one of a ``Literal``'s.

    Raises:
        ConfigError: it is another.
    """
    from gecko.core.arguments import one_of

    return one_of(option, value, get_args(names))
