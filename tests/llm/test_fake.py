import math
from dataclasses import replace

import pytest

from gecko.llm.base import Group, LanguageModel, Sampling, Usage
from gecko.llm.fake import FakeLM, words
from gecko.prompts import load_prompt

GENERATE, LIKELIHOOD, RELEVANCE = map(load_prompt, ("generate", "query_likelihood", "relevance"))
PASSAGE = "Mould grows on jam when the jar was not sealed."


def test_words() -> None:
    assert words("The jar, the JAR! on a Shelf-4") == ["the", "jar", "shelf"]
    assert words("") == []


@pytest.mark.parametrize(
    ("query", "total", "tokens"),
    [
        ("mould jam", -2 * math.log(2), 2),
        ("mould bird", -math.log(2) - math.log(16), 2),
        ("bird", -math.log(16), 1),
        ("Mould mould MOULD", -math.log(2), 1),
        ("a b", 0.0, 1),
    ],
)
def test_likelihood(query: str, total: float, tokens: int) -> None:
    [[(found, count)]] = FakeLM().score(LIKELIHOOD, [Group(PASSAGE, (query,))])
    assert (found, count) == (pytest.approx(total), tokens)


@pytest.mark.parametrize(
    ("query", "yes"), [("mould bird", 0.5), ("mould jam jar bird", 0.75), ("mould", 0.98), ("bird", 0.02), ("a", 0.02)]
)
def test_relevance(query: str, yes: float) -> None:
    [[values]] = FakeLM().label_logprobs(RELEVANCE, [Group(PASSAGE, (query,))])
    assert values == pytest.approx((math.log(yes), math.log(1 - yes)))
    assert sum(map(math.exp, values)) == pytest.approx(1)


def test_grades_lie_between_yes_and_no() -> None:
    graded = replace(RELEVANCE, labels=("0", "1", "2"), values=(0.0, 1.0, 2.0))
    [[values]] = FakeLM().label_logprobs(graded, [Group(PASSAGE, ("mould jam jar bird",))])
    low, middle, high = map(math.exp, values)
    assert low + middle + high == pytest.approx(1)
    assert high / low == pytest.approx(3) and middle**2 == pytest.approx(low * high)


def test_shapes_follow_the_groups() -> None:
    groups = [Group(PASSAGE, ("one", "two", "three")), Group("other", ()), Group("more", ("four",))]
    for found in (FakeLM().score(LIKELIHOOD, groups), FakeLM().label_logprobs(RELEVANCE, groups)):
        assert [len(row) for row in found] == [3, 0, 1]


def test_texts_follow_their_seeds() -> None:
    teacher = FakeLM()

    def write(*seeds: int) -> list[str]:
        return teacher.generate(GENERATE, [PASSAGE] * len(seeds), Sampling(0.7, 0.95, 64, seeds))

    together = write(1, 2, 3)
    assert together == write(1) + write(2) + write(3)
    assert len({*write(*range(40))}) > 1
    assert write(1) == FakeLM().generate(GENERATE, [PASSAGE], Sampling(0.0, 1.0, 8, (1,)))
    for text in together:
        assert "\nQuery: where is " in text
    with pytest.raises(ValueError, match="shorter"):
        teacher.generate(GENERATE, [PASSAGE] * 2, Sampling(0.7, 0.95, 64, (1,)))


def test_it_speaks_the_protocol_and_counts() -> None:
    teacher: LanguageModel = FakeLM()
    assert teacher.can_score
    assert teacher.usage == Usage()
    assert teacher.count_tokens(["mould on jam", "", "jam jam"]) == [2, 0, 1]
    teacher.score(LIKELIHOOD, [Group(PASSAGE, ("mould jam", "bird"))])
    assert teacher.usage == Usage(read=3)
    teacher.generate(GENERATE, [PASSAGE], Sampling(0.0, 1.0, 8, (0,)))
    assert teacher.usage.tokens == 3 + len(words(PASSAGE)) + 8
