"""Ranks and their fusion: ``R(q, p) = 1/r_QL + 1/r_RC``, ranks from 1, without the usual constant 60.

All of it happens after the teacher was paid, on stored scores, so another fusion never costs another LLM call.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np

from gecko.errors import RunError
from gecko.records import Candidate, Score

Fusion = Literal["rrf", "rrf+retriever", "ql", "rc"]


@dataclass(frozen=True)
class Label:
    """One candidate of a query with all that is known of it; ``ql`` is NaN where the teacher gave none."""

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
    fusion: Fusion = "rrf",
    constant: float = 0.0,
) -> list[Label]:
    """The candidates of one query in fused order, best first.

    Args:
        candidates: all N of them.
        scores: by passage id; QL is the mean log-probability of a query token.
        fusion: QL and RC by reciprocal rank, the same with the retriever's rank as a third, or one alone.
        constant: added to the ranks; 0 in the paper.

    Raises:
        RunError: a likelihood is asked for, and the teacher that made the scores gave none.
    """
    ties = [(candidate.rank, candidate.passage_id) for candidate in candidates]
    ql = [_likelihood(scores[c.passage_id]) for c in candidates]
    if fusion != "rc" and any(math.isnan(value) for value in ql):
        raise RunError(f"these scores hold no query likelihood, and fusion {fusion!r} needs it; set select.fusion=rc")
    rc = [scores[c.passage_id].rc for c in candidates]
    ql_ranks, rc_ranks = ranks(ql, ties), ranks(rc, ties)
    match fusion:
        case "rrf":
            fused = 1 / (constant + ql_ranks) + 1 / (constant + rc_ranks)
        case "rrf+retriever":
            retriever = np.array([candidate.rank for candidate in candidates])
            fused = 1 / (constant + ql_ranks) + 1 / (constant + rc_ranks) + 1 / (constant + retriever)
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


def _likelihood(score: Score) -> float:
    """Mean log-probability of a query token."""
    return score.ql_sum / score.ql_tokens if score.ql_tokens else math.nan
