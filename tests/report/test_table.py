import pytest

from gecko.core.text import duration
from gecko.report.table import NO_ANSWER, ResultRow, closing_rows, result_rows
from gecko.report.text import cut, shown


def test_closing_rows(result):
    header, bm25, start, native, unified, *agreement = closing_rows(result())
    assert all(len(row) == len(header) for row in (bm25, start, native, unified, *agreement))
    assert bm25[:3] == ["scifact (300)", "BM25", "65.0"]
    assert start[3] == ""
    assert native == ["scifact (300)", "student, native format (kept)", "68.4", "+1.4 [+0.2, +2.6]", "68.4"]
    assert "kept" not in unified[1]
    assert [row[4] for row in agreement] == ["–"] * 3


def test_a_set_cannot_speak_to_the_terminal(result):
    assert "\x1b" not in str(closing_rows(result(name="a\x1b[31mb")))


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.001, 0.1, "better"), (-0.1, -0.001, "worse"), (-0.01, 0.01, "no difference"), (0, 0.1, "no")]
)  # fmt: skip
def test_word_is_whether_the_interval_excludes_zero(result, low, high, word):
    row = next(row for row in result_rows(result(low, high)) if row.kept)
    assert row.word.startswith(word)


def test_shown_keeps_letters_and_writes_out_what_acts():
    assert shown("añ\n\t漢\u200d") == "añ\n\t漢\u200d"
    assert shown("\u202e\x00\ud800") == "‹U+202E›‹U+0000›‹U+D800›"


def test_cut_and_duration():
    assert cut("abc", 3) == "abc"
    assert cut("ab cd", 4) == "ab…"
    assert [duration(s) for s in (0, 12.3, 99, 100, 6000)] == ["0.0 s", "12 s", "99 s", "1.7 minutes", "1.7 hours"]


def test_few_queries_have_no_verdict() -> None:
    few, enough = (ResultRow("agreement", count, "native", True, 0.5, None, -0.1, -0.1, -0.1) for count in (9, 10))
    assert (few.word, enough.word) == (NO_ANSWER, "worse")
