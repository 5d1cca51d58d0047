import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gecko.compute.device import has_fast_bfloat16
from gecko.core.errors import ConfigError
from gecko.encoder import Encoder, load_encoder

from .conftest import sentences


def test_bf16_is_close_and_follows_the_weights(tiny_model: Path) -> None:
    texts = sentences(12)
    half = load_encoder(str(tiny_model), bf16=True)
    expected = half.model.encode(texts, normalize_embeddings=True)
    got = half.queries(texts)
    assert np.sum(got * expected, axis=1).min() >= 0.999
    assert np.abs(got - expected).max() > 0  # it was bfloat16
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    assert half.model.dtype == torch.float32
    with torch.no_grad():
        half.model[0].model.encoder.layer[0].output.dense.weight.mul_(-3)
    changed = half.model.encode(texts, normalize_embeddings=True)
    assert np.sum(changed * expected, axis=1).min() < 0.99
    assert np.sum(half.queries(texts) * changed, axis=1).min() >= 0.999


def test_bf16_probe_answers() -> None:
    assert has_fast_bfloat16("cpu") in (True, False)


def test_truncation(plain: Encoder) -> None:
    short = plain.truncated(8)
    assert (plain.dim, short.dim) == (32, 8)
    full, cut = plain.queries(["the cat"]), short.queries(["the cat"])
    np.testing.assert_allclose(cut, full[:, :8] / np.linalg.norm(full[:, :8]), atol=1e-6)
    assert short.model is plain.model
    for wrong in (0, 33):
        with pytest.raises(ConfigError, match="32 dimensions"):
            plain.truncated(wrong)


def test_window(tiny_model: Path) -> None:
    texts = ["the cat " * 40, "the cat " * 60]
    same = load_encoder(str(tiny_model), bf16=False).queries(texts)
    np.testing.assert_allclose(same[0], same[1], atol=1e-6)
    cut = load_encoder(str(tiny_model), max_tokens=8, bf16=False)
    np.testing.assert_allclose(*cut.queries(["red cat fish dog house bird tree", "red cat fish dog house bird car"]))
    with pytest.raises(ConfigError, match="1 to 64"):
        load_encoder(str(tiny_model), max_tokens=65)


def test_nothing_in_nothing_out(plain: Encoder) -> None:
    assert plain.queries([]).shape == (0, 32)
    assert plain.passages([]).shape == (0, 32)


def test_what_cannot_be_loaded(tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_encoder(str(broken))
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="pickled"):
        load_encoder(str(broken))
