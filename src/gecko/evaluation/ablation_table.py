"""From each query's values to the tables of an ablation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gecko.core.records import Query
from gecko.evaluation.ablation_grid import Cell
from gecko.evaluation.evaluate import HEADLINE
from gecko.evaluation.metrics import Array, descending, paired, per_query

AGREEMENT = "agreement with the teacher"
RESAMPLES = 10_000


def table(
    cells: Sequence[Cell],
    values: Mapping[str, Sequence[Mapping[str, list[float]]]],
    sizes: Mapping[str, int],
    base: Mapping[str, list[float]],
    names: Sequence[str],
) -> dict[str, Any]:
    """``headline``, ``start`` and ``cells`` of a result, from each query's values: of the start, of cells by seed."""
    averaged = {
        label: {name: np.mean([one[name] for one in found], axis=0).tolist() for name in found[0]}
        for label, found in values.items()
    }
    agreed = AGREEMENT in base
    rows = []
    for cell in cells:
        found, reference = averaged[cell.label], averaged.get(f"{cell.group}/{cell.reference}")
        seeds = [macro(arrays(one, names)) for one in values[cell.label]]
        row: dict[str, Any] = {
            "group": cell.group,
            "name": cell.name,
            "rows": sizes[cell.label],
            "score": float(np.mean(seeds)),
            "seeds": seeds,
            **_against("start", found, base, names),
            "reference": cell.reference if reference is not None else None,
            **(_against("reference", found, reference, names) if reference is not None else {}),
            "sets": {name: float(np.mean(row)) for name, row in found.items() if name != AGREEMENT},
            "agreement": None,
        }
        if agreed:
            mean = float(np.mean(found[AGREEMENT]))
            row["agreement"] = {"score": mean, **_difference(found, base, [AGREEMENT])}
        rows.append(row)
    start = {
        "score": macro(arrays(base, names)),
        "agreement": float(np.mean(base[AGREEMENT])) if agreed else None,
    }
    return {"headline": f"macro {HEADLINE}" if names else AGREEMENT, "start": start, "cells": rows}


def arrays(values: Mapping[str, Sequence[float]], names: Sequence[str]) -> list[Array]:
    """The values of the named sets; without one, agreement with the teacher."""
    return [np.array(values[name]) for name in names or [AGREEMENT]]


def _against(
    name: str, found: Mapping[str, Sequence[float]], base: Mapping[str, Sequence[float]], names: Sequence[str]
) -> dict[str, Any]:
    return {f"{key}_{name}": value for key, value in _difference(found, base, names).items()}


def _difference(
    found: Mapping[str, Sequence[float]], base: Mapping[str, Sequence[float]], names: Sequence[str]
) -> dict[str, Any]:
    """Of the macro means, with its paired 95 % interval."""
    pairs = zip(arrays(found, names), arrays(base, names), strict=True)
    return paired([ours - theirs for ours, theirs in pairs], RESAMPLES)


def macro(values: Sequence[Array]) -> float:
    """The mean over the sets of the mean over each set's queries."""
    return float(np.mean([row.mean() for row in values]))


def merged(rows: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """What was measured on the test sets of several runs, as if they were one's."""
    return {name: values for row in rows for name, values in row.items() if name != AGREEMENT}


def order_rows(
    queries: Sequence[Query], orders: Mapping[str, Mapping[str, Sequence[str]]], qrels: Mapping[str, Mapping[str, int]]
) -> list[dict[str, Any]]:
    """A row for each order (by name, passage ids by query id, best first); the first is what the others are held against.

    Some of the queries were written for a passage, and of some there are judgements.
    """
    rows: list[dict[str, Any]] = []
    base: Array | None = None
    for name, ranked in orders.items():
        ranks = np.array([ranked[query.id].index(query.seed_id) + 1 for query in queries if not query.asked])
        ahead = {"delta": None, "ci95": None} if base is None else paired([1 / ranks - base], RESAMPLES)
        base = 1 / ranks if base is None else base
        run = {key: descending(ranked[key]) for key in qrels}
        rows.append(
            {
                "order": name,
                "queries": len(ranks),
                "seed_mrr": float((1 / ranks).mean()),
                **ahead,
                "seed_first": float((ranks == 1).mean()),
                "judged": len(qrels),
                HEADLINE: float(per_query(run, qrels, (HEADLINE,))[HEADLINE].mean()) if qrels else None,
            }
        )
    return rows


def width_rows(
    models: Mapping[int, Mapping[str, list[float]]],
    starts: Mapping[int, Mapping[str, list[float]]],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """A row for each width of a model, held against the start model where that was measured at the same width."""
    rows = []
    for width, found in models.items():
        row: dict[str, Any] = {"dim": width, "score": macro(arrays(found, names))}
        if width in starts:
            row |= {"start": macro(arrays(starts[width], names)), **_difference(found, starts[width], names)}
        rows.append(row)
    return rows
