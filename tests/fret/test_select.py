from dataclasses import replace
from itertools import pairwise

import pytest

from gecko.config.stages import SelectConfig
from gecko.core.counts import Counts
from gecko.core.records import Candidate, Example, Passage, Query, Score, Text
from gecko.fret.fuse import Label, fuse, standardized
from gecko.fret.select import group_labels, make_row, select

NAMES = ("a", "b", "c", "d", "e")
PASSAGES = {name: Passage(name, name.upper(), f"text of {name}", "a file") for name in NAMES}
ALL = SelectConfig(min_rc=None)


def query(name: str = "q", seed_id: str = "a", split: str = "train") -> Query:
    return Query(name, "a task", f"query {name}", seed_id, "fake", split)


def ranked(order: str, rc: float = 1.0) -> list[Label]:
    return [
        Label(name, NAMES.index(name) + 1, -1.0, rc, place, place, 2 / place)
        for place, name in enumerate(order, start=1)
    ]


def rows_of(queries: list[Query], labels: dict[str, list[Label]], config: SelectConfig = ALL, seed: int = 0):
    counts = Counts()
    return list(select(queries, labels, PASSAGES, config, seed, counts)), counts


def test_first_and_last() -> None:
    rows, counts = rows_of([query(seed_id="b")], {"q": ranked("cbade")})
    assert rows == [
        Example(
            dataset="fret",
            task="a task",
            query="query q",
            positive=Text("c", "C", "text of c"),
            negatives=(Text("e", "E", "text of e"),),
            group="c",
            query_id="q",
            seed_id="b",
            candidates=("c", "b", "a", "d", "e"),
            fused=(2.0, 1.0, 2 / 3, 0.5, 0.4),
        )
    ]
    assert counts.drops == {}
    assert counts.notes == {"positive is not the seed": 1}


def test_last_is_the_last_of_the_fused_order_among_equals() -> None:
    # Fused scores of all are equal but the first's; the retriever's order decides which is p_N.
    candidates = [Candidate("q", name, place, 0.0) for place, name in enumerate("edcba", start=1)]
    scores = {name: Score("q", name, "t", "h", -1.0, 1, 1.0) for name in NAMES}
    labels = fuse(candidates, scores)
    row = make_row(query(), labels, PASSAGES, ALL, 0)
    assert (row.positive.id, row.negatives[0].id) == ("e", "a")


def test_seed_as_positive_is_never_the_negative() -> None:
    config = SelectConfig(positive="seed", min_rc=None)
    for order, negative in (("cbade", "e"), ("cbdea", "e"), ("acbde", "e")):
        row = make_row(query(seed_id="a"), ranked(order), PASSAGES, config, 0)
        assert (row.positive.id, row.group, [text.id for text in row.negatives]) == ("a", "a", [negative])
        assert row.candidates == tuple(order)


def test_targets_of_the_listwise_term() -> None:
    labels = [replace(label, rc=rc) for label, rc in zip(ranked("cba"), (3.0, 2.9, -4.0), strict=True)]
    fused = make_row(query(), labels, PASSAGES, ALL, 0)
    row = make_row(query(), labels, PASSAGES, ALL.model_copy(update={"targets": "standardized"}), 0)
    assert row == replace(fused, fused=tuple(standardized(labels)))
    assert row.fused[0] - row.fused[1] < 0.1 < row.fused[1] - row.fused[2]  # ranks would say the contrary
    assert fused.fused[0] - fused.fused[1] > fused.fused[1] - fused.fused[2]


@pytest.mark.parametrize("negative", ["last", "random", "none"])
def test_one_candidate_has_no_negative(negative: str) -> None:
    row = make_row(query(), ranked("a"), PASSAGES, SelectConfig(negative=negative, min_rc=None), 0)
    assert (row.positive.id, row.negatives) == ("a", ())


def test_no_negative() -> None:
    rows, _ = rows_of([query()], {"q": ranked("abcde")}, SelectConfig(negative="none", min_rc=None))
    assert rows[0].negatives == ()


def test_random_negatives_come_from_the_seed() -> None:
    config = SelectConfig(negative="random", min_rc=None)
    queries = [query(f"q{number}") for number in range(60)]
    labels = {one.id: ranked("bacde") for one in queries}

    def drawn(seed: int, asked: list[Query] = queries) -> dict[str, str]:
        rows, _ = rows_of(asked, labels, config, seed)
        return {row.query_id: row.negatives[0].id for row in rows}

    first = drawn(0)
    assert drawn(0) == first
    assert drawn(0, queries[::-1]) == first  # a query's draw is its own
    assert drawn(1) != first
    assert set(first.values()) == {"a", "c", "d", "e"}  # all but the positive


