"""How far a model agrees with the teacher, on queries that were kept from training.

This is agreement, not relevance: it says whether the student learned what it was taught.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from gecko.core.records import Passage, Query
from gecko.evaluation.cache import SupportsEmbedding
from gecko.evaluation.metrics import Array
from gecko.fret.fuse import Label

CUT = 10


def agreement(
    queries: Sequence[Query],
    labels: Mapping[str, Sequence[Label]],
    passages: Mapping[str, Passage],
    encoder: SupportsEmbedding,
) -> Array:
    """nDCG@10 of the model's order of each query's candidates, with the teacher's fused scores as gains.

    ``labels`` has each query's candidates in fused order, best first. Returns (Q,) values on 0–1 for Q held-out queries;
    1 is the teacher's own order.
    """
    if not queries:
        return np.zeros(0)
    wanted = sorted({label.passage_id for query in queries for label in labels[query.id]})
    place = {identifier: index for index, identifier in enumerate(wanted)}
    vectors = encoder.passages([passages[identifier] for identifier in wanted])
    asked = encoder.queries([query.text for query in queries], [query.task for query in queries])
    values = []
    for query, vector in zip(queries, asked, strict=True):
        gains = np.array([label.fused for label in labels[query.id]])
        cosines = vectors[[place[label.passage_id] for label in labels[query.id]]] @ vector
        order = np.argsort(-cosines, kind="stable")
        discount = 1 / np.log2(np.arange(2, min(CUT, len(gains)) + 2))
        values.append(float((gains[order][:CUT] * discount).sum() / (np.sort(gains)[::-1][:CUT] * discount).sum()))
    return np.array(values)
