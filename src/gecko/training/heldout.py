"""A part of the rows that is not trained on, to see when training does harm."""

from collections.abc import Sequence

import numpy as np

from gecko.config import FRET
from gecko.errors import TrainingError
from gecko.records import Example

LEAST = 2  # rows; one alone has no other row's texts to be told from


def hold_out(
    examples: Sequence[Example], share: float, seed: int, section: str = "train"
) -> tuple[list[int], list[int]]:
    """Places of the rows to train on, and of those held out.

    Held out are rows of FRet, or of all sets where there are none of FRet. Rows that share a query or a positive stay
    together, so that what is held out was not seen.

    Args:
        examples: the rows.
        share: of the rows of FRet that are held out, about.
        seed: of the draw.
        section: of the settings, for errors.

    Raises:
        TrainingError: a part would have fewer than 2 rows.
    """
    fret = [place for place, row in enumerate(examples) if row.dataset == FRET] or list(range(len(examples)))
    parent: dict[tuple[str, ...], tuple[str, ...]] = {}

    def root(key: tuple[str, ...]) -> tuple[str, ...]:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    def positive(row: Example) -> tuple[str, ...]:
        return ("positive", row.dataset, row.positive.id or f"{row.positive.title}\n{row.positive.text}")

    for place in fret:
        row = examples[place]
        parent[root(("query", row.query))] = root(positive(row))
    families: dict[tuple[str, ...], list[int]] = {}
    for place in fret:
        families.setdefault(root(positive(examples[place])), []).append(place)
    ordered = list(families.values())
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
