"""Step 2 of FRet: the initial embedder's N nearest passages of each query, the seed among them."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gecko.core.records import Candidate, Query
from gecko.encoder.nearest import top_k_parts


def mine(
    queries: Sequence[Query],
    query_vectors: np.ndarray,
    ids: Sequence[str],
    parts: Sequence[Callable[[], np.ndarray]],
    n: int,
) -> Iterator[Candidate]:
    """The candidates of each of Q queries, first to last: ``n`` of P passages.

    ``query_vectors`` are (Q, d) unit rows, and ``parts`` how to come by each part of the passages' vectors, (P, d) unit
    rows in all. A seed that is not among the N nearest takes place N, with its own score, and is marked as not natural. A
    query that somebody asked has none.
    """
    place = {identifier: index for index, identifier in enumerate(ids)}
    found, scores = top_k_parts(query_vectors, parts, min(n, len(ids)))
    seeds = sorted({place[query.seed_id] for query in queries if not query.asked})
    own = dict(zip(seeds, _rows(parts, seeds), strict=True))
    for row, query in enumerate(queries):
        indices, values = found[row].tolist(), scores[row].tolist()
        seed = None if query.asked else place[query.seed_id]
        natural = seed is None or seed in indices
        if seed is not None and not natural:
            indices[-1], values[-1] = seed, float(query_vectors[row] @ own[seed])
        for rank, (index, value) in enumerate(zip(indices, values, strict=True), start=1):
            yield Candidate(query.id, ids[index], rank, value, natural or index != seed)


def _rows(parts: Sequence[Callable[[], np.ndarray]], places: Sequence[int]) -> Iterator[np.ndarray]:
    """The vectors at some places, which are in ascending order."""
    start = 0
    for part in parts:
        vectors = part()
        yield from (vectors[place - start] for place in places if start <= place < start + len(vectors))
        start += len(vectors)
