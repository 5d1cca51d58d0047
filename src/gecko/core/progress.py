"""What a long piece of work tells the person who waits: sentences and bars. Library calls are silent by default."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol


class Ui(Protocol):
    """Where sentences and progress go."""

    def say(self, text: str) -> None:
        """One sentence."""
        ...

    def bar(self, title: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """A context whose value moves the bar by so many units, of ``total`` or of nobody knows how many."""
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
    def bar(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """No bar."""
        yield lambda _: None


class Terminal:
    """Sentences and bars on standard error, so that standard output stays for results."""

    def __init__(self) -> None:
        from rich.console import Console  # half of what it takes to start, and not all commands say something

        self.console = Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        """One sentence on a line of its own."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar with counts, time gone and time to go; where there is no terminal, a line at the start and the end."""
        if not self.console.is_terminal:
            self.say(title if total is None else f"{title} ({total:,})")
            yield lambda _: None
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=self.console) as progress:
            task = progress.add_task(title, total=total)
            yield lambda count: progress.advance(task, count)
