"""Rows with their texts for other libraries, and trainings by those libraries."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gecko.core.errors import ConfigError
from gecko.core.records import Example
from gecko.fret.export_rows import export_rows
from gecko.fret.view import RunView
from gecko.run.folder import Run

KEPT = Path(__file__).parents[1] / "golden" / "kept" / "run"


@pytest.fixture
def view(tmp_path: Path) -> RunView:
    """A finished run over 40 passages."""
    with Run(shutil.copytree(KEPT, tmp_path / "run")) as run:
        return RunView(run)


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / f"{name}.parquet").to_pylist()
    return rows


def test_triplets_are_the_rows(view: RunView, tmp_path: Path) -> None:
    counts = export_rows(view, tmp_path / "out", "sentence-transformers")
    rows = view.run.read("select", Example)
    written = read(tmp_path / "out", "train")
    assert counts["train"] == len(rows) == len(written)
    by_id = view.by_id
    for row, line in zip(rows, written, strict=True):
        assert list(line) == ["anchor", "positive", "negative"]
        assert line["anchor"] == row.query
        assert line["positive"] == by_id[row.positive.id].content
        assert line["negative"] == by_id[row.negatives[0].id].content
    heldout = {query.text for query in view.heldout}
    assert {line["anchor"] for line in read(tmp_path / "out", "heldout")} <= heldout
    assert not heldout & {line["anchor"] for line in written}
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| `train.parquet` | {len(rows):,} |" in card and str(tmp_path) not in card


def test_pairs_have_the_teachers_probability(view: RunView, tmp_path: Path) -> None:
    export_rows(view, tmp_path / "out", "cross-encoder")
    row = view.run.read("select", Example)[0]
    ours = [line for line in read(tmp_path / "out", "train") if line["query"] == row.query]
    labels = view.labels[row.query_id]
    assert [line["passage"] for line in ours] == [view.by_id[label.passage_id].content for label in labels]
    odds = np.array([label.rc for label in labels])
    np.testing.assert_allclose([line["score"] for line in ours], np.exp(odds) / (1 + np.exp(odds)))


def test_lists_name_texts_that_stand_beside_them(view: RunView, tmp_path: Path) -> None:
    counts = export_rows(view, tmp_path / "out", "pylate")
    train = read(tmp_path / "out", "train")
    queries = {line["query_id"]: line["text"] for line in read(tmp_path / "out", "queries")}
    documents = {line["document_id"]: line["text"] for line in read(tmp_path / "out", "documents")}
    assert list(train[0]) == ["query_id", "document_ids", "scores"]
    assert {line["query_id"] for line in train} == {row.query_id for row in view.run.read("select", Example)}
    for line in train:
        labels = view.labels[line["query_id"]]
        assert line["document_ids"] == [label.passage_id for label in labels]
        assert line["query_id"] in queries and {*line["document_ids"]} <= documents.keys()
    assert counts["documents"] == len(documents) and all(
        documents[name] == view.by_id[name].content for name in documents
    )


def test_nothing_is_written_over(view: RunView, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="out is there already"):
        export_rows(view, tmp_path / "out", "pylate")
    with pytest.raises(ConfigError, match="--for keras: give one of sentence-transformers, cross-encoder, pylate"):
        export_rows(view, tmp_path / "other", "keras")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_sentence_transformers_trains_on_them(view: RunView, tiny_model: Path, tmp_path: Path) -> None:
    from datasets import load_dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    export_rows(view, tmp_path / "out", "sentence-transformers")
    rows = load_dataset("parquet", data_dir=str(tmp_path / "out"), data_files="train.parquet", split="train")
    model = SentenceTransformer(str(tiny_model), device="cpu")
    arguments = Arguments(str(tmp_path / "trained"), max_steps=2, per_device_train_batch_size=4, report_to="none")
    loss = MultipleNegativesRankingLoss(model)
    done = SentenceTransformerTrainer(model, arguments, train_dataset=rows, loss=loss).train()
    assert done.global_step == 2 and np.isfinite(done.training_loss)


@pytest.mark.slow
def test_a_cross_encoder_is_trained_on_them(view: RunView, tiny_model: Path, tmp_path: Path) -> None:
    from datasets import load_dataset
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer
    from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments as Arguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    export_rows(view, tmp_path / "out", "cross-encoder")
    rows = load_dataset("parquet", data_dir=str(tmp_path / "out"), data_files="train.parquet", split="train")
    model = CrossEncoder(str(tiny_model), num_labels=1, device="cpu")
    arguments = Arguments(str(tmp_path / "trained"), max_steps=2, per_device_train_batch_size=4, report_to="none")
    done = CrossEncoderTrainer(model, arguments, train_dataset=rows, loss=BinaryCrossEntropyLoss(model)).train()
    assert done.global_step == 2 and np.isfinite(done.training_loss)
