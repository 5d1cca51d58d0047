"""Ranks and their fusion: ``R(q, p) = 1/r_QL + 1/r_RC``, ranks from 1, without the usual constant 60.

All of it happens after the teacher was paid, on stored scores, so another fusion never costs another LLM call.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np

from gecko.core.errors import RunError
from gecko.core.records import Candidate, Grade, Judged, Place, Score

Fusion = Literal["rrf", "rrf+retriever", "ql", "rc"]


@dataclass(frozen=True)
class Label:
    """One candidate of a query with all that is known of it.

    Of several teachers the scores and the ranks are means. ``ql`` is NaN where no teacher gave any, and ``rc``, the log-odds
    of relevance, where none was asked whether this pair is relevant: an order says so of its first alone.
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
    scores: Mapping[str, Judged],
    fusion: Fusion = "rrf",
    constant: float = 0.0,
    others: Sequence[Mapping[str, Judged]] = (),
) -> list[Label]:
    """The candidates of one query in fused order, best first.

    Args:
        candidates: all N of them.
        scores: by passage id; QL is the mean log-probability of a query token.
        fusion: QL and RC by reciprocal rank, the same with the retriever's rank as a third, or one alone.
        constant: added to the ranks; 0 in the paper.
        others: the scores of further teachers; a candidate's rank is the mean of its ranks by each. One that gave no
            likelihood counts for RC alone. Where all judged by answers, their one rank stands for both.

    Raises:
        RunError: a likelihood is asked for, and no teacher gave any.
    """
    ties = [(candidate.rank, candidate.passage_id) for candidate in candidates]
    tables = [scores, *others]
    ql_rows = [[_likelihood(table[c.passage_id]) for c in candidates] for table in tables]
    ql_rows = [row for row in ql_rows if not any(map(math.isnan, row))]
    by_answers = not any(isinstance(table[c.passage_id], Score) for table in tables for c in candidates)
    if not ql_rows and (fusion == "ql" or (fusion != "rc" and not by_answers)):
        raise RunError(f"these scores hold no query likelihood, and fusion {fusion!r} needs it; set select.fusion=rc")
    rc_rows = [[log_odds(table[c.passage_id]) for c in candidates] for table in tables]
    orders = [ranks([_standing(table[c.passage_id]) for c in candidates], ties) for table in tables]
    ql = np.mean(ql_rows or [[math.nan] * len(candidates)], axis=0)
    rc = np.array([_mean_known(column) for column in zip(*rc_rows, strict=True)])
    rc_ranks = np.mean(orders, axis=0)
    ql_orders = [ranks(row, ties) for row in ql_rows or [[0.0] * len(candidates)]]
    ql_ranks = rc_ranks if by_answers else np.mean(ql_orders, axis=0)
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


def _likelihood(score: Judged) -> float:
    """Mean log-probability of a query token."""
    return score.ql_sum / score.ql_tokens if isinstance(score, Score) and score.ql_tokens else math.nan


def log_odds(judged: Judged) -> float:
    """Of relevance against its contrary; above 0 is relevant. NaN: the teacher was not asked for it.

    An answer is taken for the middle of its part of the scale: grade ``g`` of 0 to 3 for ``(g + 1/2) / 4``, no and yes for
    1/4 and 3/4. So grades of 2 and more are above 0, and none is infinite.
    """
    match judged:
        case Score():
            return judged.rc
        case Grade():
            return _odds_of(judged.grade, 4)
        case Place():
            return math.nan if judged.relevant is None else _odds_of(int(judged.relevant), 2)
        case _:
            assert_never(judged)


def _odds_of(step: int, steps: int) -> float:
    return math.log((step + 0.5) / (steps - step - 0.5))


def _standing(judged: Judged) -> float:
    """What candidates are ranked by, the highest first."""
    match judged:
        case Score():
            return judged.rc
        case Grade():
            return float(judged.grade)
        case Place():
            return -float(judged.first + judged.second)
        case _:
            assert_never(judged)


def _mean_known(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
