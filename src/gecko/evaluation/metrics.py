"""Measures of a ranking, query by query, and paired intervals of their differences.

The measures are trec_eval's, through pytrec_eval. Equal scores rank in the order in which the run lists them, so that a
number does not hang on how ids are spelled.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gecko.core.errors import EvaluationError

Array = npt.NDArray[np.float64]
Run = Mapping[str, Mapping[str, float]]
Qrels = Mapping[str, Mapping[str, int]]

METRICS = ("ndcg@10", "recall@20", "recall@100", "mrr@10")

_MEASURES = {"ndcg": "ndcg_cut", "recall": "recall", "mrr": "recip_rank", "map": "map_cut"}
_BLOCK = 1 << 21  # resampled values held at once: 16 MiB of indices


def per_query(run: Run, qrels: Qrels, names: Sequence[str] = METRICS) -> dict[str, Array]:
    """Measures (``ndcg@K``, ``recall@K``, ``mrr@K`` or ``map@K``) of each judged query.

    In a run a higher score is better, and ties rank in the order listed. Returns for each name (queries,) on 0–1 in the
    order of ``qrels``; a query that the run lacks counts 0. Raises EvaluationError: a name is not known.
    """
    ranked = {query: _order(run.get(query, {})) for query in qrels}
    return {name: _measure(ranked, qrels, name) for name in names}


def _order(row: Mapping[str, float]) -> list[str]:
    return sorted(row, key=lambda passage: -row[passage])


def _measure(ranked: Mapping[str, list[str]], qrels: Qrels, name: str) -> Array:
    import pytrec_eval

    kind, _, depth = name.partition("@")
    if kind not in _MEASURES or not depth.isdigit() or int(depth) < 1:
        raise EvaluationError(f"measure {name!r} is not known; give ndcg@K, recall@K, mrr@K or map@K")
    measure = _MEASURES[kind]
    asked = measure if kind == "mrr" else f"{measure}.{depth}"
    key = measure if kind == "mrr" else f"{measure}_{depth}"
    # Places instead of scores: trec_eval holds scores in single precision and breaks ties by id.
    places = {
        query: {passage: float(-place) for place, passage in enumerate(order[: int(depth)])}
        for query, order in ranked.items()
        if order
    }
    judged = {query: dict(grades) for query, grades in qrels.items()}
    found = pytrec_eval.RelevanceEvaluator(judged, {asked}).evaluate(places) if places else {}
    return np.array([found[query][key] if query in found else 0.0 for query in qrels], dtype=np.float64)


def descending(order: Sequence[str]) -> dict[str, float]:
    """Scores that rank ``order`` as it stands."""
    return {identifier: float(-place) for place, identifier in enumerate(order)}


def bootstrap_ci(differences: Array, resamples: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % percentile interval (lower and upper end) of paired differences, by resampling queries.

    ``differences`` are (queries,) model minus baseline, in whose unit the result is. Raises EvaluationError: there are
    none.
    """
    return macro_ci([differences], resamples, seed)


def macro_ci(differences: Sequence[Array], resamples: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """The same for the mean over several sets, each weighing the same; queries are resampled within their set.

    ``differences`` has (queries,) of each set. Raises EvaluationError: there is no set, or one is empty.
    """
    if not differences or any(len(values) == 0 for values in differences):
        raise EvaluationError("an interval needs at least one judged query in every set")
    generator = np.random.default_rng(seed)
    means = np.mean([resampled_means(values, resamples, generator) for values in differences], axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.mean([values.mean() for values in differences])), float(low), float(high)


def paired(differences: Sequence[Array], resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """:func:`macro_ci` as results hold it: ``delta``, and ``ci95``, its two ends."""
    delta, *ends = macro_ci(differences, resamples, seed)
    return {"delta": delta, "ci95": ends}


def share_ci(
    parts: Sequence[Array], wholes: Sequence[Array], resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float] | None:
    """The share that one difference is of another, both macro means over several sets, with its 95 % percentile interval.

    ``parts`` has (queries,) of each set, say what a student gained on each query, ``wholes`` the same of the same
    queries, say what its teacher gained. A resample draws the same queries for both. None where the whole is not clearly
    above 0, since a share of it says nothing. Raises EvaluationError: there is no set, one is empty, or the two are not
    of the same queries.
    """
    if [len(values) for values in parts] != [len(values) for values in wholes]:
        raise EvaluationError("a share needs both differences of the same queries")
    if macro_ci(wholes, resamples, seed)[1] <= 0:
        return None
    generator = np.random.default_rng(seed)
    pairs = [np.stack(pair, axis=1) for pair in zip(parts, wholes, strict=True)]  # (queries, 2) of each set
    means = np.mean([resampled_means(values, resamples, generator) for values in pairs], axis=0)
    part, whole = np.mean([values.mean(axis=0) for values in pairs], axis=0)
    means = means[means[:, 1] > 0]  # the few resamples without a whole have no share
    low, high = np.percentile(means[:, 0] / means[:, 1], [2.5, 97.5])
    return float(part / whole), float(low), float(high)


def resampled_means(values: Array, resamples: int, generator: np.random.Generator) -> Array:
    """(resamples, …) means of resamples of the first axis, drawn with replacement."""
    rows = max(1, _BLOCK // len(values))
    means = np.empty((resamples, *values.shape[1:]), dtype=np.float64)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = generator.integers(0, len(values), size=(stop - start, len(values)))
        means[start:stop] = values[drawn].mean(axis=1)
    return means
