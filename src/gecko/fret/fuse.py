"""Ranks and their fusion: ``R(q, p) = 1/r_QL + 1/r_RC``, ranks from 1, without the usual constant 60.

All of it happens after the teacher was paid, on stored scores, so another fusion never costs another LLM call.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np

from gecko.core.errors import RunError
from gecko.core.records import Candidate, Score

Fusion = Literal["rrf", "rrf+retriever", "ql", "rc"]


@dataclass(frozen=True)
class Label:
    """One candidate of a query with all that is known of it; ``ql`` is NaN where no teacher gave any.

    Of several teachers the scores and the ranks are means.
    """

    passage_id: str
    retriever_rank: int
    ql: float
    rc: float
    ql_rank: float
    rc_rank: float
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
    others: Sequence[dict[str, Score]] = (),
) -> list[Label]:
    """The candidates of one query in fused order, best first.

    Args:
        candidates: all N of them.
        scores: by passage id; QL is the mean log-probability of a query token.
        fusion: QL and RC by reciprocal rank, the same with the retriever's rank as a third, or one alone.
        constant: added to the ranks; 0 in the paper.
        others: the scores of further teachers; a candidate's rank is the mean of its ranks by each. One that gave no
            likelihood counts for RC alone.

    Raises:
        RunError: a likelihood is asked for, and no teacher gave any.
    """
    ties = [(candidate.rank, candidate.passage_id) for candidate in candidates]
    tables = [scores, *others]
    ql_rows = [[_likelihood(table[c.passage_id]) for c in candidates] for table in tables]
    ql_rows = [row for row in ql_rows if not any(map(math.isnan, row))]
    if fusion != "rc" and not ql_rows:
        raise RunError(f"these scores hold no query likelihood, and fusion {fusion!r} needs it; set select.fusion=rc")
    rc_rows = [[table[c.passage_id].rc for c in candidates] for table in tables]
    unknown = [[math.nan] * len(candidates)]
    ql, rc = np.mean(ql_rows or unknown, axis=0), np.mean(rc_rows, axis=0)
    ql_ranks = np.mean([ranks(row, ties) for row in ql_rows or [[0.0] * len(candidates)]], axis=0)
    rc_ranks = np.mean([ranks(row, ties) for row in rc_rows], axis=0)
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
        Label(c.passage_id, c.rank, *(float(column[i]) for column in (ql, rc, ql_ranks, rc_ranks, fused)))
        for i, c in enumerate(candidates)
    ]
    return sorted(labels, key=lambda label: (-label.fused, label.retriever_rank, label.passage_id))


def standardized(labels: Sequence[Label]) -> list[float]:
    """The mean of QL and RC of one query's candidates, each with mean 0 and deviation 1 over them; RC where there is no QL.

    A rank says nothing of distances: two passages that answer equally well are as far apart by rank as an answer and a
    near miss. These scores keep the distances, on one scale for all queries. Of a teacher that gave an order alone, the
    places are taken.
    """
    columns = np.array([[label.ql for label in labels], [label.rc for label in labels]])
    columns = columns[~np.isnan(columns).any(axis=1)]
    if not len(columns):
        columns = -np.array([[label.rc_rank for label in labels]])
    deviations = columns.std(axis=1, keepdims=True)
    scores = (columns - columns.mean(axis=1, keepdims=True)) / np.where(deviations > 0, deviations, 1)
    return [float(score) for score in scores.mean(axis=0)]


def _likelihood(score: Score) -> float:
    """Mean log-probability of a query token."""
    return score.ql_sum / score.ql_tokens if score.ql_tokens else math.nan
