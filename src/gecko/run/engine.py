"""A stage is shards and what is done with each; an executor does it, here or in other processes.

:mod:`gecko.run.shards` asks an :class:`Executor` for the shards that are missing and writes them as they come. A
shard's task holds all that is particular to it, and ``Job.do`` what all shards need (settings, the means to load a
model), so a worker elsewhere needs neither the run folder nor the corpus, and does exactly what is done here.
"""

import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from gecko.core.counts import Counts
from gecko.core.errors import ConfigError

R = TypeVar("R")
Task = TypeVar("Task")
Model = TypeVar("Model")
Do = Callable[[Task, "Counts"], Iterable[R]]
Take = Callable[[], tuple[int, Task] | None]


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
        do: makes the rows of a task. It can be pickled where the executor is a remote one.
        ask: the task of the shard of this number; what is known before the work begins is counted.
        after: the numbers of the earlier shards that must be there before a shard's task can be made.
    """

    do: Do[Task, R]
    ask: Callable[[int, Counts], Task]
    after: Callable[[int], Collection[int]] = lambda _: ()


class Executor(Protocol):
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
        """See :class:`Executor`."""
        while (taken := take()) is not None:
            yield taken[0], perform(do, taken[1])

    def keep(self, value: Any) -> Callable[[], Any]:
        """See :class:`Executor`."""
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


@dataclass
class RemoteModel(ABC, Generic[Model]):
    """A model by name, to be sent to another process: loaded where it is first called; ``identity`` is what it must have."""

    spec: str
    identity: str
    _loaded: Model | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.spec = anywhere(self.spec)

    def __call__(self) -> Model:
        """The model. Raises ConfigError: it cannot be loaded, or is another one here."""
        if self._loaded is None:
            loaded: Any = self._load()
            if loaded.identity != self.identity:
                raise ConfigError(another_model(self.spec, loaded.identity, self.identity))
            self._loaded = loaded
        return self._loaded

    @abstractmethod
    def _load(self) -> Model: ...


def anywhere(spec: str) -> str:
    """A folder by its absolute path: the other process may work in another one."""
    path = Path(spec).expanduser()
    return str(path.absolute()) if path.is_dir() else spec
