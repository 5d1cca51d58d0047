"""What ``/metrics`` says, in the text format of Prometheus."""

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gecko.serving.batcher import Batch

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counts of one server; ``queued_tokens`` reads the length of the queue."""

    def __init__(self, queued_tokens: Callable[[], float]) -> None:
        self._registry = registry = CollectorRegistry()
        counter, histogram = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        self.accepted = counter("gecko_requests_accepted", "Requests whose head was read.")
        self.answered = counter("gecko_requests", "Requests answered, by route and status.", ("route", "status"))
        self.left = counter("gecko_requests_left", "Requests whose client went before the answer.")
        head = "From the request's head to its answer."
        self.seconds = histogram("gecko_request_seconds", head, ("route",), buckets=_SECONDS)
        model = "Time in the model of a batch."
        self.batch_seconds = histogram("gecko_batch_seconds", model, ("model",), buckets=_SECONDS)
        self.batch_texts = histogram("gecko_batch_texts", "Texts of a batch.", ("model",), buckets=_TEXTS)
        self.tokens = counter("gecko_tokens", "Tokens read by the model.", ("model",))
        queue = Gauge("gecko_queue_tokens", "Tokens that wait or are computed, estimated.", registry=registry)
        queue.set_function(queued_tokens)

    def batch(self, batch: Batch) -> None:
        """Count a finished batch."""
        self.batch_seconds.labels(batch.model).observe(batch.seconds)
        self.batch_texts.labels(batch.model).observe(batch.texts)
        self.tokens.labels(batch.model).inc(batch.tokens)

    def text(self) -> bytes:
        """All counts."""
        return generate_latest(self._registry)

    def summary(self) -> str:
        """How many requests were accepted, answered, and left by their clients before the answer."""
        counts = (_total(counter) for counter in (self.accepted, self.answered, self.left))
        return "{:.0f} requests accepted, {:.0f} answered, {:.0f} left".format(*counts)


def _total(counter: Counter) -> float:
    samples = (sample for family in counter.collect() for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))
