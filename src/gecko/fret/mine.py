"""Step 2 of FRet: the initial embedder's N nearest passages of each query, the seed among them."""

from collections.abc import Iterator, Sequence

import numpy as np

from gecko.encoder.search import top_k
from gecko.records import Candidate, Passage, Query


def mine(
    queries: Sequence[Query], query_vectors: np.ndarray, passages: Sequence[Passage], vectors: np.ndarray, n: int
) -> Iterator[Candidate]:
    """The candidates of each query, first to last.

    A seed that is not among the N nearest takes place N, with its own score, and is marked as not natural.

    Args:
        queries: Q queries.
        query_vectors: (Q, d) unit rows.
        passages: P passages.
        vectors: (P, d) unit rows.
        n: candidates a query.
    """
    place = {passage.id: index for index, passage in enumerate(passages)}
    found, scores = top_k(query_vectors, vectors, min(n, len(passages)))
    for row, query in enumerate(queries):
        indices, values = found[row].tolist(), scores[row].tolist()
        seed = place[query.seed_id]
        natural = seed in indices
        if not natural:
            indices[-1], values[-1] = seed, float(query_vectors[row] @ vectors[seed])
        for rank, (index, value) in enumerate(zip(indices, values, strict=True), start=1):
            yield Candidate(query.id, passages[index].id, rank, value, natural or index != seed)
