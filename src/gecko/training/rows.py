"""Training rows as the dataset that the trainer reads: text columns to be encoded, and one column of integers."""

import math
from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from gecko.config import LossConfig
from gecko.errors import TrainingError
from gecko.formats import InputFormat, render_example
from gecko.records import Example
from gecko.training.loss import ABSENT

# Stands where a row has fewer hard negatives than others. Not the empty text: some tokenizers make no token of it,
# and attention over no token is not a number.
FILLER = "."


class _Numbers:
    """Gives integers to things, in the order of their first appearance."""

    def __init__(self) -> None:
        self._table: dict[tuple[str, ...], int] = {}
        self._next = 0

    def of(self, *keys: tuple[str, ...]) -> int:
        """The number of whichever of ``keys`` is known, else a new one; all of them have it from then on."""
        known = next((self._table[key] for key in keys if key in self._table), None)
        if known is None:
            known = self._next
            self._next += 1
        for key in keys:
            self._table.setdefault(key, known)
        return known


def to_dataset(examples: Sequence[Example], form: InputFormat, config: LossConfig) -> Dataset:
    """Rows in an input format, ready for :class:`gecko.training.loss.GeckoLoss`.

    The columns: ``query``, ``positive``, ``negative_1`` to ``negative_K`` (K: the most that any row has; 0 where the
    loss uses none), and ``label``, a list of 4 + K integers: the numbers of query, positive and group, the weight's
    float32 bits, the numbers of the hard negatives (-1: this row has fewer). Texts have equal numbers when they are
    equal once rendered, or have the same id in the same set. Groups are counted set by set.

    Raises:
        TrainingError: no rows; or a row with an empty query, an empty text or a weight that is negative or not finite.
            The message names set and row.
    """
    if not examples:
        raise TrainingError("there are no rows to train on; look at what select dropped, or lower select.min_rc")
    texts, groups = _Numbers(), _Numbers()
    width = 0 if config.hard_negatives == "none" else max(len(example.negatives) for example in examples)
    columns: dict[str, list[str]] = {
        name: [] for name in ("query", "positive", *(f"negative_{place}" for place in range(1, width + 1)))
    }
    labels: list[list[int]] = []
    for row, example in enumerate(examples):
        _check(row, example, width)
        query, positive, negatives = render_example(example, form)
        sides = list(zip((example.positive, *example.negatives), (positive, *negatives), strict=True))[: 1 + width]
        numbers = [
            texts.of(("text", rendered), *([("id", example.dataset, text.id)] if text.id else []))
            for text, rendered in sides
        ]
        missing = 1 + width - len(sides)
        group = groups.of((example.dataset, example.group)) if example.group else ABSENT
        weight = int(np.float32(example.weight).view(np.int32))
        labels.append([texts.of(("text", query)), numbers[0], group, weight, *numbers[1:], *[ABSENT] * missing])
        rendered_row = (query, *(rendered for _, rendered in sides), *[FILLER] * missing)
        for column, rendered in zip(columns.values(), rendered_row, strict=True):
            column.append(rendered)
    return Dataset.from_dict({**columns, "label": labels})


def _check(row: int, example: Example, width: int) -> None:
    place = f"set {example.dataset!r}, row {row}" + (f" (query {example.query_id!r})" if example.query_id else "")
    if not example.query.strip():
        raise TrainingError(f"{place}: the query is empty; drop the row")
    if not math.isfinite(example.weight) or example.weight < 0:
        raise TrainingError(f"{place}: the weight is {example.weight}; it must be a number from 0 up")
    for name, text in (("positive", example.positive), *(("negative", text) for text in example.negatives[:width])):
        if not (text.text.strip() or (text.title.strip() and not example.symmetric)):
            raise TrainingError(f"{place}: the {name} {text.id!r} is empty; drop the row")
