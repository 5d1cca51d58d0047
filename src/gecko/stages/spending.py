"""What a teacher that is a server takes: requests, tokens, errors by kind and money, as it is counted and as it is told."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gecko.core.counts import Counts
from gecko.llm.base import Usage
from gecko.report.spending import FAILED, REQUESTS, WRITTEN, Spent, money, spent_words
from gecko.report.text import duration

if TYPE_CHECKING:
    from gecko.stages.context import Context

EVERY = 60.0  # seconds between two sentences on what is spent so far


@contextmanager
def booked(usage: Usage, counts: Counts) -> Iterator[None]:
    """Note in the counts of a shard what a server is asked while this lasts; nothing of a teacher on this machine."""
    requests, written, errors = usage.requests, usage.written, Counter(usage.errors)
    yield
    if usage.requests > requests:
        counts.notes[REQUESTS] += usage.requests - requests
        counts.notes[WRITTEN] += usage.written - written
        counts.notes.update({f"{FAILED}{kind}": count for kind, count in (usage.errors - errors).items()})


@contextmanager
def spending_bar(context: "Context", title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar that says every minute what a server was asked since it began, what that costs, and the time left."""
    began = told = time.monotonic()
    usage = context.models.usage
    before = (usage.read, usage.written, usage.requests, Counter(usage.errors)) if usage else (0, 0, 0, Counter[str]())
    done = 0
    with context.ui.bar(title, total) as advance:

        def moved(count: int) -> None:
            nonlocal done, told
            advance(count)
            done, now, usage = done + count, time.monotonic(), context.models.usage
            if usage is None or usage.requests <= before[2] or now - told < EVERY or done >= total:
                return
            told, errors = now, usage.errors - before[3]
            spent = Spent(usage.read - before[0], usage.written - before[1], usage.requests - before[2], errors)
            left = duration((now - began) / done * (total - done))
            said = spent_words(spent, money(context.config.price, spent.read, spent.written))
            context.ui.say(f"{done:,} of {total:,} parts: {said}; about {left} left")

        yield moved
