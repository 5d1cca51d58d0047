import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import gecko
from gecko.compute.int8 import weight_levels
from gecko.core.errors import ConfigError
from gecko.encoder.backend import TorchBackend, is_faster, torch_backend
from gecko.encoder.packed import BertBackend, Int8Linear, can_pack, equal_runs, int8_works

needs_int8 = pytest.mark.skipif(not int8_works(), reason="this processor does not multiply 8-bit integers")


def test_float32_equals_the_padded_model(model: SentenceTransformer, rows: list[list[int]]) -> None:
    expected = TorchBackend(model, "float32")(rows)
    np.testing.assert_allclose(BertBackend(model, "float32")(rows), expected, atol=2e-6)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2


@pytest.mark.parametrize("mode", ["cls", "max", "lasttoken", ("mean", "weightedmean")])
def test_every_pooling(model: SentenceTransformer, rows: list[list[int]], mode) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    other = SentenceTransformer(modules=[model[0], Pooling(32, pooling_mode=mode)], device="cpu")
    np.testing.assert_allclose(BertBackend(other, "float32")(rows), TorchBackend(other, "float32")(rows), atol=2e-6)


@pytest.mark.parametrize("act", ["relu", "gelu_new"])
def test_activations(model: SentenceTransformer, rows: list[list[int]], act: str) -> None:
    import copy

    from transformers.activations import ACT2FN

    other = copy.deepcopy(model)
    other.transformers_model.config.hidden_act = act
    for layer in other.transformers_model.encoder.layer:
        layer.intermediate.intermediate_act_fn = ACT2FN[act]
    got = BertBackend(other, "float32")(rows)
    np.testing.assert_allclose(got, TorchBackend(other, "float32")(rows), atol=2e-6)
    assert np.abs(got - BertBackend(model, "float32")(rows)).max() > 1e-5


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("int8", marks=needs_int8)])
def test_low_precision_is_close(model: SentenceTransformer, rows: list[list[int]], precision: str) -> None:
    expected, got = BertBackend(model, "float32")(rows), BertBackend(model, precision)(rows)
    assert (got * expected).sum(axis=1).min() > {"bfloat16": 0.999, "int8": 0.99}[precision]
    assert np.abs(got - expected).max() > 1e-6
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-6), ("bfloat16", 0.02), pytest.param("int8", 0.02, marks=needs_int8)]
)
def test_neighbours_do_not_matter(
    model: SentenceTransformer, rows: list[list[int]], precision: str, tolerance: float
) -> None:
    backend = BertBackend(model, precision)
    together = backend(rows)
    alone = np.concatenate([backend([row]) for row in rows])
    np.testing.assert_allclose(together, alone, atol=tolerance)
    assert (together * alone).sum(axis=1).min() > 0.9999


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_linear_is_rounding_and_nothing_else(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gecko.compute.int8.ROUNDED", 7 * 64)  # 20 tokens are three pieces
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(48, 64, generator=generator), torch.randn(48, generator=generator)
    x = torch.randn(20, 64, generator=generator) * torch.logspace(-3, 3, 20)[:, None]  # tokens of very different size
    x[3] = 0
    scale, step = x.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127, weight.abs().amax(1) / weight_levels()
    slow = (x / scale).round() @ (weight / step[:, None]).round().T * scale * step + bias
    got = Int8Linear(weight, bias, dtype)(x.to(dtype)).float()
    size = x.norm(dim=1, keepdim=True) * weight.norm(dim=1) / 8 + bias.abs()
    assert ((got - slow).abs() / size).max() < (1e-4 if dtype == torch.float32 else 0.03)
    assert ((got - (x @ weight.T + bias)).abs() / size).max() < 0.05 * 127 / weight_levels()


def test_runs_of_equal_lengths() -> None:
    assert equal_runs([9, 4, 4, 1]) == [(0, 1, 9), (9, 2, 4), (17, 1, 1)]
    assert equal_runs([3, 3]) == [(0, 2, 3)]


def test_the_faster_of_two_engines() -> None:
    asked: list[int] = []

    def backend(seconds: float):
        def run(rows: list[list[int]]) -> None:
            asked.append(sum(map(len, rows)))
            time.sleep(seconds)

        return run

    slow, fast, rows = backend(0.02), backend(0.001), [[1] * 100, [2] * 50]
    assert is_faster(fast, slow, rows)
    assert not is_faster(slow, fast, rows)
    assert not is_faster(slow, slow, rows)  # no better is not enough
    assert set(asked) == {2100}


def test_choice(model: SentenceTransformer, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_pack(model)
    for faster in (True, False):
        monkeypatch.setattr("gecko.encoder.backend.has_fast_bfloat16", lambda _: True)
        monkeypatch.setattr("gecko.encoder.backend.is_faster", lambda *_, faster=faster: faster)
        assert torch_backend(model, "auto").precision == ("int8" if faster and int8_works() else "bfloat16")
    monkeypatch.setattr("gecko.encoder.backend.has_fast_bfloat16", lambda _: False)
    assert torch_backend(model, "auto").precision == "int8" or not int8_works()
    assert gecko.load(str(tiny_model)).precision == torch_backend(model, "auto").precision
    monkeypatch.setattr("gecko.encoder.backend.INT8_COSINE", 1.1)  # as if int8 moved the vectors
    assert torch_backend(model, "auto").precision == "float32"
    monkeypatch.setattr("gecko.encoder.packed.int8_works", lambda: False)
    assert torch_backend(model, "auto").precision == "float32"
    with pytest.raises(ConfigError, match="does not multiply"):
        torch_backend(model, "int8")
    monkeypatch.setattr("gecko.encoder.packed.can_pack", lambda _: False)
    assert isinstance(torch_backend(model, "float32"), TorchBackend)
    with pytest.raises(ConfigError, match="BERT models on a CPU"):
        torch_backend(model, "int8")
