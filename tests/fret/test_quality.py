from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest

from gecko.config.stages import SelectConfig
from gecko.core.counts import Counts
from gecko.core.records import Passage, Query
from gecko.core.text import words
from gecko.fret.fuse import Label
from gecko.fret.quality import copied, kind, leaked, near_by_words, speaks_of_itself
from gecko.fret.select import select


def test_copied_words():
    passage = "The feed roller turned but no sheet arrived at the sensor."
    assert copied("the feed roller turned", passage) == 1.0
    assert copied("why the feed roller turned", passage) == 4 / 5
    assert copied("printer pulls but takes no paper", passage) == 0.0
    assert copied("feed roller", passage) == 0.0  # too short to be a copy


def test_scripts_without_spaces_have_a_word_a_character():
    assert words("苹果 2kg: 剪枝ですか") == ["苹", "果", "2kg", "剪", "枝", "で", "す", "か"]
    assert words("사과 나무 Äste") == ["사과", "나무", "äste"]
    assert copied("先剪去枯枝", "修剪苹果树时先剪去枯枝，再剪交叉的枝条。") == 1.0
    assert copied("什么时候修剪", "修剪苹果树时先剪去枯枝，再剪交叉的枝条。") == 0.0
    assert near_by_words(["什么时候修剪苹果树", "什么时候修剪苹果树呢"], 0.8) == [None, 0]


def test_title_given_away():
    assert leaked("how to prune an apple tree", "Prune an apple tree") == 1.0
    assert leaked("prune fruit trees", "Prune an apple tree") == 1 / 4
    assert leaked("what is entropy", "Entropy") == 0.0


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("What is the main topic of this passage?", True),
        ("Does the Study show that aspirin helps?", True),
        ("two kinds of vectors mentioned in the text", True),
        ("what this paper says of transistors", True),
        ("the passage of light through glass", False),
        ("why the study of entropy matters", False),
        ("how do I wrap the text of a paragraph", False),
        ("printer pulls the paper in twice", False),
        ("remove the section from a configuration", False),
        ("who wrote studies of passages", False),
    ],
)
def test_what_speaks_of_itself(query, expected):
    assert speaks_of_itself(query) is expected


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("Given a question, find a passage that answers it.", "question"),
        ("given the search query: find", "search query"),
        ("Given what a programmer wants to do, find the function.", "what a programmer wants"),
        ("Find something.", "other"),
    ],
)
def test_kind_of_task(task, expected):
    assert kind(task) == expected


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75, 1.0])
def test_near_by_words_is_the_slow_loop(threshold):
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in rng.integers(0, 12, rng.integers(1, 8))) for _ in range(300)]
    slow: list[int | None] = []
    sets = [set(words(text)) for text in texts]
    for place, found in enumerate(sets):
        kept = [number for number in range(place) if slow[number] is None]
        slow.append(next((n for n in kept if len(found & sets[n]) >= threshold * len(found | sets[n])), None))
    assert near_by_words(texts, threshold) == slow
    assert sum(like is not None for like in slow) > 20
    assert near_by_words([], threshold) == []


PASSAGES = {
    "a": Passage("a", "Pruning apple trees", "Cut the dead wood first, then the crossing branches."),
    "b": Passage("b", "Paper jam", "The roller turned but no sheet arrived."),
}
TEXTS = {
    "q1": ("a", "which branches should go before others"),
    "q2": ("a", "the dead wood first then"),
    "q3": ("a", "when is pruning apple trees best"),
    "q4": ("a", "which branches should go before the others"),
    "q5": ("b", "printer takes no paper"),
    "q6": ("b", "printer pulls no page in"),
}


def selected(texts: Mapping[str, tuple[str, str]] = TEXTS, **settings: object):
    queries = [Query(key, "Given a question, find.", text, seed, "fake") for key, (seed, text) in texts.items()]
    labels = {
        query.id: [Label(name, place, -1.0, 1.0, place, place, 2 / place) for place, name in ((1, "a"), (2, "b"))]
        for query in queries
    }
    counts = Counts()
    rows = list(select(queries, labels, PASSAGES, SelectConfig(min_rc=None, **settings), 0, counts))
    return [row.query_id for row in rows], counts


def test_nothing_is_dropped_unless_asked_for():
    assert selected()[0] == list(TEXTS)


def test_a_query_that_gives_away_its_title_is_dropped_if_asked_for():
    kept, counts = selected(max_title=0.9)
    assert set(TEXTS) - set(kept) == {"q3"}
    assert counts.drops == {"gives away the title": 1}
    assert counts.examples["gives away the title"] == [f"{TEXTS['q3'][1]} ← {PASSAGES['a'].title}"]


def test_a_query_that_speaks_of_its_passage_is_dropped_unless_it_may_stay():
    texts = TEXTS | {"q7": ("a", "what is the passage about")}
    kept, counts = selected(texts)
    assert set(kept) == set(TEXTS) and counts.drops == {"speaks of its passage": 1}
    assert counts.examples["speaks of its passage"] == [f"what is the passage about ← {PASSAGES['a'].content}"]
    assert set(selected(texts, self_contained=False)[0]) == set(texts)


KINDS = ["question"] * 12 + ["claim"] * 5 + ["search query"] * 1


def of_kinds(seed: int = 0, count: int = len(KINDS), **settings: object) -> tuple[list[str], Counts]:
    asked = list(enumerate(KINDS))[:count]
    queries = [Query(f"q{n}", f"Given a {name}, find.", f"query {n} of its own", "a", "fake") for n, name in asked]
    labels = {query.id: [Label("a", 1, -1.0, 1.0, 1, 1, 2.0)] for query in queries}
    counts = Counts()
    rows = select(queries, labels, PASSAGES, SelectConfig(min_rc=None, **settings), seed, counts)
    return [row.query_id for row in rows], counts


def kinds_of(kept: list[str]) -> dict[str, int]:
    return dict(Counter(KINDS[int(name[1:])] for name in kept))


def test_kinds_of_task_are_evened():
    kept, counts = of_kinds(task_rows="uniform")  # 18 rows of 3 kinds: 6 of a kind on average
    assert kinds_of(kept) == {"question": 6, "claim": 5, "search query": 1}
    assert counts.drops == {"more than 6 of a kind of task: question": 6}
    assert len(counts.examples["more than 6 of a kind of task: question"]) == 3
    assert kept == sorted(kept, key=lambda name: int(name[1:]))  # in the order of the queries
    assert kept == of_kinds(task_rows="uniform")[0] != of_kinds(seed=1, task_rows="uniform")[0]
    assert of_kinds(count=0, task_rows="uniform")[0] == []


def test_every_reason_has_examples():
    queries = [
        Query("held", "Given a question, find.", "held out", "a", "fake", "heldout"),
        Query("unpaid", "Given a question, find.", "not judged", "a", "fake"),
        Query("poor", "Given a question, find.", "not answered", "b", "fake"),
    ]
    labels = {"poor": [Label("b", 1, -1.0, -2.0, 1, 1, 2.0)]}
    counts = Counts()
    assert list(select(queries, labels, PASSAGES, SelectConfig(), 0, counts)) == []
    assert counts.examples == {
        "held out": ["held out"],
        "not judged in full": ["not judged"],
        "positive not relevant (RC <= 0)": ["-2.0: not answered ← Paper jam\nThe roller turned but no sheet arrived."],
    }
