"""Batching across requests changes when texts are computed, and nothing else."""

import asyncio
from typing import Any

import numpy as np
import pytest

from gecko.core.errors import NonFiniteError
from gecko.serving.batcher import TURN, Asked, Batch, Batcher, ClosedError, QueueFullError

from .conftest import FakeModel, broken_run, fake_vector


async def until(condition: Any) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited in vain")


def make(model: Any, *, batch_tokens: int = 10_000, max_queue_tokens: int = 100_000, **more: Any) -> Batcher:
    models = model if isinstance(model, dict) else {"m": model}
    batcher = Batcher(models, batch_tokens=batch_tokens, max_queue_tokens=max_queue_tokens, **more)
    batcher.start()
    return batcher


def test_requests_share_batches_and_get_their_own_vectors(fake: FakeModel) -> None:
    batches: list[Batch] = []

    async def run() -> None:
        batcher = make(fake, observe=batches.append)
        fake.gate.clear()
        first = asyncio.create_task(batcher.embed("m", ["first"], task="Q"))
        await until(fake.entered.is_set)
        jobs = [batcher.embed("m", [f"{n}-{k}" for k in range(n % 5 + 1)], task=f"T{n % 3}") for n in range(40)]
        titled = batcher.embed("m", ["a", "b"], task="D", titles=["one", "two"])
        waiting = asyncio.gather(*jobs, titled)
        await until(lambda: batcher.queued_tokens > 300)
        fake.gate.set()
        *results, with_titles = await waiting
        await first
        for n, (vectors, tokens) in enumerate(results):
            texts = [f"{n}-{k}" for k in range(n % 5 + 1)]
            assert np.array_equal(vectors, np.stack([fake_vector(f"T{n % 3}||{text}") for text in texts]))
            assert tokens == sum(map(len, texts))
        assert np.array_equal(with_titles[0], np.stack([fake_vector("D|one|a"), fake_vector("D|two|b")]))
        assert batcher.queued_tokens == 0
        batcher.close()

    asyncio.run(run())
    assert [len(batch) for batch in fake.batches] == [1, 122]  # 40 requests and the titled one went together
    assert [batch.texts for batch in batches] == [1, 122]
    assert sum(batch.tokens for batch in batches) > 122


def test_a_large_request_does_not_hold_up_a_small_one(fake: FakeModel) -> None:
    order = []

    async def run() -> None:
        batcher = make(fake, batch_tokens=100)

        async def named(name: str, texts: list[str]) -> None:
            vectors, _ = await batcher.embed("m", texts, task="Q")
            assert np.array_equal(vectors, np.stack([fake_vector(f"Q||{text}") for text in texts]))
            order.append(name)

        fake.gate.clear()
        large = asyncio.create_task(named("large", [f"large {n}" for n in range(20 * TURN)]))
        await until(fake.entered.is_set)
        small = asyncio.create_task(named("small", ["small"]))
        await asyncio.sleep(0.05)
        fake.gate.set()
        await asyncio.gather(large, small)
        batcher.close()

    asyncio.run(run())
    assert order == ["small", "large"]
    place = next(place for place, batch in enumerate(fake.batches) if "Q||small" in batch)
    assert place <= 3 < len(fake.batches) - 5


def test_one_that_fails_takes_no_other_with_it(fake: FakeModel) -> None:
    async def run() -> None:
        batcher = make(fake)
        fake.gate.clear()
        first = asyncio.create_task(batcher.embed("m", ["first"], task="Q"))
        await until(fake.entered.is_set)
        jobs = [batcher.embed("m", [text], task="Q") for text in ("good", "poison", "also good")]
        waiting = asyncio.gather(*jobs, return_exceptions=True)
        await asyncio.sleep(0.05)
        fake.gate.set()
        good, poison, also = await waiting
        await first
        assert isinstance(poison, RuntimeError)
        assert not isinstance(good, BaseException) and np.array_equal(good[0][0], fake_vector("Q||good"))
        assert not isinstance(also, BaseException) and np.array_equal(also[0][0], fake_vector("Q||also good"))
        assert batcher.queued_tokens == 0
        # One bad text ends its request, whose other turns are not computed.
        with pytest.raises(RuntimeError):
            await batcher.embed("m", ["poison", *map(str, range(10 * TURN))], task="Q")
        await until(lambda: batcher.queued_tokens == 0)
        assert batcher.alive
        batcher.close()

    asyncio.run(run())


def test_not_finite_is_an_error(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "run", lambda items: np.full((len(items), 8), np.nan, dtype=np.float32))

    async def run() -> None:
        batcher = make(fake)
        with pytest.raises(NonFiniteError, match="NaN"):
            await batcher.embed("m", ["a"], task="Q")
        batcher.close()

    asyncio.run(run())


