"""Rows as a dataset, and their way through the stock collator."""

from dataclasses import replace

import pytest
import torch

from gecko.config import LossConfig
from gecko.errors import TrainingError
from gecko.records import Example, Text
from gecko.training.loss import ABSENT, RowIds
from gecko.training.rows import FILLER, to_dataset


def row(query="q", positive="p", *negatives, dataset="s", **fields):
    texts = [Text(fields.pop("id", text), "", text) for text in (positive,)] + [
        Text(text, "", text) for text in negatives
    ]
    return Example(dataset, "find it", query, texts[0], tuple(texts[1:]), **fields)


def ids_of(rows, **config):
    return RowIds.from_labels(torch.tensor(to_dataset(rows, "native", LossConfig(**config))["label"][:]))


def test_columns_and_text_of_both_formats():
    rows = [row("a", "b", "c", "d"), row("e", "f")]
    native = to_dataset(rows, "native", LossConfig())
    assert native.column_names == ["query", "positive", "negative_1", "negative_2", "label"]
    assert native["negative_2"][:] == ["d", FILLER]
    unified = to_dataset(rows, "unified", LossConfig())
    assert unified["query"][0] == "task: find it | query: a"
    assert unified["positive"][0] == "title: none | text: b"
    assert unified["negative_1"][:] == ["title: none | text: c", FILLER]


def test_symmetric_rows_have_the_query_form_on_both_sides():
    data = to_dataset([row("a", "b", "c", symmetric=True)], "unified", LossConfig())
    assert data["negative_1"][0] == "task: find it | query: c"


def test_fewer_negatives_are_absent_and_none_need_no_column():
    ids = ids_of([row("a", "b", "c", "d"), row("e", "f"), row("g", "h", "i")])
    assert (ids.negatives == ABSENT).tolist() == [[False, False], [True, True], [False, True]]
    assert to_dataset([row("a", "b")], "native", LossConfig()).column_names == ["query", "positive", "label"]
    assert ids_of([row("a", "b", "c")], hard_negatives="none").negatives.shape == (1, 0)


def test_equal_texts_have_equal_numbers_whatever_their_ids():
    ids = ids_of(
        [row("a", "b", "c"), row("a", "c", "d"), row("x", "b", "a", id="other"), row("y", "other words", id="b")]
    )
    assert ids.query[0] == ids.query[1] != ids.query[2]
    assert ids.positive[1] == ids.negatives[0, 0]
    assert ids.positive[0] == ids.positive[2] == ids.positive[3]
    assert ids.negatives[2, 0] == ids.query[0]


def test_groups_are_counted_set_by_set_and_may_be_missing():
    ids = ids_of(
        [row("a", "b", group="1"), row("c", "d", group="1"), row("e", "f", group="1", dataset="t"), row("g", "h")]
    )
    assert ids.group[0] == ids.group[1] != ids.group[2] != ABSENT
    assert ids.group[3] == ABSENT


def test_ids_and_weights_survive_the_stock_collator_exactly(tiny_bert):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

    rows = [row("a", "b", "c", weight=0.1), row("d", "e", weight=3.0)]
    data = to_dataset(rows, "native", LossConfig())
    batch = SentenceTransformerDataCollator(SentenceTransformer(str(tiny_bert)).preprocess)([data[0], data[1]])
    assert batch["label"].dtype == torch.int64
    assert batch["label"].shape == (2, 5)
    assert torch.equal(RowIds.from_labels(batch["label"]).weight, torch.tensor([0.1, 3.0]))
    assert {name.removesuffix("_input_ids") for name in batch if name.endswith("_input_ids")} == {
        "query",
        "positive",
        "negative_1",
    }


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(" ", "p"), r"set 's', row 1: the query is empty"),
        (row("q", " "), r"set 's', row 1: the positive ' ' is empty"),
        (row("q", "p", ""), r"set 's', row 1: the negative '' is empty"),
        (replace(row(), weight=float("nan"), query_id="q7"), r"set 's', row 1 \(query 'q7'\): the weight is nan"),
        (replace(row(), weight=-1.0), r"the weight is -1.0"),
    ],
)
def test_a_bad_row_is_named(bad, message):
    with pytest.raises(TrainingError, match=message):
        to_dataset([row(), bad], "native", LossConfig())


def test_no_rows_are_refused():
    with pytest.raises(TrainingError, match="no rows"):
        to_dataset([], "native", LossConfig())
