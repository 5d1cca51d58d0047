from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from gecko.encoder import Encoder, encode

from .conftest import sentences


@pytest.mark.parametrize("budget", [1, 64, 100_000])
def test_equals_sentence_transformers(plain: Encoder, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "WINDOW", 7)
    texts = sentences(30)
    expected = plain.model.encode(texts, normalize_embeddings=True)
    got = encode.encode_texts(plain.model, texts, 32, batch_tokens=budget)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2  # the model does tell texts apart


def test_left_padding_is_cut_on_the_left(tiny_model: Path) -> None:
    model = SentenceTransformer(str(tiny_model), device="cpu")
    model.tokenizer.padding_side = "left"
    features = model.preprocess(["cat", "the red cat sleeps in a house", "the fish"])
    cut = list(encode._batches(dict(features), 3, 5, model.device))
    assert [rows for rows, _ in cut] == [[1], [2], [0]]
    for _, batch in cut:
        assert batch["attention_mask"].all()
        assert batch["input_ids"][0, 0] == model.tokenizer.cls_token_id


def test_batches_stay_in_budget(plain: Encoder) -> None:
    texts = sentences(40)
    features = plain.model.preprocess(texts)
    cut = list(encode._batches(features, len(texts), 100, plain.model.device))
    assert sorted(row for rows, _ in cut for row in rows) == list(range(len(texts)))
    assert max(batch["input_ids"].numel() for _, batch in cut) <= 100
    assert len(cut) < len(texts)
