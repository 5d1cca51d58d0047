"""A part of the rows that is not trained on, to see when training does harm."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gecko.config.mixture import FRET
from gecko.core.errors import TrainingError
from gecko.core.records import Example

LEAST = 2  # rows; one alone has no other row's texts to be told from


def hold_out(
    examples: Sequence[Example], share: float, seed: int, section: str = "train"
) -> tuple[list[int], list[int]]:
    """Places of the rows to train on, and of those held out: about ``share`` of the rows of FRet.

    Where there are none of FRet, it is of all sets. Rows that share a query or a positive stay together, so that what is
    held out was not seen. Raises TrainingError, which names the ``section``: a part would have fewer than 2 rows.
    """
    fret = [place for place, row in enumerate(examples) if row.dataset == FRET] or list(range(len(examples)))
    ordered = [[fret[place] for place in family] for family in _families([examples[place] for place in fret])]
    wanted = max(LEAST, round(share * len(fret)))
    held: set[int] = set()
    for family in np.random.default_rng(seed).permutation(len(ordered)):
        if len(held) + len(ordered[family]) <= wanted:
            held.update(ordered[family])
    kept = [place for place in range(len(examples)) if place not in held]
    if len(held) < LEAST or len(kept) < LEAST:
        raise TrainingError(
            f"{section}.patience needs held-out rows: of {len(fret)} rows {len(held)} can be held out and {len(kept)} "
            f"trained on; both must be 2 or more. Give more rows, change {section}.heldout, or unset {section}.patience"
        )
    return kept, sorted(held)


def _families(rows: Sequence[Example]) -> list[list[int]]:
    """Places of the rows that hang together by a query or a positive, perhaps through others; in order of their first."""
    numbers: dict[tuple[str, ...], int] = {}
    ends = np.array([[numbers.setdefault(key, len(numbers)) for key in _keys(row)] for row in rows], int).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), ends.T), shape=(len(numbers), len(numbers)))
    labels = connected_components(graph, directed=False)[1]
    families: dict[int, list[int]] = {}
    for place, label in enumerate(labels[ends[:, 0]].tolist()):
        families.setdefault(label, []).append(place)
    return list(families.values())


def _keys(row: Example) -> tuple[tuple[str, ...], tuple[str, ...]]:
    text = row.positive.id or f"{row.positive.title}\n{row.positive.text}"
    return ("query", row.query), ("positive", row.dataset, text)
