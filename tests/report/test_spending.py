"""What a server took, in numbers and words."""

from collections import Counter
from contextlib import contextmanager

import pytest

from gecko.config.stages import PriceConfig
from gecko.core.counts import Counts
from gecko.llm.base import Usage
from gecko.report.closing import closing_lines, summary
from gecko.report.spending import Spent, money, money_words, spent_of, spent_words
from gecko.run.manifest import Manifest, Shard
from gecko.stages.spending import booked, spending_bar


def shard(counts: Counts) -> Shard:
    return Shard("part-00000.parquet", 1, "", 0.0, counts.tokens, {}, dict(counts.notes))


def test_what_is_booked_is_what_is_told() -> None:
    usage, counts = Usage(read=5, written=1, requests=2, errors=Counter({"429": 1})), Counts()
    with booked(usage, counts):
        usage.read, usage.written, usage.requests = 905, 101, 12
        usage.errors.update({"429": 2, "no reply": 1})
        counts.tokens = 1000
    own = Counts(tokens=70)
    with booked(Usage(), own):
        pass
    assert not own.notes, "a teacher on this machine makes no requests"
    spent = spent_of([Manifest("generate", "", {}, [shard(counts), shard(own)]), None])
    assert spent == Spent(900, 100, 10, {"429": 2, "no reply": 1})
    price = PriceConfig(input=10.0, output=1000.0)
    assert money(price, spent.read, spent.written) == pytest.approx(0.109)
    assert spent_words(spent, 0.109) == (
        "10 requests, 900 tokens read, 100 written, cost 0.11, 3 failed (429: 2, no reply: 1)"
    )
    assert money(PriceConfig(), 1e9, 1e9) is None and money_words(None) == ""
    assert money_words(0.00012) == "0.0001"


def test_the_closing_lines_say_what_it_cost() -> None:
    found = summary({"sets": {}, "agreement": {}, "form": "native"}, 3, 9.0)
    assert "Teacher" not in {line.label for line in closing_lines(found)}
    spent = {"read": 2_000_000, "written": 10, "requests": 7, "errors": {}, "money": 1.5}
    [line] = [line for line in closing_lines(found | {"spent": spent}) if line.label == "Teacher"]
    assert line.text == "7 requests, 2,000,000 tokens read, 10 written, cost 1.50"


def test_the_progress_says_what_is_spent() -> None:
    said: list[str] = []

    class Context:
        class models:
            usage = Usage()

        class config:
            price = PriceConfig(input=1.0)

        class ui:
            @staticmethod
            @contextmanager
            def bar(title: str, total: int, unit: str):
                yield lambda count, note: said.append(f"{title}, {count} of {total} {unit}: {note}")

    with spending_bar(Context(), "judging", 8) as advance:  # type: ignore[arg-type]
        advance(1)
        for _ in range(2):
            Context.models.usage.requests += 4
            Context.models.usage.read += 1_000_000
            advance(1)
    assert said == [
        "judging, 1 of 8 parts: ",
        "judging, 1 of 8 parts: 4 requests, 1,000,000 tokens read, 0 written, cost 1.00",
        "judging, 1 of 8 parts: 8 requests, 2,000,000 tokens read, 0 written, cost 2.00",
    ]
