"""Dynamic batching: texts of all requests that wait go through the model together.

What is notable here:

* one thread runs the models; it takes its next batch itself, so that it never waits for the event loop
* a batch is filled by tokens, in turns of a few texts a request: a large request slows small ones, but stops none
* no waiting for company: while a batch is computed the next one gathers
* a request that has gone (timeout, disconnect) leaves the queue, and one that fails does not take others with it
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gecko.core.errors import NonFiniteError

if TYPE_CHECKING:
    from gecko.encoder.vectors import Vectors

TURN = 32  # texts of one request that go into a batch before the next request has its turn
_CHARS_PER_TOKEN = 4  # of English text, for the estimate by which work is queued
_SPECIAL = 2  # tokens that a tokenizer puts around a text
_PACE = 0.2  # weight of the newest batch in the running pace


class Model(Protocol):
    """What a server needs of :class:`gecko.encoder.Embedder`."""

    dim: int

    @property
    def max_tokens(self) -> int | None:
        """The window in tokens; none: no limit."""
        ...

    def prepare(self, texts: Sequence[str], *, task: str, title: Sequence[str] | None) -> Sequence[Any]:
        """Render and tokenise; each item has ``tokens``."""
        ...

    def run(self, items: Sequence[Any]) -> "Vectors":
        """Float32 (n, dim), unit rows. Raises NonFiniteError: a row is none; ``index`` is its item's place."""
        ...


class QueueFullError(Exception):
    """There is more work waiting than the server takes; in ``retry_after`` whole seconds there should be room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class ClosedError(Exception):
    """The batcher takes no more work."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a finished batch was: for metrics."""

    model: str
    texts: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Asked:
    """n texts of one request with one task, raw, n of one or more; n titles only where the task has them."""

    texts: Sequence[str]
    task: str
    titles: Sequence[str] | None = None


@dataclass(eq=False, slots=True)
class _Job:
    """An :class:`Asked` in the queue; made in the event loop."""

    model: str
    asked: Asked
    first: int  # texts of the request before these
    costs: list[int]
    vectors: "Vectors"
    left: int  # texts not computed yet
    tokens: int = 0
    done: int = 0  # texts taken into batches
    error: Exception | None = None
    future: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(eq=False)
