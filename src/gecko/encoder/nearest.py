"""Exact nearest neighbours by inner product, the same on every run.

A score and its passage's place are packed into one 64-bit key: the score's bits, made to sort like numbers, above the
place, counted backwards. Then the k largest keys are the k best passages with ties in passage order, and a partition,
which promises nothing about ties by itself, becomes exact. Passages are taken in blocks; after the first, only those
that beat the worst one kept are packed. Keys of several parts of a corpus, each searched on its own, merge in the same way.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from gecko.core.errors import EvaluationError

Scores = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

QUERY_BLOCK = 256
PASSAGE_BLOCK = 4096  # a block of scores is 4 MiB, its keys 8
CHECKED = 1 << 16  # rows looked at together for numbers that are not finite

PART = 64 * PASSAGE_BLOCK  # passages of a part: 400 MB at 384 dimensions

_SIGN = np.uint32(1 << 31)
_LAST = np.uint64((1 << 32) - 1)


def top_k(queries: Scores, passages: Scores, k: int) -> tuple[Places, Scores]:
    """The best k of m passages (all if there are fewer) for each of n queries, float32 (m, d) and (n, d), m below 2**32.

    Returns int64 (n, min(k, m)) places in ``passages``, best first, equal scores in passage order, and float32 inner
    products of the same shape. Raises EvaluationError: shapes differ, k is below 1, or a number is not finite.
    """
    if queries.ndim != 2 or passages.ndim != 2 or queries.shape[1] != passages.shape[1]:
        raise EvaluationError(f"vectors do not match: queries {queries.shape}, passages {passages.shape}")
    if k < 1:
        raise EvaluationError(f"k = {k}: give at least 1")
    for name, vectors in (("queries", queries), ("passages", passages)):
        if not all(np.isfinite(vectors[start : start + CHECKED]).all() for start in range(0, len(vectors), CHECKED)):
            raise EvaluationError(f"the vectors of the {name} hold NaN or infinity; the model is broken")
    kept = min(k, len(passages))
    places = np.empty((len(queries), kept), dtype=np.int64)
    scores = np.empty((len(queries), kept), dtype=np.float32)
    for row in range(0, len(queries), QUERY_BLOCK):
        block = queries[row : row + QUERY_BLOCK]
        best = np.empty((len(block), 0), dtype=np.uint64)
        for start in range(0, len(passages), PASSAGE_BLOCK):
            products = block @ passages[start : start + PASSAGE_BLOCK].T  # (queries, passages of the block)
            if best.shape[1] < kept:
                keys = pack(products, np.arange(start, start + products.shape[1]))
            else:
                keys = _challengers(products, start, unpack(best[:, -1])[1])
            best = largest(np.concatenate([best, keys], axis=1), kept)
        places[row : row + QUERY_BLOCK], scores[row : row + QUERY_BLOCK] = unpack(best)
    return places, scores


def cuts(passages: int, part: int | None = None) -> list[slice]:
    """Parts of a corpus that are searched in the blocks of the whole, so that even the rounding of a product is the same."""
    size = PART if part is None else part
    return [slice(start, start + size) for start in range(0, passages, size)]


def top_k_parts(queries: Scores, parts: Sequence[Callable[[], Scores]], k: int) -> tuple[Places, Scores]:
    """:func:`top_k` over passages that lie in several parts, of which one at a time is needed; a place counts through all.

    ``parts`` are, in order, how to come by each: float32 (m_i, d). Parts made by :func:`cuts` give the scores of one
    search to the bit; with others a product may be rounded otherwise.
    """
    best, start = np.empty((len(queries), 0), dtype=np.uint64), 0
    for part in parts:
        vectors = part()
        places, scores = top_k(queries, vectors, k)
        best = largest(np.concatenate([best, pack(scores, places + start)], axis=1), k)
        start += len(vectors)
    return unpack(best)


def pack(scores: Scores, places: Places) -> Keys:
    """Keys of scores and of places that broadcast to them; a larger key is a better passage."""
    bits = (scores + np.float32(0)).view(np.uint32)  # the sum turns -0 into 0
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN).astype(np.uint64)
    return (ordered << np.uint64(32)) | (_LAST - places.astype(np.uint64))


def _challengers(products: Scores, start: int, worst: Scores) -> Keys:
    """Keys of the scores above each row's worst, filled up with zeros; an equal score loses to the earlier passage."""
    rows, columns = np.nonzero(products > worst[:, None])
    counts = np.bincount(rows, minlength=len(products))
    keys = np.zeros((len(products), counts.max(initial=0)), dtype=np.uint64)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    keys[rows, np.arange(len(rows)) - first] = pack(products[rows, columns], start + columns)
    return keys


def unpack(keys: Keys) -> tuple[Places, Scores]:
    """The places and scores that keys were packed from."""
    ordered = (keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered)
    return (_LAST - (keys & _LAST)).astype(np.int64), bits.view(np.float32)


def largest(keys: Keys, k: int) -> Keys:
    """The k largest keys of each row, largest first."""
    if keys.shape[1] > k:
        keys = np.partition(keys, keys.shape[1] - k, axis=1)[:, -k:]
    return np.sort(keys, axis=1)[:, ::-1]
