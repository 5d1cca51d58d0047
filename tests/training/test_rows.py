"""Rows as a dataset, and their way through the stock collator."""

from dataclasses import replace

import pytest
import torch

from gecko.config.training import LossConfig
from gecko.core.errors import TrainingError
from gecko.core.records import Example, Text
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


@pytest.mark.parametrize("form", ["native", "unified"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_of_one_query_are_related_though_one_has_lost_its_task(form, symmetric):
    one, other = row("a", "b", symmetric=symmetric), row("a", "c", symmetric=symmetric)
    for rows in ([one, replace(other, task="")], [one, other]):
        ids = RowIds.from_labels(torch.tensor(to_dataset(rows, form, LossConfig())["label"][:]))
        assert ids.related().all()
        assert ids.positive[0] != ids.positive[1]
    asked = to_dataset([row("a", "b"), row("c", "a")], form, LossConfig())["label"][:]
    assert RowIds.from_labels(torch.tensor(asked)).related().all()  # a passage that reads as a query of the batch


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
    assert batch["label"].shape == (2, 9)
    assert torch.equal(RowIds.from_labels(batch["label"]).weight, torch.tensor([0.1, 3.0]))
    assert {name.removesuffix("_input_ids") for name in batch if name.endswith("_input_ids")} == {
        "query",
        "positive",
        "negative_1",
    }


CORPUS = {name: Text(name, "", f"text of {name}") for name in "uvwxyz"}


def scored(query, candidates, fused, **fields):
    return replace(row(query, "text of u", **fields), candidates=tuple(candidates), fused=tuple(fused))


def test_candidates_and_their_scores_are_listed():
    rows = [scored("a", "uvw", (2.0, 0.7, 0.1)), row("b", "c"), scored("d", "xy", (1.5, 0.5))]
    config = LossConfig(distill=1.0)
    data = to_dataset(rows, "native", config, CORPUS)
    assert data.column_names == ["query", "positive", "candidate_1", "candidate_2", "candidate_3", "label"]
    assert data["candidate_3"][:] == ["text of w", FILLER, FILLER]
    ids = RowIds.from_labels(torch.tensor(data["label"][:]))
    assert torch.equal(ids.fused, torch.tensor([[2.0, 0.7, 0.1], [0, 0, 0], [1.5, 0.5, 0]]))
    assert ids.candidates[0, 0] == ids.positive[0]
    assert (ids.candidates == ABSENT).sum(dim=1).tolist() == [0, 3, 1]


def test_fewer_candidates_are_taken_evenly_over_the_ranks():
    data = to_dataset(
        [scored("a", "uvwxyz", range(6, 0, -1))], "native", LossConfig(distill=1.0, distill_candidates=3), CORPUS
    )
    assert [data[f"candidate_{place}"][0] for place in (1, 2, 3)] == ["text of u", "text of w", "text of z"]
    assert RowIds.from_labels(torch.tensor(data["label"][:])).fused.tolist() == [[6, 4, 1]]


def test_candidates_that_cannot_be_had_are_refused():
    config = LossConfig(distill=1.0)
    with pytest.raises(TrainingError, match=r"set 's', row 0: the text of candidate 'q' is not among the 6 passages"):
        to_dataset([scored("a", "uq", (2.0, 1.0))], "native", config, CORPUS)
    with pytest.raises(TrainingError, match="2 candidates, but 1 fused"):
        to_dataset([scored("a", "uv", (2.0,))], "native", config, {**CORPUS})


def test_rows_that_no_teacher_scored_have_no_listwise_term():
    plain, listwise = (to_dataset([row()], "native", LossConfig(distill=weight), CORPUS) for weight in (0.0, 1.0))
    assert plain[:] == listwise[:]


def test_unique_ids_mark_the_rows_of_classes_and_no_others():
    rows = [
        row("a", "b", "c", group="class 1", symmetric=True),
        row("d", "e", group="e"),
        row("f", "b", "g", group="class 1", symmetric=True),
    ]
    data = to_dataset(rows, "native", LossConfig(unique_ids=True))
    assert data["query"][:] == ["a 0", "d", "f 2"]
    assert data["positive"][:] == ["b 0", "e", "b 2"]
    assert data["negative_1"][:] == ["c 0", FILLER, "g 2"]
    assert to_dataset(rows, "native", LossConfig())["query"][:] == ["a", "d", "f"]


@pytest.mark.parametrize(
    ("switch", "expected"),
    [(True, [True] * 3), (False, [False] * 3), ("symmetric", [False, True, False]), (["t"], [False, False, True])],
)
def test_same_tower_by_set(switch, expected):
    rows = [row("a", "b"), row("c", "d", symmetric=True), row("e", "f", dataset="t")]
    assert ids_of(rows, same_tower=switch).same_tower.tolist() == expected


def test_one_group_and_nothing_else_is_refused():
    rows = [row("a", "b", group="g"), row("c", "d", group="g")]
    with pytest.raises(TrainingError, match="set 's': all 2 rows are of group 'g'"):
        to_dataset(rows, "native", LossConfig())
    to_dataset([rows[0], row("c", "d", "e", group="g")], "native", LossConfig())
    to_dataset(rows, "native", LossConfig(mask_groups=False))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("a", "a", group="sole", symmetric=True), r"row 1: the positive is the query itself.* class 'sole'"),
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


def test_the_native_form_has_the_start_models_own_prompts():
    own = {"query": "Find: ", "passage": "Text: ", "STS": "Same: "}
    rows = [row("a", "b", "c"), row("d", "e", symmetric=True), row("f", "g", symmetric=True)]
    rows[1] = replace(rows[1], task="semantic similarity")
    native = to_dataset(rows, "native", LossConfig(), own=own)
    assert native["query"][:] == ["Find: a", "Same: d", "f"]
    assert native["positive"][:] == ["Text: b", "Same: e", "g"]
    assert native["negative_1"][0] == "Text: c"
    assert to_dataset(rows, "unified", LossConfig(), own=own)["query"][0] == "task: find it | query: a"