class Batcher:
    """Embeds texts of many requests at once, in a thread of its own, about ``batch_tokens`` a batch.

    About ``max_queue_tokens`` may wait; one request may exceed it when nothing waits. ``observe`` is called in the event
    loop with each finished batch.
    """

    models: Mapping[str, Model]
    batch_tokens: int
    max_queue_tokens: int
    observe: Callable[[Batch], None] = lambda _batch: None

    def __post_init__(self) -> None:
        self._jobs: deque[_Job] = deque()
        self._queued = 0
        self._pace = 0.0  # estimated tokens a second
        self._wake = threading.Condition()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="gecko-encode", daemon=True)

    @property
    def queued_tokens(self) -> int:
        """Estimated tokens that wait or are computed."""
        return self._queued

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread. Call it in the event loop that will call :meth:`embed`."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """Finish what waits, take nothing more, and end the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    async def embed(
        self, model: str, texts: Sequence[str], *, task: str, titles: Sequence[str] | None = None
    ) -> tuple["Vectors", int]:
        """Embed texts of one task: :meth:`embed_together` of one :class:`Asked`."""
        [found] = await self.embed_together(model, [Asked(texts, task, titles)])
        return found

    async def embed_together(self, model: str, asked: Sequence[Asked]) -> list[tuple["Vectors", int]]:
        """Embed the parts of one request. Cancelling the call takes what has not been computed out of the queue.

        They are let into the queue all or none. Returns for each float32 (n, dim), unit rows; and the number of tokens
        that the model read. Raises QueueFullError: too much waits already. ClosedError: the server has stopped.
        NonFiniteError: the model has no vector for a text; ``index`` counts the texts of all parts. GeckoError: the model
        refuses the texts or the task.
        """
        encoder = self.models[model]
        window = encoder.max_tokens or 2**31
        jobs: list[_Job] = []
        first = 0
        for one in asked:
            costs = [min(window, _SPECIAL + -(-len(text) // _CHARS_PER_TOKEN)) for text in one.texts]
            vectors = np.empty((len(costs), encoder.dim), dtype=np.float32)
            jobs.append(_Job(model, one, first, costs, vectors, len(costs)))
            first += len(costs)
        cost = sum(sum(job.costs) for job in jobs)
        with self._wake:
            if self._closed:
                raise ClosedError("the server is stopping")
            if self._queued and self._queued + cost > self.max_queue_tokens:
                seconds = (self._queued + cost - self.max_queue_tokens) / self._pace if self._pace else 1
                raise QueueFullError(max(1, min(60, math.ceil(seconds))))
            self._queued += cost
            self._jobs.extend(jobs)
            self._wake.notify()
        try:
            await asyncio.gather(*(job.future for job in jobs))
        finally:
            for job in jobs:
                job.future.cancel()  # of one that is done it does nothing
                if job.future.cancelled():
                    self._forget(job)
        return [(job.vectors, job.tokens) for job in jobs]

    def _forget(self, job: _Job) -> None:
        with self._wake:
            if job in self._jobs:
                self._jobs.remove(job)
            self._queued -= sum(job.costs[job.done :])
            job.done = len(job.costs)  # a turn in flight puts it back only while something is left to take

    def _take(self) -> list[tuple[_Job, int, int]]:
        """The next batch: (job, first text, one past the last text), all of one model. Called with the lock held."""
        picks: list[tuple[_Job, int, int]] = []
        model = self._jobs[0].model
        others: list[_Job] = []
        budget = self.batch_tokens
        while self._jobs and budget > 0:
            job = self._jobs.popleft()
            if job.model != model:
                others.append(job)
                continue
            start = stop = job.done
            while stop < len(job.costs) and stop - start < TURN and (budget > 0 or not picks):
                budget -= job.costs[stop]
                stop += 1
            if stop > start:
                picks.append((job, start, stop))
                job.done = stop
            if stop < len(job.costs):
                self._jobs.append(job)
        # Jobs of the other model have waited longer than those that had a turn.
        self._jobs.extendleft(reversed(others))
        return picks

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._jobs and not self._closed:
                    self._wake.wait()
                if not self._jobs:
                    return
                picks = self._take()
            model = picks[0][0].model
            began = time.perf_counter()
            try:
                tokens = self._compute(model, picks)
            except Exception:
                tokens = sum(self._compute_alone(model, pick) for pick in picks)
            seconds = time.perf_counter() - began
            texts = sum(stop - start for _, start, stop in picks)
            self._finish(picks, seconds)
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._deliver, picks, Batch(model, texts, tokens, seconds))

    def _compute(self, model: str, picks: Sequence[tuple[_Job, int, int]]) -> int:
        encoder = self.models[model]
        prepared: list[Any] = []
        counts = []
        for job, start, stop in picks:
            asked = job.asked
            titles = None if asked.titles is None else asked.titles[start:stop]
            items = encoder.prepare(asked.texts[start:stop], task=asked.task, title=titles)
            counts.append(sum(item.tokens for item in items))
            prepared += items
        vectors = encoder.run(prepared)  # (texts, dim)
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise NonFiniteError("the model returned NaN or infinity", int(finite.argmin()))
        row = 0
        for (job, start, stop), tokens in zip(picks, counts, strict=True):
            job.vectors[start:stop] = vectors[row : row + stop - start]
            job.tokens += tokens
            row += stop - start
        return sum(counts)

    def _compute_alone(self, model: str, pick: tuple[_Job, int, int]) -> int:
        """One request's part of a batch that failed: the error is its own, or there is none."""
        job, start, _ = pick
        try:
            return self._compute(model, [pick])
        except NonFiniteError as error:
            job.error = NonFiniteError(str(error), job.first + start + error.index)
        except Exception as error:
            job.error = error
        return 0

    def _finish(self, picks: Sequence[tuple[_Job, int, int]], seconds: float) -> None:
        cost = sum(sum(job.costs[start:stop]) for job, start, stop in picks)
        pace = cost / max(seconds, 1e-6)
        self._pace = pace if not self._pace else (1 - _PACE) * self._pace + _PACE * pace
        with self._wake:
            self._queued -= cost

    def _deliver(self, picks: Sequence[tuple[_Job, int, int]], batch: Batch) -> None:
        self.observe(batch)
        for job, start, stop in picks:
            job.left -= stop - start
            if job.future.done():
                continue
            if job.error is not None:
                self._forget(job)
                job.future.set_exception(job.error)
            elif job.left == 0:
                job.future.set_result(None)
