import pytest

from gecko.report.table import closing_rows, result_rows, verdict
from gecko.report.text import cut, duration, shown


def test_closing_rows(result):
    header, bm25, start, native, unified, *agreement = closing_rows(result())
    assert all(len(row) == len(header) for row in (bm25, start, native, unified, *agreement))
    assert bm25[:3] == ["scifact (300)", "BM25", "65.0"]
    assert start[3] == ""
    assert native == ["scifact (300)", "student, native format (kept)", "68.4", "+1.4 (+0.2 to +2.6)", "68.4"]
    assert "kept" not in unified[1]
    assert [row[4] for row in agreement] == ["–"] * 3


def test_a_set_cannot_speak_to_the_terminal(result):
    assert "\x1b" not in str(closing_rows(result(name="a\x1b[31mb")))
    assert "‹U+001B›" in verdict(result(name="a\x1b[31mb"), 10, 10)


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.001, 0.1, "better"), (-0.1, -0.001, "worse"), (-0.01, 0.01, "no difference"), (0, 0.1, "no")]
)  # fmt: skip
def test_word_is_whether_the_interval_excludes_zero(result, low, high, word):
    row = next(row for row in result_rows(result(low, high)) if row.kept)
    assert row.word.startswith(word)


def test_verdict_of_a_gain(result):
    text = verdict(result(), 800, 1200)
    assert "On scifact the student is better than its start: +1.4 (+0.2 to +2.6)" in text
    assert "800 rows in 20.0 minutes" in text
    assert "5,000 rows would take 2.1 hours" in text


def test_verdict_that_nothing_can_be_seen(result):
    text = verdict(result(-0.01, 0.03), 800, 1200)
    assert text.startswith("No difference that the 300 questions of scifact can show")
    assert "5,000 rows" in text


def test_verdict_of_harm(result):
    assert "worse than its start" in verdict(result(-0.03, -0.01), 800, 1200)


def test_verdict_never_offers_fewer_rows(result):
    assert "20,000 rows" in verdict(result(), 5_000, 100)
    assert "200,000 rows" in verdict(result(), 50_000, 100)
    assert "would take" not in verdict(result(), 10, 0)


def test_verdict_without_a_set(result):
    text = verdict(result(sets={}), 800, 1200)
    assert "agreement with the teacher is 75.0" in text
    assert "not relevance" in text
    assert "--eval DIR" in text
    assert "--eval DIR" in verdict(result(sets={}, agreement=None), 800, 1200)


def test_shown_keeps_letters_and_writes_out_what_acts():
    assert shown("añ\n\t漢\u200d") == "añ\n\t漢\u200d"
    assert shown("\u202e\x00\ud800") == "‹U+202E›‹U+0000›‹U+D800›"


def test_cut_and_duration():
    assert cut("abc", 3) == "abc"
    assert cut("ab cd", 4) == "ab…"
    assert [duration(s) for s in (0, 12.3, 99, 100, 6000)] == ["0.0 s", "12 s", "99 s", "1.7 minutes", "1.7 hours"]


def test_of_several_sets_one_that_is_worse_is_what_is_said(result):
    both = result()
    both["sets"] |= result(-0.05, -0.01, name="npl")["sets"]
    said = verdict(both, 10, 10)
    assert said.startswith("On npl the student is worse than its start")
    assert "Do not use it." in said
    assert "Of 2 sets it is better on 1 and worse on 1." in said
