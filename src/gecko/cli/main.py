"""The entry point: the table of the commands, and how each of them ends.

====  =======================================================================================================
code  when
====  =======================================================================================================
0     done
1     an error: a file, a model, a server, the disk, or a fault in Gecko; standard error says what and the mend
2     usage: an option, a ``--set``, a recipe or a name of a model cannot be used; change the command
3     the teacher does harm: it was refused by a check of a run, or by ``gecko check-teacher``
130   stopped with Ctrl-C; the same command goes on where it was
====  =======================================================================================================
"""

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
from gecko.cli.exits import ERROR, STOPPED, exit_code
from gecko.cli.help import START, epilog
from gecko.cli.options import Command, with_groups
from gecko.core.errors import GeckoError

PANELS: dict[str, dict[str, Callable[..., None]]] = {  # in the order of the help
    "Start": {"demo": distill.demo, "distill": distill.distill},
    "Stages": {
        "ingest": stages.ingest,
        "generate": stages.generate,
        "mine": stages.mine,
        "relabel": stages.relabel,
        "select": stages.select,
        "train": stages.train,
        "evaluate": stages.evaluate,
        "report": distill.report,
        "pretrain": stages.pretrain,
        "merge": models.merge,
    },
    "Measure": {
        "eval": measure.evaluate_model,
        "testset": measure.testset,
        "check-teacher": measure.check_teacher,
        "inspect": rows.inspect,
        "ablate": measure.ablate,
    },
    "Use": {
        "embed": models.embed,
        "search": models.search,
        "export": models.export,
        "serve": serve.serve,
    },
    "Share": {"push": rows.push, "examples": rows.examples, "export-rows": rows.export_rows},
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
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        print(f"gecko {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(START)


for _panel, _commands in PANELS.items():
    for _name, _command in _commands.items():
        app.command(_name, cls=Command, epilog=epilog(_name), rich_help_panel=_panel)(with_groups(_command))


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
                sys.exit(ERROR)
            raise


def main() -> None:
    """Entry point: an error is one message and an exit code; ``GECKO_TRACEBACK=1`` shows where it came from."""
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
        sys.exit(exit_code(error))
    except (KeyboardInterrupt, SystemExit) as end:
        # The library below makes an exit of Ctrl-C, without a word.
        if isinstance(end, SystemExit) and end.code != STOPPED:
            raise
        from rich.console import Console

        Console(stderr=True).print("stopped; run the same command again to continue")
        atexit._run_exitfuncs()
        os._exit(STOPPED)  # no thread is waited for, and the libraries need seconds to take themselves down
