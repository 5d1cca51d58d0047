"""Agreement with the teacher, worked out by hand on vectors that are given."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from gecko.core.records import Passage, Query
from gecko.evaluation.agreement import agreement
from gecko.fret.fuse import Label

PASSAGES = {name: Passage(name, "", f"text {name}") for name in "abc"}
VECTORS = {"a": (1.0, 0.0), "b": (0.6, 0.8), "c": (0.0, 1.0)}
QUERY = Query("q", "search result", "x", "a", "fake", "heldout")


def encoder(query: tuple[float, float]) -> SimpleNamespace:
    return SimpleNamespace(
        passages=lambda items: np.array([VECTORS[item.id] for item in items], dtype=np.float32),
        queries=lambda texts, tasks: np.array([query] * len(texts), dtype=np.float32),
    )


def label(name: str, fused: float) -> Label:
    return Label(name, 1, 0.0, 0.0, 1, 1, fused)


LABELS = {"q": [label("a", 2.0), label("b", 1.0), label("c", 0.5)]}


def test_the_teachers_own_order_is_1() -> None:
    assert agreement([QUERY], LABELS, PASSAGES, encoder((1.0, 0.0))) == pytest.approx([1.0])


def test_the_opposite_order_by_hand() -> None:
    discount = [1 / math.log2(place) for place in (2, 3, 4)]
    found = 0.5 * discount[0] + 1.0 * discount[1] + 2.0 * discount[2]
    best = 2.0 * discount[0] + 1.0 * discount[1] + 0.5 * discount[2]
    values = agreement([QUERY], LABELS, PASSAGES, encoder((0.0, 1.0)))
    assert values == pytest.approx([found / best])
    assert values[0] < 0.8


def test_nothing_held_out() -> None:
    assert len(agreement([], LABELS, PASSAGES, encoder((1.0, 0.0)))) == 0
