import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gecko.core.records import Passage
from gecko.corpus.chunk import Chunking, split_long

# Few letters, so that words, sentences, newlines and Markdown marks come together often.
TEXTS = st.text(st.sampled_from("ab. \n#*`>漢é|-1"), min_size=1, max_size=3000)


def solid(text: str) -> str:
    return "".join(text.split())


def test_a_short_passage_stays_as_it_is():
    passage = Passage("a", "T", "x" * 300, "s.txt")
    assert split_long(passage, Chunking(300, 100)) == [passage]


def test_pieces_keep_title_and_source_and_count_from_one():
    passage = Passage("a", "T", "One sentence here. " * 30, "s.txt")
    pieces = split_long(passage, Chunking(300, 200))
    assert [piece.id for piece in pieces] == [f"a#{number}" for number in range(1, len(pieces) + 1)]
    assert {(piece.title, piece.source) for piece in pieces} == {("T", "s.txt")}
    assert all(piece.text.endswith("here.") for piece in pieces)


def test_markdown_is_cut_at_headings():
    text = "# One\n\n" + "a " * 60 + "\n\n# Two\n\n" + "b " * 60
    markdown = split_long(Passage("a", "", text, "x.MD"), Chunking(200, 200))
    assert [piece.text[:5] for piece in markdown] == ["# One", "# Two"]


def test_no_piece_is_longer_than_max_chars():
    pieces = split_long(Passage("a", "", "word " * 200, ""), Chunking(200, 900))
    assert len(pieces) >= 5
    assert max(len(piece.text) for piece in pieces) <= 200


@settings(deadline=None)
@given(TEXTS, st.sampled_from(["x.md", "x.txt"]), st.integers(1, 60))
def test_pieces_hold_all_the_text_in_order(text, source, size):
    pieces = split_long(Passage("a", "", text, source), Chunking(size, size))
    assert solid("".join(piece.text for piece in pieces)) == solid(text)
    if len(text) > size:
        assert all(0 < len(piece.text) <= size for piece in pieces)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.text("abcdefg", min_size=1, max_size=9), min_size=400, max_size=600))
def test_a_window_cuts_no_word_and_no_piece_short(words):
    pieces = [piece.text for piece in split_long(Passage("a", "", " ".join(words), ""), Chunking(60, 60))]
    assert " ".join(pieces).split() == words
    # Greedy: the first word of the next piece would not have fitted.
    assert all(len(one) + 1 + len(two.split()[0]) > 60 for one, two in pairwise(pieces))


@pytest.mark.parametrize("source", ["x.md", "x.txt"])
@pytest.mark.parametrize("unit", ["A sentence of words. ", "漢字", "x", "> ", "| a | b |\n", "- x\n", "[", "\n"])
def test_a_megabyte_is_quick(source, unit):
    text = unit * (1_000_000 // len(unit.encode())) + "end"
    start = time.perf_counter()
    pieces = split_long(Passage("a", "", text, source), Chunking(4000, 2000))
    assert time.perf_counter() - start < 30  # the splitter alone takes minutes
    assert solid("".join(piece.text for piece in pieces)) == solid(text)
