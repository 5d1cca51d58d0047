"""What a long piece of work tells the person who waits: sentences and bars. Library calls are silent by default."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from gecko.core.text import duration

if TYPE_CHECKING:
    from rich.console import Console

EVERY = 30.0  # seconds between two lines where there is no terminal


class Advance(Protocol):
    """Moves a bar."""

    def __call__(self, count: int, note: str = "") -> object:
        """By so many units; the note, such as a loss or a price, stands beside it until there is another."""
        ...


class Ui(Protocol):
    """Where sentences and progress go."""

    def say(self, text: str) -> None:
        """One sentence."""
        ...

    def bar(self, title: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
        """A context whose value moves the bar, by units (a plural noun), of ``total`` or of nobody knows how many."""
        ...


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Only errors of the model libraries are shown, and none of their progress bars."""
    from transformers.utils import logging as reports

    report: Any = reports  # its functions are not typed
    verbosity, bars = report.get_verbosity(), report.is_progress_bar_enabled()
    other = logging.getLogger("sentence_transformers")
    level = other.level
    report.set_verbosity_error()
    report.disable_progress_bar()
    other.setLevel(logging.ERROR)
    try:
        yield
    finally:
        report.set_verbosity(verbosity)
        other.setLevel(level)
        if bars:
            report.enable_progress_bar()


class Silent:
    """Says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def bar(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:
        """No bar."""
        yield lambda count, note="": None


class Terminal:
    """Sentences and bars on standard error, so that standard output stays for results."""

    def __init__(self) -> None:
        self.console = _console()

    def say(self, text: str) -> None:
        """One sentence on a line of its own."""
        self.console.print(text, markup=False, soft_wrap=True)

    def bar(self, title: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
        """A bar with counts and time to go; where there is no terminal, a line at the start and every 30 seconds."""
        if not self.console.is_terminal:
            self.say(title if total is None or total == 1 else f"{title} ({total:,} {unit})")
        return progress_bar(title, total, unit, self.console)


def _console() -> "Console":
    """Standard error, also in a notebook."""
    from rich.console import Console  # half of what it takes to start, and not all commands say something

    return Console(stderr=True, highlight=False, force_jupyter=False)


class _Work:
    """How far a piece of work is."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.note, self.began = 0, "", time.monotonic()

    def __call__(self, count: int, note: str = "") -> None:
        self.done, self.note = self.done + count, note or self.note

    def left(self) -> float | None:
        """Seconds to go, at the speed so far; None where nobody knows."""
        if not self.total or not self.done:
            return None
        return (time.monotonic() - self.began) / self.done * (self.total - self.done)

    def __str__(self) -> str:
        if self.total == 1:
            said = ""
        elif self.total is None:
            said = f"{self.done:,} {self.unit}"
        else:
            said = (
                f"{self.done:,} of {self.total:,} {self.unit}" if self.unit else f"{self.done / max(1, self.total):.0%}"
            )
        left = self.left()
        time_said = (
            f"{duration(time.monotonic() - self.began)} so far" if left is None else f"about {duration(left)} left"
        )
        return f"{self.title}: " + ", ".join(part for part in (said, self.note, time_said) if part)


@contextmanager
def progress_bar(
    title: str, total: int | None, unit: str, console: "Console | None" = None, *, wait: float = 0.0
) -> Iterator[Advance]:
    """A progress bar on standard error; a line every 30 seconds where that is no terminal.

    Args:
        title: what is done.
        total: units of it; None: nobody knows.
        unit: a plural noun; empty: the share is shown in per cent.
        console: where it goes; None: standard error.
        wait: seconds of work that must be left for a bar to appear; it goes when it is full.
    """
    console, work = console or _console(), _Work(title, total, unit)
    if console.is_terminal:
        with _rich(work, console, wait) as advance:
            yield advance
        return
    over = threading.Event()

    def tell() -> None:
        while not over.wait(EVERY):
            try:  # not by the console: that ends the program's output where nobody reads this
                print(work, file=console.file, flush=True)
            except (OSError, ValueError):
                return

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield work
    finally:
        over.set()
        teller.join()


@contextmanager
def _rich(work: _Work, console: "Console", wait: float) -> Iterator[Advance]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    count = MofNCompleteColumn() if work.unit else TaskProgressColumn()
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    # The note has what is left of the line.
    note = TextColumn(
        "{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
    )
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), count, TextColumn(work.unit), *times, note)
    progress = Progress(*columns, console=console, transient=wait > 0, expand=True)
    task = progress.add_task(work.title, total=work.total, note="")
    shown = wait == 0
    if shown:
        progress.start()

    def advance(count: int, note: str = "") -> None:
        nonlocal shown
        work(count, note)
        if not shown and (work.left() or 0.0) > wait:
            shown = True
            progress.start()
        progress.update(task, completed=work.done, note=work.note)

    try:
        yield advance
    finally:
        if shown:
            progress.stop()
