"""What a teacher that is a server takes: requests, tokens, errors by kind and money, as it is counted and as it is told."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gecko.core.counts import Counts
from gecko.core.progress import Advance
from gecko.llm.base import Usage
from gecko.report.spending import FAILED, REQUESTS, WRITTEN, Spent, money, spent_words

if TYPE_CHECKING:
    from gecko.stages.context import Context


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
def spending_bar(context: "Context", title: str, total: int) -> Iterator[Advance]:
    """A progress bar over parts that also says what a server was asked since it began, and what that costs."""
    usage = context.models.usage
    before = (usage.read, usage.written, usage.requests, Counter(usage.errors)) if usage else (0, 0, 0, Counter[str]())
    with context.ui.bar(title, total, "parts") as advance:

        def moved(count: int, note: str = "") -> None:
            usage = context.models.usage
            if usage is not None and usage.requests > before[2]:
                errors = usage.errors - before[3]
                spent = Spent(usage.read - before[0], usage.written - before[1], usage.requests - before[2], errors)
                note = spent_words(spent, money(context.config.price, spent.read, spent.written))
            advance(count, note)

        yield moved
