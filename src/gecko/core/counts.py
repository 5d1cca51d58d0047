"""Counts of a stage: rows dropped by reason, tokens, seconds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gecko.core.text import shown

EXAMPLES = 3  # of a reason for drops, a shard
EXAMPLE_CHARS = 240


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


def drop_words(drops: Mapping[str, int]) -> str:
    """What was dropped, on one line: ``3 empty, 2 too short``; empty for nothing."""
    return ", ".join(f"{count:,} {reason}" for reason, count in drops.items() if count)


def left_out(counted: Any) -> str:
    """What was dropped and noted, a reason a line with one example; begins with a line end, and is empty for nothing.

    ``counted`` has ``drops``, ``notes`` and ``examples``, like the counts of a stage or its manifest.
    """
    told = ""
    for reason, count in (*counted.drops.items(), *counted.notes.items()):
        example = next(iter(counted.examples.get(reason, ())), "")
        if count:
            told += f"\n  {count:,} {reason}" + (f", such as {shown(' '.join(example.split()))}" if example else "")
    return told
