"""What a teacher behind a server has taken, from what the stages have noted, and in words."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gecko.config.stages import PriceConfig
from gecko.run.manifest import Manifest

# Notes of a shard.
REQUESTS = "requests to the teacher"
WRITTEN = "tokens that the teacher wrote"
FAILED = "failed requests: "

MILLION = 1_000_000


@dataclass(frozen=True)
class Spent:
    """Tokens that a server read and wrote, requests, and those that came to nothing by kind."""

    read: int = 0
    written: int = 0
    requests: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)


def spent_of(manifests: Iterable[Manifest | None]) -> Spent:
    """What stages have noted, together; nothing of a teacher that is no server."""
    notes, tokens = Counter[str](), 0
    for manifest in manifests:
        for shard in manifest.shards if manifest else ():
            if REQUESTS in shard.notes:
                notes.update(shard.notes)
                tokens += shard.tokens
    errors = {name.removeprefix(FAILED): count for name, count in notes.items() if name.startswith(FAILED)}
    return Spent(max(0, tokens - notes[WRITTEN]), notes[WRITTEN], notes[REQUESTS], errors)


def money(price: PriceConfig, read: float, written: float) -> float | None:
    """What tokens cost; none where no price is given."""
    if not (price.input or price.output):
        return None
    return (read * price.input + written * price.output) / MILLION


def money_words(amount: float | None) -> str:
    """An amount; empty where there is none."""
    if amount is None:
        return ""
    return f"{amount:,.2f}" if amount >= 0.1 else f"{amount:.4f}"


def spent_words(spent: Spent, amount: float | None) -> str:
    """``1,200 requests, 300,000 tokens read, 4,000 written, cost 0.08, 7 failed (429: 5, no reply: 2)``."""
    cost = money_words(amount)
    failed = ", ".join(f"{kind}: {count:,}" for kind, count in sorted(spent.errors.items()))
    return (
        f"{spent.requests:,} requests, {spent.read:,} tokens read, {spent.written:,} written"
        + (f", cost {cost}" if cost else "")
        + (f", {sum(spent.errors.values()):,} failed ({failed})" if failed else "")
    )
