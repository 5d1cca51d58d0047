"""Which rows are held out: a share of FRet's, never one that shares a query or a positive with a row trained on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gecko.core.errors import TrainingError
from gecko.core.records import Example, Text
from gecko.training.heldout import hold_out


def row(query, positive, dataset="fret", id=None):
    return Example(dataset, "", query, Text(positive if id is None else id, "", positive))


ROWS = [row(f"q{n}", f"p{n % 37}") for n in range(60)] + [row(f"q{n}", f"p{n}", "other") for n in range(40)]


def test_a_share_of_fret_is_held_out_by_seed():
    kept, held = hold_out(ROWS, 0.2, 0)
    assert sorted(kept + held) == list(range(100))
    assert 10 <= len(held) <= 12
    assert max(held) < 60
    assert (kept, held) == hold_out(ROWS, 0.2, 0) != hold_out(ROWS, 0.2, 1)


def test_without_fret_all_sets_are():
    assert hold_out([row(f"q{n}", f"p{n}", "other") for n in range(40)], 0.1, 0)[1]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=12, max_size=40),
    st.floats(0.05, 0.5),
    st.booleans(),
)
def test_what_is_held_out_was_not_seen(pairs, share, named):
    rows = [row(f"q{query}", f"p{positive}", id=None if named else "") for query, positive in pairs]
    try:
        kept, held = hold_out(rows, share, 0)
    except TrainingError:
        return
    assert not {rows[place].query for place in kept} & {rows[place].query for place in held}
    assert not {rows[place].positive.text for place in kept} & {rows[place].positive.text for place in held}
    assert 2 <= len(held) <= max(2, round(share * len(rows)))


@pytest.mark.parametrize("rows", [ROWS[:2], [row(f"q{n}", "same") for n in range(30)]])
def test_too_few_rows_are_refused(rows):
    with pytest.raises(TrainingError, match="train.patience needs held-out rows"):
        hold_out(rows, 0.2, 0)