@pytest.mark.parametrize("raised", [False, True])
def test_a_text_without_a_vector_is_named_to_its_request(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch, raised: bool
) -> None:
    monkeypatch.setattr(fake, "run", broken_run(fake.run, raised=raised))

    async def run() -> None:
        batcher = make(fake)
        fake.gate.clear()
        first = asyncio.create_task(batcher.embed("m", ["first"], task="Q"))
        await until(fake.entered.is_set)
        good = [f"good {n}" for n in range(3 * TURN)]
        late = [*good[: TURN + 5], "hollow", "x"]
        jobs = [
            batcher.embed("m", good, task="Q"),
            batcher.embed("m", ["a", "b", "hollow", "c", "hollow"], task="Q"),
            batcher.embed("m", late, task="Q"),
            batcher.embed_together("m", [Asked(["a", "b"], "Q"), Asked(["c", "hollow"], "D")]),
            batcher.embed("m", ["d"], task="Q"),
        ]
        waiting = asyncio.gather(*jobs, return_exceptions=True)
        await asyncio.sleep(0.05)
        fake.gate.set()
        many, *failed, one = await waiting
        await first
        assert [type(error) for error in failed] == [NonFiniteError] * 3
        assert [getattr(error, "index", None) for error in failed] == [2, TURN + 5, 3]
        for found, texts in ((many, good), (one, ["d"])):
            assert isinstance(found, tuple)
            assert np.array_equal(found[0], np.stack([fake_vector(f"Q||{text}") for text in texts]))
        await until(lambda: batcher.queued_tokens == 0)
        batcher.close()

    asyncio.run(run())


def test_queue_limit(fake: FakeModel) -> None:
    async def run() -> None:
        batcher = make(fake, max_queue_tokens=50)
        fake.gate.clear()
        over = asyncio.create_task(batcher.embed("m", ["x" * 40] * 10, task="Q"))  # alone it may exceed the limit
        await until(fake.entered.is_set)
        with pytest.raises(QueueFullError) as caught:
            await batcher.embed("m", ["y"], task="Q")
        assert caught.value.retry_after >= 1
        fake.gate.set()
        await over
        assert len((await batcher.embed("m", ["y"], task="Q"))[0]) == 1
        batcher.close()

    asyncio.run(run())


def test_who_leaves_leaves_the_queue(fake: FakeModel) -> None:
    async def run() -> None:
        batcher = make(fake, batch_tokens=30)
        fake.gate.clear()
        first = asyncio.create_task(batcher.embed("m", ["first", *["later"] * 500], task="Q"))
        await until(fake.entered.is_set)
        waits = asyncio.create_task(batcher.embed("m", ["never computed"], task="Q"))
        await asyncio.sleep(0.05)
        for task in (first, waits):
            task.cancel()
        await asyncio.gather(first, waits, return_exceptions=True)
        fake.gate.set()
        await until(lambda: batcher.queued_tokens == 0)
        await batcher.embed("m", ["last"], task="Q")
        batcher.close()

    asyncio.run(run())
    assert len(fake.batches) == 2
    assert fake.batches[-1] == ["Q||last"]


def test_closing_finishes_what_was_accepted(fake: FakeModel) -> None:
    async def run() -> None:
        batcher = make(fake, batch_tokens=20)
        fake.gate.clear()
        jobs = [asyncio.create_task(batcher.embed("m", [f"text {n}"], task="Q")) for n in range(30)]
        await until(fake.entered.is_set)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await asyncio.sleep(0.05)
        with pytest.raises(ClosedError):
            await batcher.embed("m", ["late"], task="Q")
        fake.gate.set()
        results = await asyncio.gather(*jobs)
        await closing
        assert [np.array_equal(v[0], fake_vector(f"Q||text {n}")) for n, (v, _) in enumerate(results)] == [True] * 30
        assert not batcher.alive

    asyncio.run(run())


def test_two_models_take_turns() -> None:
    one, two = FakeModel(), FakeModel()

    async def run() -> None:
        batcher = make({"one": one, "two": two}, batch_tokens=60)
        one.gate.clear()
        jobs = [
            asyncio.create_task(batcher.embed(("one", "two")[n % 2], [f"text {n}"] * 40, task="Q")) for n in range(12)
        ]
        await until(one.entered.is_set)
        one.gate.set()
        results = await asyncio.gather(*jobs)
        assert all(np.array_equal(v[0], fake_vector(f"Q||text {n}")) for n, (v, _) in enumerate(results))
        batcher.close()

    asyncio.run(run())
    assert len(one.batches) > 3 and len(two.batches) > 3


def test_the_parts_of_a_request_are_let_in_together(fake: FakeModel) -> None:
    asked = [Asked([f"{task}{number}" * 20 for number in range(10)], task) for task in ("Q", "D")]

    async def run() -> None:
        batcher = make(fake, max_queue_tokens=50)
        for vectors, tokens in await batcher.embed_together("m", asked):  # alone they may exceed the limit
            assert len(vectors) == 10
            assert tokens > 0
        assert batcher.queued_tokens == 0
        fake.gate.clear()
        fake.entered.clear()
        first = asyncio.create_task(batcher.embed("m", ["first"], task="Q"))
        await until(fake.entered.is_set)
        with pytest.raises(QueueFullError):
            await batcher.embed_together("m", asked)
        fake.gate.set()
        await first
        with pytest.raises(RuntimeError, match="broke"):
            await batcher.embed_together("m", [Asked(["good"], "Q"), Asked(["poison"], "D")])
        await until(lambda: batcher.queued_tokens == 0)
        batcher.close()

    asyncio.run(run())