@pytest.mark.parametrize("kind", ["last", "random"])
def test_several_negatives(kind: str) -> None:
    labels = {"q": ranked("cbade")}

    def names(count: int) -> str:
        config = SelectConfig(min_rc=None, negative=kind, negatives=count)
        return "".join(text.id for text in rows_of([query(seed_id="b")], labels, config)[0][0].negatives)

    most = names(9)
    assert sorted(most) == list("abde")  # all but the positive, each once
    assert [names(count) for count in (1, 2, 3)] == [most[:1], most[:2], most[:3]]
    if kind == "last":
        assert most == "edab"


def test_held_out_and_unlabelled_queries_are_dropped_and_counted() -> None:
    queries = [query("q1"), query("q2", split="heldout"), query("q3"), query("q4"), query("q5", split="heldout")]
    labels = {"q1": ranked("abc"), "q2": ranked("abc"), "q4": []}
    rows, counts = rows_of(queries, labels)
    assert [row.query_id for row in rows] == ["q1"]
    assert counts.drops == {"held out": 2, "not judged in full": 2}
    assert counts.notes == {"positive is not the seed": 0}


@pytest.mark.parametrize(
    ("least", "kept"), [(0.0, ["q1"]), (-1.0, ["q0", "q1"]), (1.0, []), (None, ["q9", "q0", "q1"])]
)
def test_filter_by_relevance(least: float | None, kept: list[str]) -> None:
    labels = {"q9": ranked("abc", -1.0), "q0": ranked("abc", 0.0), "q1": ranked("abc", 1.0)}
    rows, counts = rows_of([query(name) for name in labels], labels, SelectConfig(min_rc=least))
    assert [row.query_id for row in rows] == kept
    dropped = {} if least is None else {f"positive not relevant (RC <= {least:g})": 3 - len(kept)}
    assert counts.drops == dropped


def test_the_filter_looks_at_the_positive_that_is_used() -> None:
    mixed = [replace(label, rc=5.0 if label.passage_id == "c" else -5.0) for label in ranked("cab")]
    assert len(rows_of([query()], {"q": mixed}, SelectConfig())[0]) == 1
    assert rows_of([query()], {"q": mixed}, SelectConfig(positive="seed"))[0] == []


def test_rows_keep_the_order_of_the_queries() -> None:
    queries = [query(name) for name in ("q3", "q1", "q2")]
    rows, _ = rows_of(queries, {name: ranked("abc") for name in ("q1", "q2", "q3")})
    assert [row.query_id for row in rows] == ["q3", "q1", "q2"]


def test_labels_are_grouped_by_query() -> None:
    queries = [query("q1"), query("q2"), query("q3")]
    candidates = [Candidate(one.id, name, place, 0.0) for one in queries for place, name in enumerate("abc", start=1)]
    values = {"q1": {"a": 1.0, "b": 2.0, "c": 3.0}, "q2": {"a": 3.0, "b": 1.0, "c": 2.0}}
    # Scores come passage by passage, as relabelling writes them.
    scores = [
        Score(one, name, "t", "h", values[one][name], 1, values[one][name]) for name in "abc" for one in ("q1", "q2")
    ]
    labels = group_labels(queries, candidates, scores, ALL)
    assert {name: "".join(label.passage_id for label in row) for name, row in labels.items()} == {
        "q1": "cba",
        "q2": "acb",
    }
    assert all(first.fused >= second.fused for row in labels.values() for first, second in pairwise(row))


def test_grouping_uses_the_configured_fusion() -> None:
    candidates = [Candidate("q", name, place, 0.0) for place, name in enumerate("ab", start=1)]
    scores = [Score("q", "a", "t", "h", -1.0, 1, 0.0), Score("q", "b", "t", "h", -2.0, 1, 1.0)]
    firsts = {
        fusion: group_labels([query()], candidates, scores, SelectConfig(fusion=fusion))["q"][0]
        for fusion in ("ql", "rc")
    }
    assert {fusion: label.passage_id for fusion, label in firsts.items()} == {"ql": "a", "rc": "b"}
    far = group_labels([query()], candidates, scores, SelectConfig(rrf_constant=60.0))["q"][0]
    assert far.fused == pytest.approx(1 / 61 + 1 / 62)


def test_a_query_counts_once_every_teacher_has_judged_it() -> None:
    candidates = [Candidate("q", "a", 1, 0.9), Candidate("q", "b", 2, 0.8)]
    one = [Score("q", "a", "one", "h", -1.0, 1, 2.0), Score("q", "b", "one", "h", -2.0, 1, 1.0)]
    two = [Score("q", "a", "two", "h", -9.0, 1, 0.0), Score("q", "b", "two", "h", -1.0, 1, 5.0)]
    both = group_labels([query()], candidates, one + two, SelectConfig())["q"]
    assert {label.passage_id: (label.ql_rank, label.rc) for label in both} == {"a": (1.5, 1.0), "b": (1.5, 3.0)}
    elsewhere = [Score("other", "a", "two", "h", -1.0, 1, 1.0)]
    assert group_labels([query()], candidates, one + elsewhere, SelectConfig()) == {}
