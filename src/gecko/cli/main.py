"""The entry point: the table of the commands, and how each of them ends."""

import atexit
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gecko import __version__
from gecko.cli import distill, measure, models, rows, serve, stages
from gecko.cli.options import with_groups
from gecko.core.errors import GeckoError

STOPPED = 130  # the exit code of what Ctrl-C ends

COMMANDS: dict[str, Callable[..., None]] = {  # in the order of the help
    "demo": distill.demo,
    "distill": distill.distill,
    "ingest": stages.ingest,
    "generate": stages.generate,
    "mine": stages.mine,
    "relabel": stages.relabel,
    "select": stages.select,
    "train": stages.train,
    "pretrain": stages.pretrain,
    "merge": models.merge,
    "evaluate": stages.evaluate,
    "report": distill.report,
    "push": rows.push,
    "inspect": rows.inspect,
    "examples": rows.examples,
    "export-rows": rows.export_rows,
    "eval": measure.evaluate_model,
    "check-teacher": measure.check_teacher,
    "embed": models.embed,
    "search": models.search,
    "export": models.export,
    "ablate": measure.ablate,
    "serve": serve.serve,
}


class _Commands(TyperGroup):
    """The commands; to typer, a file that ends too early is the end of what a user types."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise RuntimeError(f"a file ends too early ({error})") from error


app = typer.Typer(
    name="gecko",
    cls=_Commands,
    help="Distil a language model's relevance judgement into a compact text-embedding model, on your own passages.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(f"gecko {__version__}")
        raise typer.Exit


for _name, _command in COMMANDS.items():
    app.command(_name)(with_groups(_command))


@contextmanager
def _flushed() -> Iterator[None]:
    """Standard output is written to its end; a reader that has gone away is no error."""
    try:
        yield
    finally:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the interpreter's end
            if isinstance(error, BrokenPipeError):
                sys.exit(1)
            raise


def main() -> None:
    """Entry point: an error is one message and exit code 1; ``GECKO_TRACEBACK=1`` shows where it came from."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":  # whatever a terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        with _flushed():
            app()
    except Exception as error:
        from rich.console import Console

        from gecko.cli.unexpected import sentence, wants_traceback

        if wants_traceback():
            traceback.print_exc()
        said = str(error) if isinstance(error, GeckoError) else sentence(error)
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {said}", markup=False, style="red")
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as end:
        # The library below makes an exit of Ctrl-C, without a word.
        if isinstance(end, SystemExit) and end.code != STOPPED:
            raise
        from rich.console import Console

        Console(stderr=True).print("stopped; run the same command again to continue")
        atexit._run_exitfuncs()
        os._exit(STOPPED)  # no thread is waited for, and the libraries need seconds to take themselves down
