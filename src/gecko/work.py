"""A stage is shards and what is done with each; an engine does it, here or in other processes.

The store asks an :class:`Engine` for the shards that are missing and writes them as they come. A shard's task holds all
that is particular to it, and ``Job.do`` what all shards need (settings, the means to load a model), so a worker elsewhere
needs neither the run folder nor the corpus, and does exactly what is done here.
"""

import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from gecko.text import shown

EXAMPLES = 3  # of a reason for drops, a shard
EXAMPLE_CHARS = 240
R = TypeVar("R")
Task = TypeVar("Task")
Do = Callable[[Task, "Counts"], Iterable[R]]
Take = Callable[[], tuple[int, Task] | None]


@dataclass
class Counts:
    """What a stage counts while it works on one shard.

    ``waited`` is the part of the time in which something was fetched or loaded, in seconds; it is no work of the stage.
    ``spent`` are the seconds that rows taken over from earlier work have cost.
    """

    drops: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    waited: float = 0.0
    spent: float = 0.0
    notes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, example: str = "") -> None:
        """Count a drop; the first few of a reason are kept as examples, cut short."""
        self.drops[reason] += 1
        self._show(reason, example)

    def note(self, reason: str, example: str) -> None:
        """Count something else, with examples like those of a drop."""
        self.notes[reason] += 1
        self._show(reason, example)

    def _show(self, reason: str, example: str) -> None:
        kept = self.examples.setdefault(reason, [])
        if example and len(kept) < EXAMPLES:
            kept.append(example if len(example) <= EXAMPLE_CHARS else f"{example[: EXAMPLE_CHARS - 1]}…")

    def take_drops(self, drops: Mapping[str, int], examples: Mapping[str, Sequence[str]]) -> None:
        """Add what was dropped elsewhere, with its examples."""
        self.drops.update(drops)
        for reason, texts in examples.items():
            kept = self.examples.setdefault(reason, [])
            kept += texts[: EXAMPLES - len(kept)]

    def add(self, other: "Counts") -> None:
        """Count what another has counted of the same shard."""
        self.take_drops(other.drops, other.examples)
        self.notes.update(other.notes)
        self.tokens += other.tokens
        self.waited += other.waited
        self.spent += other.spent


def left_out(counted: Any) -> str:
    """What was dropped and noted, a reason a line with one example; begins with a line end, and is empty for nothing.

    Args:
        counted: has ``drops``, ``notes`` and ``examples``, like the counts of a stage or its manifest.
    """
    told = ""
    for reason, count in (*counted.drops.items(), *counted.notes.items()):
        example = next(iter(counted.examples.get(reason, ())), "")
        if count:
            told += f"\n  {count:,} {reason}" + (f", such as {shown(' '.join(example.split()))}" if example else "")
    return told


@dataclass(frozen=True)
class Done(Generic[R]):
    """A shard that was worked on: its rows, what was counted, and the seconds it took, waiting included."""

    rows: list[R]
    counts: Counts
    seconds: float


@dataclass(frozen=True)
class Job(Generic[Task, R]):
    """What a stage does with its shards.

    Attributes:
        do: makes the rows of a task. It can be pickled where the engine is a remote one.
        ask: the task of the shard of this number; what is known before the work begins is counted.
        after: the numbers of the earlier shards that must be there before a shard's task can be made.
    """

    do: Do[Task, R]
    ask: Callable[[int, Counts], Task]
    after: Callable[[int], Collection[int]] = lambda _: ()


class Engine(Protocol):
    """Does the work of shards.

    Attributes:
        remote: whether it is done in other processes, to which it is sent.
    """

    remote: bool

    def run(self, do: Do[Task, R], take: Take[Task]) -> Iterator[tuple[int, Done[R]]]:
        """Yield each shard's number and rows as they are finished, in any order.

        Args:
            do: the work.
            take: the next number and task; none: there is none now. It is asked again after each result that was yielded.
        """
        ...

    def keep(self, value: Any) -> Callable[[], Any]:
        """A value that is large, to be had by all workers: what a part of ``do`` calls where it needs it."""
        ...


class Local:
    """Shard by shard, in this process."""

    remote = False

    def run(self, do: Do[Task, R], take: Take[Task]) -> Iterator[tuple[int, Done[R]]]:
        """See :class:`Engine`."""
        while (taken := take()) is not None:
            yield taken[0], perform(do, taken[1])

    def keep(self, value: Any) -> Callable[[], Any]:
        """See :class:`Engine`."""
        return lambda: value


LOCAL = Local()


def perform(do: Do[Task, R], task: Task) -> Done[R]:
    """Work on one shard."""
    counts, start = Counts(), time.perf_counter()
    rows = list(do(task, counts))
    return Done(rows, counts, time.perf_counter() - start)


def another_model(spec: str, here: str, there: str) -> str:
    """What to say of a worker that has other weights than the run."""
    return (
        f"{spec} is another model on {socket.gethostname()} ({here}) than in the run ({there}); "
        "put the same files on every machine"
    )
