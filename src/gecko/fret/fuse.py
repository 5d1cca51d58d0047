"""Ranks and their fusion: ``R(q, p) = 1/r_QL + 1/r_RC``, ranks from 1, without the usual constant 60.

All of it happens after the teacher was paid, on stored scores, so another fusion never costs another LLM call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np

from gecko.records import Candidate, Score


@dataclass(frozen=True)
class Label:
    """One candidate of a query with all that is known of it."""

    passage_id: str
    retriever_rank: int
    ql: float
    rc: float
    ql_rank: int
    rc_rank: int
    fused: float


def ranks(values: Sequence[float], ties: Sequence[tuple[int, str]]) -> np.ndarray:
    """Ranks from 1, the largest value first; equal values in the order of ``ties`` (retriever rank, id)."""
    order = sorted(range(len(values)), key=lambda index: (-values[index], ties[index]))
    result = np.empty(len(values), dtype=np.int64)
    result[order] = np.arange(1, len(values) + 1)
    return result


def fuse(
    candidates: Sequence[Candidate],
    scores: dict[str, Score],
    fusion: Literal["rrf", "ql", "rc"] = "rrf",
    constant: float = 0.0,
) -> list[Label]:
    """The candidates of one query in fused order, best first.

    Args:
        candidates: all N of them.
        scores: by passage id; QL is the mean log-probability of a query token.
        fusion: both by reciprocal rank, or one alone.
        constant: added to the ranks; 0 in the paper.
    """
    ties = [(candidate.rank, candidate.passage_id) for candidate in candidates]
    ql = [scores[c.passage_id].ql_sum / scores[c.passage_id].ql_tokens for c in candidates]
    rc = [scores[c.passage_id].rc for c in candidates]
    ql_ranks, rc_ranks = ranks(ql, ties), ranks(rc, ties)
    match fusion:
        case "rrf":
            fused = 1 / (constant + ql_ranks) + 1 / (constant + rc_ranks)
        case "ql":
            fused = 1 / (constant + ql_ranks)
        case "rc":
            fused = 1 / (constant + rc_ranks)
        case _:
            assert_never(fusion)
    labels = [
        Label(c.passage_id, c.rank, ql[i], rc[i], int(ql_ranks[i]), int(rc_ranks[i]), float(fused[i]))
        for i, c in enumerate(candidates)
    ]
    return sorted(labels, key=lambda label: (-label.fused, label.retriever_rank, label.passage_id))
