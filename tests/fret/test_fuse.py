import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gecko.core.errors import RunError
from gecko.core.records import Candidate, Score
from gecko.fret.fuse import fuse, ranks, standardized


def table(*rows: tuple[str, float, int, float]) -> tuple[list[Candidate], dict[str, Score]]:
    """Candidates in the retriever's order with their scores: (passage, sum of log-probs, tokens, log-odds)."""
    candidates = [Candidate("q", row[0], place, 1 - place / 100) for place, row in enumerate(rows, start=1)]
    return candidates, {name: Score("q", name, "t", "h", total, tokens, rc) for name, total, tokens, rc in rows}


# QL (means): a -2, b -1, c -3, d -1.5; ranks 3, 1, 4, 2.  RC: ranks 1, 4, 2, 3.
FOUR = table(("a", -4.0, 2, 5.0), ("b", -2.0, 2, -1.0), ("c", -9.0, 3, 2.0), ("d", -6.0, 4, 0.5))


def test_rrf_by_hand() -> None:
    labels = fuse(*FOUR)
    assert [label.passage_id for label in labels] == ["a", "b", "d", "c"]
    assert [label.fused for label in labels] == pytest.approx([1 / 3 + 1, 1 + 1 / 4, 1 / 2 + 1 / 3, 1 / 4 + 1 / 2])
    by_id = {label.passage_id: label for label in labels}
    assert {name: (label.ql_rank, label.rc_rank, label.retriever_rank) for name, label in by_id.items()} == {
        "a": (3, 1, 1),
        "b": (1, 4, 2),
        "c": (4, 2, 3),
        "d": (2, 3, 4),
    }
    assert {name: (label.ql, label.rc) for name, label in by_id.items()} == {
        "a": (-2.0, 5.0),
        "b": (-1.0, -1.0),
        "c": (-3.0, 2.0),
        "d": (-1.5, 0.5),
    }


def test_likelihood_is_a_mean_so_longer_is_not_worse() -> None:
    labels = fuse(*table(("short", -3.0, 1, 0.0), ("long", -8.0, 4, 0.0)), "ql")
    assert [label.passage_id for label in labels] == ["long", "short"]


@pytest.mark.parametrize(
    ("fusion", "order", "ranks"),
    [("ql", ["b", "d", "a", "c"], [1, 2, 3, 4]), ("rc", ["a", "c", "d", "b"], [1, 2, 3, 4])],
)
def test_one_alone(fusion: str, order: list[str], ranks: list[int]) -> None:
    labels = fuse(*FOUR, fusion)  # type: ignore[arg-type]
    assert [label.passage_id for label in labels] == order
    assert [label.fused for label in labels] == pytest.approx([1 / rank for rank in ranks])


def test_the_retrievers_rank_as_a_third() -> None:
    labels = fuse(*FOUR, "rrf+retriever", 1.0)
    assert {label.passage_id: label.fused for label in labels} == pytest.approx(
        {"a": 1 / 4 + 1 / 2 + 1 / 2, "b": 1 / 2 + 1 / 5 + 1 / 3, "c": 1 / 5 + 1 / 3 + 1 / 4, "d": 1 / 3 + 1 / 4 + 1 / 5}
    )
    assert [label.passage_id for label in labels] == ["a", "b", "c", "d"]
    assert [label.passage_id for label in fuse(*FOUR, constant=1.0)] == ["a", "b", "d", "c"]


def test_two_teachers_have_the_mean_of_their_ranks() -> None:
    candidates, first = FOUR  # QL ranks a 3, b 1, c 4, d 2; RC ranks a 1, b 4, c 2, d 3
    _, second = table(("a", -1.0, 1, -9.0), ("b", -2.0, 1, 4.0), ("c", -3.0, 1, 3.0), ("d", -4.0, 1, 5.0))
    # QL ranks a 1, b 2, c 3, d 4; RC ranks a 4, b 2, c 3, d 1
    labels = {label.passage_id: label for label in fuse(candidates, first, others=[second])}
    assert {name: (label.ql_rank, label.rc_rank) for name, label in labels.items()} == {
        "a": (2.0, 2.5),
        "b": (1.5, 3.0),
        "c": (3.5, 2.5),
        "d": (3.0, 2.0),
    }
    assert labels["b"].fused == pytest.approx(1 / 1.5 + 1 / 3)
    assert (labels["a"].ql, labels["a"].rc) == (-1.5, -2.0)
    assert fuse(candidates, first, others=[first]) == fuse(candidates, first)
    silent = {name: replace(score, ql_sum=0.0, ql_tokens=0) for name, score in second.items()}
    mixed = {label.passage_id: label for label in fuse(candidates, first, others=[silent])}
    assert {name: (label.ql_rank, label.rc_rank) for name, label in mixed.items()} == {
        "a": (3.0, 2.5),
        "b": (1.0, 3.0),
        "c": (4.0, 2.5),
        "d": (2.0, 2.0),
    }


def test_scores_without_a_likelihood_serve_rc_alone() -> None:
    rows = table(("a", 0.0, 0, 1.0), ("b", 0.0, 0, 2.0))
    labels = fuse(*rows, "rc")
    assert [label.passage_id for label in labels] == ["b", "a"]
    assert all(math.isnan(label.ql) for label in labels)
    for fusion in ("rrf", "rrf+retriever", "ql"):
        with pytest.raises(RunError, match=rf"hold no query likelihood, and fusion '{re.escape(fusion)}'.*fusion=rc"):
            fuse(*rows, fusion)  # type: ignore[arg-type]


