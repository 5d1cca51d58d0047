"""Training of the query side alone, against the start model's passage vectors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import gecko
from gecko.config.training import LossConfig, TrainConfig
from gecko.core.errors import ConfigError, RunError, TrainingError
from gecko.core.records import Example, Passage, Text
from gecko.encoder import load_encoder, model_identity
from gecko.encoder.export import export_model
from gecko.encoder.towers import Side, passage_identity
from gecko.search import IndexConfig, build_index, open_index
from gecko.training import train
from gecko.training.collate import Collator, freeze_passages
from gecko.training.loss import GeckoLoss
from gecko.training.merge import merge_models
from gecko.training.rows import to_dataset

WORDS = ["river", "lake", "mountain", "forest", "cloud", "stone", "island", "valley", "desert", "meadow"]
FROZEN = TrainConfig(epochs=2, batch=4, learning_rate=1e-3, formats=["native"], freeze="passages", bf16=False)


def examples(count: int = 10) -> list[Example]:
    def text(number: int) -> Text:
        return Text(f"p{number % count}", "", f"a text of the {WORDS[number % count]} and of nothing else")

    return [
        Example(
            dataset="fret",
            task="search result",
            query=f"where is the {WORDS[number]}",
            positive=text(number),
            negatives=(text(number + 3),),
            group=f"p{number}",
            query_id=f"q{number}",
            candidates=tuple(text(number + step).id for step in range(4)),
            fused=(1.0, 0.2, -0.4, -0.8),
        )
        for number in range(count)
    ]


def passages() -> dict[str, Passage]:
    return {row.positive.id: Passage(row.positive.id, "", row.positive.text) for row in examples()}


@pytest.fixture(scope="module")
def towers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers") / "model"
    config = FROZEN.model_copy(update={"loss": LossConfig(distill=1.0)})
    points = folder.parent / "points"
    train(examples(), str(tiny_model), folder, "native", config, 0, checkpoints=points, passages=passages())
    return folder


def test_frozen_loss_and_gradient_are_those_of_a_second_model_without_gradient(tiny_model: Path) -> None:
    model, start = (SentenceTransformer(str(tiny_model), device="cpu").eval() for _ in range(2))
    rows = [
        *examples(),
        replace(examples()[0], symmetric=True, query="one", positive=Text("s", "", "another"), group=""),
    ]
    config = LossConfig(distill=1.0)
    data = to_dataset(rows, "native", config, passages())
    frozen = freeze_passages(start, rows, data)
    batch = Collator(model.preprocess, frozen=frozen)([data[place] for place in range(len(data))])
    labels = batch.pop("label")
    parts = [
        {name.partition("_")[2]: value for name, value in batch.items() if name.startswith(prefix)}
        for prefix in dict.fromkeys(name.partition("_")[0] for name in batch)
    ]
    loss = GeckoLoss(model, config)(parts, labels)
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()

    def embed(column: str) -> torch.Tensor:
        vectors = []
        for row, example in zip(data, rows, strict=True):
            one = model if column == "query" or (example.symmetric and column == "positive") else start
            vector = one(one.preprocess([row[column]]))["sentence_embedding"][0]
            vectors.append(vector if one is model else vector.detach())
        return torch.stack(vectors)

    columns = [name for name in data.column_names if name != "label"]
    plain = GeckoLoss(model, config).calculate_loss([[embed(name)] for name in columns], torch.tensor(data["label"]))
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), abs=1e-5)
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            assert torch.allclose(found[name], weight.grad, atol=1e-5), name


def test_passages_keep_the_vectors_of_the_start_and_queries_move(towers: Path, tiny_model: Path) -> None:
    start, student = (load_encoder(str(folder), bf16=False) for folder in (tiny_model, towers))
    texts, asked = list(passages().values()), [row.query for row in examples()]
    assert np.allclose(start.passages(texts), student.passages(texts), atol=1e-5)
    assert np.abs(start.queries(asked) - student.queries(asked)).max() > 0.01
    before = (start.queries(asked) * start.passages(texts)).sum(axis=1).mean()
    assert (student.queries(asked) * student.passages(texts)).sum(axis=1).mean() > before


def test_sentence_transformers_alone_reads_it_and_no_task_means_a_passage(towers: Path, tiny_model: Path) -> None:
    plain, start = (SentenceTransformer(str(folder), device="cpu") for folder in (towers, tiny_model))
    texts = [row.query for row in examples()]
    assert np.allclose(plain.encode(texts), start.encode(texts), atol=1e-5)
    assert np.allclose(plain.encode_document(texts), start.encode(texts), atol=1e-5)
    assert np.allclose(
        plain.encode_query(texts, normalize_embeddings=True), load_encoder(str(towers)).queries(texts), atol=1e-5
    )


def test_the_embedder_runs_each_side_in_its_tower(towers: Path) -> None:
    encoder, embedder = load_encoder(str(towers), bf16=False), gecko.load(str(towers), precision="float32")
    texts, asked = list(passages().values()), [row.query for row in examples()]
    assert np.allclose(embedder.passages(texts), encoder.passages(texts), atol=1e-5)
    assert np.allclose(embedder.queries(asked), encoder.queries(asked), atol=1e-5)
    both = [*embedder.prepare(asked, task="RETRIEVAL_QUERY"), *embedder.prepare([one.text for one in texts])]
    mixed = embedder.run([*both[::2], *both[1::2]])
    alone = np.concatenate([encoder.queries(asked), encoder.passages(texts)])
    assert np.allclose(mixed, np.concatenate([alone[::2], alone[1::2]]), atol=1e-5)


def test_it_says_whose_index_serves_it(towers: Path, tiny_model: Path) -> None:
    assert passage_identity(str(towers)) == model_identity(str(tiny_model)) == passage_identity(str(tiny_model))
    assert model_identity(str(towers)) != model_identity(str(tiny_model))


def test_an_index_of_the_start_model_serves_it(towers: Path, tiny_model: Path, tmp_path: Path) -> None:
    texts = list(passages().values())
    begun = build_index(gecko.load(str(tiny_model)), texts, tmp_path / "index", IndexConfig())
    student = gecko.load(str(towers))
    index = open_index(student, tmp_path / "index")
    again = build_index(student, iter(texts), tmp_path / "index", IndexConfig())  # finds it built
    asked = [row.query for row in examples()]
    found, wanted = (one.search(asked, 3, method="dense") for one in (index, again))
    assert found == wanted != begun.search(asked, 3, method="dense")
    with pytest.raises(RunError, match="another model"):
        folder = tmp_path / "other"
        build_index(student, texts, folder, IndexConfig(dim=16))
        open_index(gecko.load("minilm"), folder)


@pytest.mark.parametrize("side", ["query", "document"])
def test_an_export_is_of_one_tower_that_is_named(towers: Path, tiny_model: Path, tmp_path: Path, side: Side) -> None:
    with pytest.raises(ConfigError, match="--tower query or --tower document"):
        export_model(str(towers), tmp_path / "none", "onnx")
    with pytest.raises(ConfigError, match="has one tower; leave it out"):
        export_model(str(tiny_model), tmp_path / "none", "onnx", side=side)
    export_model(str(towers), tmp_path / side, "onnx", side=side)
    exported, asked = gecko.load(str(tmp_path / side)), [row.query for row in examples()]
    model = load_encoder(str(towers), bf16=False)
    wanted = model.queries(asked) if side == "query" else model.passages([Passage("", "", text) for text in asked])
    assert np.allclose(exported.queries(asked), wanted, atol=1e-4)


def test_two_towers_are_refused_where_one_is_needed(towers: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="another architecture"):
        merge_models([str(tiny_model), str(towers)], tmp_path / "mean")
    with pytest.raises(TrainingError, match="two towers; train the model"):
        train(examples(), str(towers), tmp_path / "model", "native", FROZEN, 0, checkpoints=tmp_path / "points")
    with pytest.raises(TrainingError, match=r"of the native format.*formats=\['native'\]"):
        train(examples(), str(tiny_model), tmp_path / "model", "unified", FROZEN, 0, checkpoints=tmp_path / "points")


def test_settings_that_exclude_each_other() -> None:
    for values, said in (
        ({"formats": ["native", "unified"]}, "name that one alone"),
        ({"part_tokens": 512}, "part_tokens exclude each other"),
        ({"backbone": {"projection": 8}}, r"backbone\.projection exclude each other"),
    ):
        with pytest.raises(ValueError, match=said):
            TrainConfig.model_validate({"formats": ["native"], "freeze": "passages", **values})
    assert "freeze" not in TrainConfig().model_dump_json()


def test_two_models_of_two_towers_have_a_mean(towers: Path, tmp_path: Path) -> None:
    merge_models([str(towers), str(towers)], tmp_path / "mean")
    asked = [row.query for row in examples()]
    assert np.allclose(
        load_encoder(str(tmp_path / "mean")).queries(asked), load_encoder(str(towers)).queries(asked), atol=1e-5
    )
    with pytest.raises(ConfigError):
        merge_models([str(towers)], tmp_path / "one")
