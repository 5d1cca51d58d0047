"""Which rows make a batch: each from one set, the sets by weight and temperature, rows of like length together.

A batch of one set has only negatives that are hard to tell from the positive by their style (a tweet among abstracts is
no lesson). The order is a pure function of seed and epoch, so a training that was killed finds its place again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from sentence_transformers.base.sampler import SetEpochMixin
from torch.utils.data import BatchSampler

from gecko.core.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How batches are drawn from several sets.

    Attributes:
        weights: by set; a set that is not named has 1. With temperature 1, a weight is the number of passes through
            the set in an epoch, but for a common factor that keeps the number of batches.
        temperature: T; a set of b batches gets a share proportional to weight · b^(1/T). 1: by size; large: all alike.
        bucket: rows of this many batches are sorted by length and cut into batches of like length; 0: they are not.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    bucket: int = 0


def batches_by_set(sizes: Mapping[str, int], batch: int, sampling: Sampling) -> dict[str, int]:
    """How many batches of each set an epoch has: as many in all as it takes to see every row of the sets once.

    Every set with a weight above 0 has at least one; ``sizes`` are rows, at least 1. Raises TrainingError: a weight names
    a set that is not there, or no weight is above 0.
    """
    if unknown := sorted(sampling.weights.keys() - sizes.keys()):
        raise TrainingError(f"weights for {', '.join(unknown)}, but the sets are {', '.join(sizes)}")
    drawn = [name for name in sizes if sampling.weights.get(name, 1.0) > 0]
    if not drawn:
        raise TrainingError(f"all sets ({', '.join(sizes)}) have the weight 0; give one of them more")
    natural = np.array([-(-sizes[name] // batch) for name in drawn])
    weights = np.array([sampling.weights.get(name, 1.0) for name in drawn])
    shares = weights * natural ** (1.0 / sampling.temperature)
    exact = shares / shares.sum() * natural.sum()
    counts = np.floor(exact + 1e-9).astype(int)
    largest_remainder = np.argsort(-(exact - counts), kind="stable")
    counts[largest_remainder[: natural.sum() - counts.sum()]] += 1
    return dict(zip(drawn, np.maximum(counts, 1).tolist(), strict=True))


class SetBatches(SetEpochMixin, BatchSampler):
    """The batches of an epoch as lists of row numbers, each from one set.

    A set that is drawn more often than it has batches is shuffled and begun again; of one that is drawn more seldom, each
    epoch sees another part. With several processes, each takes an equal part of the same batch, so that the gathered
    batch is still of one set.

    Args:
        sets: the set of each row.
        lengths: of each row, in any unit.
        batch: rows of a batch, of each process.
        sampling: weights, temperature and buckets.
        seed: of the order.
        processes: that share a batch.

    Raises:
        TrainingError: as for :func:`batches_by_set`.
    """

    def __init__(
        self,
        sets: Sequence[str],
        lengths: Sequence[int],
        batch: int,
        sampling: Sampling,
        seed: int,
        processes: int = 1,
    ) -> None:
        super().__init__(range(len(sets)), batch_size=batch, drop_last=False)
        self.processes = processes
        self.sampling = sampling
        self.seed = seed
        self.lengths = np.asarray(lengths)  # (rows,)
        named = np.asarray(sets)
        self.rows = {name: np.flatnonzero(named == name) for name in dict.fromkeys(sets)}
        sizes = {name: len(rows) for name, rows in self.rows.items()}
        if processes > 1 and (small := [name for name, size in sizes.items() if size < processes]):
            raise TrainingError(f"set {small[0]!r} has {sizes[small[0]]} rows for {processes} processes; give it more")
        self.counts = batches_by_set(sizes, batch * processes, sampling)

    def __len__(self) -> int:
        return sum(self.counts.values()) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        drawn = [rows for name, count in self.counts.items() for rows in self._draw(self.rows[name], count, rng)]
        for place in rng.permutation(len(drawn)):
            rows = drawn[place]
            equal = len(rows) // self.processes  # the gathering of embeddings needs parts of one size
            for process in range(self.processes):
                yield rows[process : equal * self.processes : self.processes].tolist()

    def _draw(self, rows: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
        batches: list[np.ndarray] = []
        while len(batches) < count:
            once = self._shuffled(rows, rng)
            batches += [once[place] for place in rng.permutation(len(once))]
        return batches[:count]

    def _shuffled(self, rows: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """All rows of a set, cut into batches."""
        batch = self.batch_size * self.processes
        order = rng.permutation(rows)
        pool = max(1, self.sampling.bucket) * batch
        batches = []
        for start in range(0, len(order), pool):
            part = order[start : start + pool]
            if self.sampling.bucket:
                part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += [part[first : first + batch] for first in range(0, len(part), batch)]
        if self.processes > 1 and len(batches[-1]) < self.processes and len(batches) > 1:
            batches.pop()
        return batches