def test_a_constant_is_added_to_both_ranks() -> None:
    labels = fuse(*FOUR, constant=60.0)
    assert {label.passage_id: label.fused for label in labels} == pytest.approx(
        {"a": 1 / 63 + 1 / 61, "b": 1 / 61 + 1 / 64, "c": 1 / 64 + 1 / 62, "d": 1 / 62 + 1 / 63}
    )
    # The constant can turn an order around: without it the first ranks weigh much more.
    tables = table(("a", -2.0, 1, 1.0), ("b", -1.0, 1, -9.0), ("c", -9.0, 1, 2.0), ("d", -3.0, 1, 0.0))
    assert [label.passage_id for label in fuse(*tables)] == ["b", "c", "a", "d"]
    assert [label.passage_id for label in fuse(*tables, constant=60.0)] == ["a", "b", "c", "d"]


def test_equal_scores_rank_by_retriever() -> None:
    labels = fuse(*table(("z", -1.0, 1, 1.0), ("y", -1.0, 1, 1.0), ("x", -1.0, 1, 1.0)))
    assert [(label.passage_id, label.ql_rank, label.rc_rank) for label in labels] == [
        ("z", 1, 1),
        ("y", 2, 2),
        ("x", 3, 3),
    ]


def test_equal_fused_scores_go_by_retriever() -> None:
    labels = fuse(*table(("z", -2.0, 1, 9.0), ("a", -1.0, 1, 3.0)))  # ranks (2, 1) and (1, 2)
    assert labels[0].fused == labels[1].fused
    assert [label.passage_id for label in labels] == ["z", "a"]


def test_equal_retriever_ranks_go_by_id() -> None:
    candidates, scores = table(("b", -1.0, 1, 1.0), ("a", -1.0, 1, 1.0))
    same = [replace(candidate, rank=1) for candidate in candidates]
    assert [label.passage_id for label in fuse(same, scores)] == ["a", "b"]
    crossed = {"a": replace(scores["a"], rc=0.0), "b": replace(scores["b"], ql_sum=-2.0)}
    labels = fuse(same, crossed)
    assert labels[0].fused == labels[1].fused
    assert [label.passage_id for label in labels] == ["a", "b"]


def test_ranks() -> None:
    assert ranks([0.5, 2.0, 0.5, -1.0], [(2, "a"), (4, "b"), (1, "c"), (3, "d")]).tolist() == [3, 1, 2, 4]
    assert ranks([], []).tolist() == []


rows = st.lists(
    # Few values, so that ties are common.
    st.tuples(st.integers(-3, 0).map(float), st.integers(1, 2), st.integers(-2, 2).map(float)),
    min_size=1,
    max_size=8,
)


@given(rows, st.randoms(use_true_random=False), st.sampled_from(["rrf", "ql", "rc"]), st.sampled_from([0.0, 60.0]))
def test_the_order_of_the_input_does_not_matter(rows, shuffler, fusion, constant) -> None:
    candidates, scores = table(*((f"p{place}", *row) for place, row in enumerate(rows)))
    expected = fuse(candidates, scores, fusion, constant)
    shuffler.shuffle(candidates)
    assert fuse(candidates, dict(reversed(scores.items())), fusion, constant) == expected


@given(rows)
def test_it_equals_counting(rows) -> None:
    """A rank is one more than the number of candidates that stand before: a larger value, or an earlier equal one."""
    candidates, scores = table(*((f"p{place}", *row) for place, row in enumerate(rows)))
    means = [total / tokens for total, tokens, _ in rows]
    odds = [rc for _, _, rc in rows]
    labels = {label.passage_id: label for label in fuse(candidates, scores)}
    for place in range(len(rows)):
        label = labels[f"p{place}"]
        counted = [
            1
            + sum(
                value > values[place] or (value == values[place] and other < place)
                for other, value in enumerate(values)
            )
            for values in (means, odds)
        ]
        assert [label.ql_rank, label.rc_rank] == counted
        assert math.isclose(label.fused, 1 / counted[0] + 1 / counted[1])
    order = [label.fused for label in fuse(candidates, scores)]
    assert np.all(np.diff(order) <= 0)


def test_standardized_scores_by_hand() -> None:
    labels = fuse(*FOUR)
    ql = {"a": -2.0, "b": -1.0, "c": -3.0, "d": -1.5}
    rc = {"a": 5.0, "b": -1.0, "c": 2.0, "d": 0.5}

    def z(scores: dict[str, float], name: str) -> float:
        mean = sum(scores.values()) / 4
        return (scores[name] - mean) / math.sqrt(sum((score - mean) ** 2 for score in scores.values()) / 4)

    wanted = [(z(ql, label.passage_id) + z(rc, label.passage_id)) / 2 for label in labels]
    assert standardized(labels) == pytest.approx(wanted)


def test_standardized_without_likelihood_and_without_differences() -> None:
    known = fuse(*FOUR)
    unknown = [replace(label, ql=math.nan) for label in known]
    alike = [replace(label, ql=-1.0) for label in known]
    assert standardized(unknown) == pytest.approx([2 * score for score in standardized(alike)])
    assert standardized([replace(label, ql=-1.0, rc=2.0) for label in known]) == [0.0] * 4
    assert standardized(known[:1]) == [0.0]
    places = [replace(label, ql=math.nan, rc=math.nan, rc_rank=float(place)) for place, label in enumerate(known)]
    assert standardized(places) == sorted(standardized(places), reverse=True)
