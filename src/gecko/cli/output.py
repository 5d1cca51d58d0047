"""What the commands print: tables, what was left out of what was read, and what a run came to."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gecko.core.progress import Terminal

if TYPE_CHECKING:
    from rich.table import Table

    from gecko.run.folder import Run

STDLIB = "stdlib"
MOST_SOURCES = 3  # that a command to copy names


def print_table(table: "Table", width: int = 120) -> None:
    """Print it on standard output; a pipe has no width of its own, and 80 columns would cut the numbers."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else width).print(table)


def print_rows(
    lines: Sequence[Sequence[str]],
    width: int = 120,
    *,
    name_width: int | None = None,
    ends: Callable[[Sequence[str]], bool] = lambda _: False,
) -> None:
    """Print a header and its rows as a table.

    ``width`` is for a pipe, which has none of its own. With ``name_width``, the least width of the first column, long
    cells are folded and not cut. ``ends`` says whether a line is drawn under a row.
    """
    from rich.markup import escape
    from rich.table import Table

    header, *rows = lines
    table = Table()
    for place, name in enumerate(header):
        least = None if place else name_width
        table.add_column(name, overflow="fold" if name_width else "ellipsis", min_width=least)
    for row in rows:
        table.add_row(*map(escape, row), end_section=ends(row))
    print_table(table, width)


def say_left_out(counts: Any, ui: Terminal) -> None:
    """Say what was not read as it stands, where there is such."""
    from gecko.core.counts import left_out

    if said := left_out(counts):
        ui.say(f"of what was read:{said}")


def print_closing(run: "Run", result: dict[str, Any], *, as_json: bool = False, pointers: bool = False) -> None:
    """Print what ``evaluate`` measured, as JSON or as a table and lines; after a whole run with pointers to what is next."""
    from gecko.report.closing import closing_lines, run_summary
    from gecko.report.table import closing_rows

    found = run_summary(run, result)
    if as_json:
        print(json.dumps({"run": str(run.path)} | found))
        return
    print_rows(closing_rows(result))
    for label, verdict, text in closing_lines(found):
        print(f"{label:<26} {verdict:<10} {text}" if verdict else f"{label:<26} {text}")
    if pointers:
        print()
        for label, text in _pointers(run):
            print(f"{label:<26} {text}")


def _pointers(run: "Run") -> list[tuple[str, str]]:
    config = run.config
    sources = config.corpus.sources if len(config.corpus.sources) <= MOST_SOURCES else ["FILES"]
    corpus = [word for source in sources for word in ("--corpus", str(source))]
    serve = ["gecko", "serve", str(run.path / "model"), "--start", str(config.backbone), *corpus]
    return [
        ("Rows and judgements", str(run.path / "report.html")),
        ("Compare both models", shlex.join(serve)),
        ("Your own documents", "gecko distill FILES -o runs/mine --dry-run"),
    ][: 3 if config.corpus.sources == [STDLIB] else 2]
