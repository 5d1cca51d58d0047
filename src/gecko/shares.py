"""Several workers on one run: each does every n-th shard of a stage, and keeps others from changing the run meanwhile.

::

    RUN/.lock                           held by whoever changes the run: alone, or while a worker prepares its stage
    RUN/.worker-relabel-2-of-4.lock     held by a worker as long as it works
    RUN/relabel/part-00005.parquet      as always; the number says whose it is
    RUN/relabel/worker-2-of-4.json      a manifest of the shards that worker made
    RUN/relabel/worker-ahead.json       of those that were finished before an earlier one was

A worker takes ``.lock``, then its own, makes what the stage depends on unless an earlier worker has, and lets ``.lock`` go
before its first shard. Whoever wants the run alone takes ``.lock`` and finds no other worker's lock held. So workers can
be on several machines, where their file system has locks (flock).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from gecko.errors import ConfigError

_LOCK = re.compile(r"\.worker-(?P<stage>.+)-(?P<number>\d+)-of-(?P<workers>\d+)\.lock")


@dataclass(frozen=True)
class Share:
    """The shards of ``stage`` that worker ``number`` (from 1) of ``workers`` makes."""

    stage: str
    number: int
    workers: int

    def __str__(self) -> str:
        return f"worker {self.number} of {self.workers} of {self.stage}"

    @property
    def file(self) -> str:
        """The name of its part of a manifest."""
        return f"worker-{self.number}-of-{self.workers}.json"

    def has(self, index: int) -> bool:
        """Whether the shard of this number is its own."""
        return index % self.workers == self.number - 1

    def owner(self, index: int) -> "Share":
        """The worker that makes a shard."""
        return Share(self.stage, index % self.workers + 1, self.workers)

    def covers(self, stage: str) -> bool:
        """Whether a stage is the one that is shared; further teachers have stages of their own (``relabel-2``)."""
        return stage == self.stage or re.fullmatch(rf"{self.stage}-\d+", stage) is not None

    def lock(self, run: Path) -> FileLock:
        """What it holds while it works."""
        return FileLock(run / f".worker-{self.stage}-{self.number}-of-{self.workers}.lock")


def parse_share(stage: str, text: str) -> Share:
    """``2/4`` as the second of four workers.

    Raises:
        ConfigError: it is no such text.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--shard {text}: write it as i/n, with i from 1 to n, for example 2/4")
    return Share(stage, int(match[1]), int(match[2]))


def working(run: Path, besides: Share | None = None) -> Iterator[Share]:
    """The workers that are at work in a run."""
    for path in sorted(run.glob(".worker-*.lock")):
        if match := _LOCK.fullmatch(path.name):
            share = Share(match["stage"], int(match["number"]), int(match["workers"]))
            if share != besides and _is_held(path):
                yield share


def _is_held(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False
