"""Options that several commands have, alone and in groups."""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from typer.core import TyperCommand

from gecko.core.errors import ConfigError
from gecko.core.progress import Terminal

if TYPE_CHECKING:
    from gecko.run.engine import Executor

# Former names of options: they work, are not shown, and say on standard error what to write.
RENAMED = {
    "--backbone": ("--start",),
    "--force": ("--accept-teacher", "--restart"),
    "--queries": ("--limit",),  # where it was a number
    "--split": ("--chunk",),  # where it was no name of a split
}

RunArg = Annotated[Path, typer.Argument(help="The run folder.", metavar="RUN")]
Recipe = Annotated[Path | None, typer.Option("-c", "--config", help="A recipe: TOML with settings.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="One setting, as section.key=value. Can be repeated.")]
Llm = Annotated[
    str | None,
    typer.Option(help="The teacher: default, default-small, smollm2, hf:NAME, gguf:PATH, openai:URL#MODEL or fake."),
]
Start = Annotated[str | None, typer.Option("--start", help="The start model: minilm, hf:NAME or a folder.")]
BM25Weight = Annotated[
    float, typer.Option(min=0, max=100, help="Of BM25 beside vectors: cosine + weight * BM25 / the query's best BM25.")
]
Budget = Annotated[str | None, typer.Option(help="Teacher time or tokens: 20m, 2h, 300000tok.")]
PriceIn = Annotated[float | None, typer.Option(min=0, help="What a million tokens cost that the teacher reads.")]
PriceOut = Annotated[float | None, typer.Option(min=0, help="What a million tokens cost that the teacher writes.")]
AcceptTeacher = Annotated[
    bool, typer.Option("--accept-teacher", help="Go on with a teacher that the teacher check refuses.")
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Go on in a folder made with other settings; the old output goes to archive/.")
]
Evals = Annotated[list[str] | None, typer.Option("--eval", help="A BEIR folder (DIR or DIR@SPLIT) to measure on.")]
Split = Annotated[str | None, typer.Option(help="The split where none is named with @SPLIT.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on standard output.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")]

# The choices of the library, said again: their modules are too heavy for --help.
Precision = Literal["auto", "float32", "bfloat16", "int8"]
Output = Literal["float32", "int8", "binary"]
Method = Literal["hybrid", "dense", "bm25"]
Kind = Literal["auto", "flat", "hnsw"]
Store = Literal["auto", "float32", "int8", "binary"]
Target = Literal["onnx", "openvino", "gguf"]
Quantize = Literal["f16", "q8_0"]
InputFormat = Literal["native", "unified"]
EngineName = Literal["local", "ray"]
Frozen = Literal["passages"]
Side = Literal["query", "document"]
Library = Literal["sentence-transformers", "cross-encoder", "pylate"]

Freeze = Annotated[
    Frozen | None,
    typer.Option(help="Train the side of the queries alone: passage vectors, and any index of them, stay as they are."),
]
PrecisionOption = Annotated[Precision, typer.Option(help="Of the model's numbers; auto: what this machine does best.")]


@dataclass(frozen=True)
class RunOptions:
    """``RUN``, ``--set`` and ``--accept-teacher``: a run that exists, and what changes in it."""

    run: RunArg
    sets: Sets = None
    accept_teacher: AcceptTeacher = False


@dataclass(frozen=True)
class EngineOptions:
    """``--engine``, ``--address`` and ``--workers``: where the work is done."""

    engine: Annotated[EngineName, typer.Option("--engine", help="Where the work is done.")] = "local"
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster, or auto; none: one of this machine's own, for this call.")
    ] = None
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray workers; none: one a GPU, and without GPUs one a machine.")
    ] = None

    @property
    def on_ray(self) -> bool:
        """Whether it is Ray's. Raises ConfigError: there is no such engine."""
        from gecko.core.arguments import one_of

        return bool(one_of("--engine", self.engine, get_args(EngineName)) == "ray")

    @contextmanager
    def executor(self, ui: Terminal) -> Iterator["Executor"]:
        """The executor, up until the end.

        Raises ConfigError: there is none of that name, or what is Ray's alone is given to another.
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


class Command(TyperCommand):
    """A command that takes the former names of its options for those of today."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, former names replaced by those of their new ones that this command has."""
        known = {name for option in self.params for name in option.opts}
        return super().parse_args(ctx, list(_renewed(args, known)))


def _renewed(args: list[str], known: set[str]) -> Iterable[str]:
    for place, word in enumerate(args):
        if word == "--":
            yield from args[place:]
            return
        name, sign, value = word.partition("=")
        names = [new for new in RENAMED.get(name, ()) if new in known]
        if names and name not in known:
            print(f"{name} is now {' and '.join(names)}; write that", file=sys.stderr)
            yield from (f"{new}{sign}{value}" for new in names)
        else:
            yield word
