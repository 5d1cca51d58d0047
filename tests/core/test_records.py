from dataclasses import fields
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gecko.core.records import (
    SCHEMAS,
    Candidate,
    Example,
    Grade,
    Passage,
    Place,
    Query,
    Score,
    Text,
    from_table,
    to_table,
)

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)  # Arrow holds UTF-8, so no lone surrogates
single = st.floats(width=32, allow_nan=False)
double = st.floats(allow_nan=False)
small = st.integers(-(2**31), 2**31 - 1)
texts = st.builds(Text, words, words, words)
KINDS: dict[type, st.SearchStrategy[Any]] = {
    Passage: st.builds(Passage, words, words, words, words),
    Query: st.builds(Query, words, words, words, words, words, words),
    Candidate: st.builds(Candidate, words, words, small, single, st.booleans()),
    Score: st.builds(Score, words, words, words, words, double, small, double),
    Grade: st.builds(Grade, words, words, words, words, small),
    Place: st.builds(Place, words, words, words, words, small, small, st.none() | st.booleans()),
    Example: st.builds(
        Example,
        dataset=words,
        task=words,
        query=words,
        positive=texts,
        negatives=st.lists(texts, max_size=3).map(tuple),
        symmetric=st.booleans(),
        group=words,
        weight=single,
        query_id=words,
        seed_id=words,
        candidates=st.lists(words, max_size=3).map(tuple),
        fused=st.lists(double, max_size=3).map(tuple),
    ),
}


def test_every_record_has_a_schema_with_its_fields() -> None:
    assert set(SCHEMAS) == set(KINDS)
    for kind, schema in SCHEMAS.items():
        assert schema.names == [field.name for field in fields(kind)]


@pytest.mark.parametrize("kind", list(KINDS), ids=lambda kind: kind.__name__)
@settings(deadline=None)  # the first table loads pyarrow
@given(data=st.data())
def test_a_table_gives_back_what_it_was_made_of(kind: type, data: st.DataObject) -> None:
    rows = data.draw(st.lists(KINDS[kind], max_size=4))
    table = to_table(kind, rows)
    assert table.schema == SCHEMAS[kind]
    assert list(from_table(kind, table)) == rows


def test_no_rows_keep_the_schema() -> None:
    table = to_table(Example, [])
    assert (table.num_rows, table.schema) == (0, SCHEMAS[Example])
    assert list(from_table(Example, table)) == []


def test_a_value_of_another_type_is_refused() -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        to_table(Candidate, [Candidate("q", "p", "first", 0.5)])  # type: ignore[arg-type]


@pytest.mark.parametrize(("title", "content"), [("Jam", "Jam\nWhy it moulds."), ("", "Why it moulds.")])
def test_content_of_a_passage(title: str, content: str) -> None:
    assert Passage("p", title, "Why it moulds.").content == content


def test_records_are_values() -> None:
    passage = Passage("p", "", "text")
    with pytest.raises(AttributeError):
        passage.text = "other"  # type: ignore[misc]
    assert passage == Passage("p", "", "text") != Passage("p", "", "other")
