import pytest

from gecko.report.closing import closing_lines, summary


def lines(*arguments: object) -> dict[str, tuple[str, str]]:
    return {line.label: (line.verdict, line.text) for line in closing_lines(summary(*arguments))}  # type: ignore[arg-type]


def test_lines_of_a_gain(result):
    assert lines(result(), 800, 1200, {"fret-stdlib": 1145}) == {
        "Learned from the teacher": ("unproven", "agreement 70.0 → 75.0 on 5 held-out queries"),
        "Better search": ("yes", "nDCG@10 67.0 → 68.4, +1.4 [+0.2, +2.6] on 300 questions"),
        "Rows": ("", "1,145 shipped (fret-stdlib), 800 made here in 20.0 minutes"),
    }


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.001, 0.1, "yes"), (-0.1, -0.001, "worse"), (-0.01, 0.01, "unproven"), (0.0, 0.1, "unproven")],
)
def test_the_verdict_is_whether_the_interval_excludes_zero(result, low, high, word):
    found = summary(result(low, high), 800, 1200)
    assert found["better"]["verdict"] == found["better"]["sets"][0]["verdict"] == word
    assert lines(result(low, high), 800, 1200)["Better search"][0] == word
    assert (found["next"] is None) == (word == "yes")


def test_what_is_unproven_says_what_more_rows_cost(result):
    unproven = result(-0.01, 0.03)
    assert lines(unproven, 800, 1200)["Next"][1] == "5,000 rows would take 2.1 hours of the teacher (--budget 125m)"
    assert "20,000 rows" in lines(unproven, 5_000, 100)["Next"][1]  # never fewer than there are
    assert "200,000 rows" in lines(unproven, 50_000, 100)["Next"][1]
    assert "would take" not in lines(unproven, 10, 0)["Next"][1]
    assert "would take" not in lines(unproven, 0, 10)["Next"][1]


def test_harm_says_not_to_use_the_model(result):
    assert "do not use this model" in lines(result(-0.03, -0.01), 800, 1200)["Next"][1]


def test_without_a_set_there_is_agreement_which_is_not_relevance(result):
    found = lines(result(sets={}), 800, 1200)
    assert found["Learned from the teacher"] == ("unproven", "agreement 70.0 → 75.0 on 5 held-out queries")
    assert found["Better search"][0] == "unmeasured"
    assert "--eval DIR" in found["Next"][1] and "not relevance" in found["Next"][1]
    nothing = lines(result(sets={}, agreement=None), 800, 1200)
    assert nothing["Learned from the teacher"] == ("unmeasured", "no query was held out")
    assert "--eval DIR" in nothing["Next"][1]


def test_a_set_cannot_speak_to_the_terminal(result):
    both = result(name="a\x1b[31mb")
    both["sets"] |= result()["sets"]
    text = str([line.text for line in closing_lines(summary(both, 10, 10))])
    assert "\x1b" not in text and "‹U+001B›" in text


def test_of_several_sets_each_has_a_line_and_one_that_is_worse_is_the_verdict(result):
    both = result()
    both["sets"] |= result(-0.05, -0.01, name="npl")["sets"]
    found = summary(both, 10, 10)
    said = [line for line in closing_lines(found) if line.label == "Better search"]
    assert [line.verdict for line in said] == ["yes", "worse"]
    assert said[0].text.endswith("of scifact") and said[1].text.endswith("of npl")
    assert found["better"]["verdict"] == "worse" and "do not use" in found["next"]


def test_rows_from_a_log_are_said(result):
    assert lines(result(), 31, 420, {}, 31)["Rows"][1] == "31 made here in 7.0 minutes, all of them from your query log"
    assert lines(result(), 31, 420, {}, 12)["Rows"][1] == "31 made here in 7.0 minutes, 12 of them from your query log"


def test_the_summary_has_the_numbers_of_the_result(result):
    found = summary(result(), 800, 1200, {"r": 3}, 7)
    [one] = found["better"]["sets"]
    assert (one["name"], one["queries"], one["model"], one["delta"], one["ci95"]) == (
        "scifact",
        300,
        0.684,
        0.014,
        [0.002, 0.026],
    )
    assert one["start"] == pytest.approx(0.67)
    assert found["rows"] == {"made": 800, "from_log": 7, "released": {"r": 3}, "teacher_seconds": 1200}
