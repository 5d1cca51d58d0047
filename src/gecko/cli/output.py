"""What the commands print: tables, what was left out of what was read, and what a run came to."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gecko.core.progress import Terminal

if TYPE_CHECKING:
    from rich.table import Table

    from gecko.run.folder import Run


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

    Args:
        lines: the header first.
        width: characters, where a pipe has no width of its own.
        name_width: the least width of the first column, in characters; long cells are then folded, not cut.
        ends: whether a line is drawn under a row.
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


def print_closing(run: "Run", result: dict[str, Any]) -> None:
    """Print the table of a run's measures, and what they show."""
    from gecko.report.table import asked_rows, closing_rows, origins, verdict

    print_rows(closing_rows(result))
    seconds = sum(run.finished(stage).seconds for stage in ("generate", "relabel"))
    selected = run.finished("select")
    own, released = origins(selected)
    print(verdict(result, own, seconds, released, asked_rows(selected)))
