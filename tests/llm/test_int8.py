"""The 8-bit layers against their definition, and an 8-bit teacher against itself in float32."""

import pytest
import torch
from torch import nn

from gecko.compute.device import has_int8
from gecko.compute.int8 import ZERO, PackedWeights, round_rows, row_step, weight_levels
from gecko.config.stages import RelabelConfig
from gecko.core.errors import TeacherError
from gecko.core.progress import Silent
from gecko.llm.base import Group
from gecko.llm.int8 import Int8Linear, _Rounder, pieces, to_int8
from gecko.llm.local import _wants_int8
from gecko.llm.registry import load_teacher
from gecko.prompts import load_prompt

needs_int8 = pytest.mark.skipif(not has_int8(), reason="this torch multiplies no 8-bit matrices here")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 63, 131])
@pytest.mark.parametrize("together", [64 * 40, 1])
def test_rounding_is_within_half_a_step_whatever_the_neighbours(dtype, rows, together, monkeypatch):
    monkeypatch.setattr("gecko.compute.int8.ROUNDED", together)
    generator = torch.Generator().manual_seed(0)
    source = (torch.randn(rows, 40, generator=generator) * torch.logspace(-3, 3, rows)[:, None]).to(dtype)
    source[0] = 0
    rounded, scale = round_rows(source)
    assert rounded.dtype == torch.uint8
    back = (rounded.float() - ZERO) * scale.float()
    assert ((back - source.float()).abs() <= 0.5005 * scale.float()).all()
    alone, alone_scale = round_rows(source[-1:])
    assert torch.equal(alone[0], rounded[-1])
    assert torch.equal(alone_scale[0], scale[-1])
    if rows > 1:
        assert (rounded[1:].float() - ZERO).abs().amax(dim=1).min() >= 126  # the whole range is used


@needs_int8
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 255, 257])
def test_any_number_of_rows_is_multiplied_by_few_kernels(rows):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(24, 32, generator=generator)
    rounded = torch.randint(1, 256, (rows, 32), generator=generator, dtype=torch.uint8)
    scale = weight.abs().amax(dim=1) / weight_levels()
    exact = (rounded.double() - ZERO) @ (weight / scale[:, None]).round().double().T * scale.double()
    found = PackedWeights(weight).multiply(rounded, torch.float32)
    assert found.shape == (rows, 24)
    assert torch.allclose(found.double(), exact, atol=1e-3)
    assert len({count + -count % row_step(count) for count in range(1, 2049)}) < 64


def test_wide_inputs_are_cut_into_pieces():
    assert pieces(2048) == [slice(0, 2048)]
    assert pieces(2049) == [slice(0, 1280), slice(1280, 2049)]
    assert sum(part.stop - part.start for part in pieces(8960)) == 8960


@needs_int8
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece", [48, 20])
def test_a_layer_is_the_product_of_the_rounded_matrices(bias, dtype, piece, monkeypatch):
    monkeypatch.setattr("gecko.llm.int8.WIDEST", piece)
    monkeypatch.setattr("gecko.llm.int8.PIECE", piece)
    generator = torch.Generator().manual_seed(1)
    linear = nn.Linear(48, 33, bias=bias).to(dtype)
    states = torch.randn(2, 5, 48, generator=generator).to(dtype)
    with torch.inference_mode():
        found = Int8Linear(linear, _Rounder(), dtype)(states)
        wanted = torch.zeros(10, 33)
        for part in pieces(48):
            weight = linear.weight[:, part].float()
            step = weight.abs().amax(dim=1, keepdim=True) / weight_levels()
            rounded, scale = round_rows(states.flatten(0, 1)[:, part])
            inputs = (rounded.float() - ZERO) * scale.float()
            wanted += inputs @ ((weight / step).round() * step).T
        if bias:
            wanted = wanted + linear.bias.float()
    assert found.shape == (2, 5, 33)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.float().flatten(0, 1), wanted, atol=tolerance, rtol=tolerance)


@needs_int8
def test_layers_that_read_the_same_share_one_rounding_and_another_input_is_not_mistaken(monkeypatch):
    rounder, calls = _Rounder(), []
    monkeypatch.setattr("gecko.llm.int8.round_rows", lambda rows: (calls.append(1), round_rows(rows))[1])
    one, two = (Int8Linear(nn.Linear(16, 4), rounder, torch.float32) for _ in range(2))
    first, second = torch.randn(3, 16), torch.randn(3, 16)
    with torch.inference_mode():
        one(first), two(first), two(second), one(first)
    assert len(calls) == 3


@needs_int8
def test_an_8_bit_teacher_judges_like_its_full_self(tiny_qwen):
    from transformers import AutoModelForCausalLM

    spec = f"hf:{tiny_qwen}"
    full = load_teacher(spec, RelabelConfig(precision="full"), Silent())
    small = load_teacher(spec, RelabelConfig(precision="int8"), Silent())
    kinds = {type(module) for module in small.model.base_model.modules()}
    assert Int8Linear in kinds
    assert nn.Linear not in kinds
    groups = [Group("a passage about the sea", ("what is the sea", "who sails")), Group("another one", ("where",))]
    prompt = load_prompt("query_likelihood")
    pairs = [
        (one[0] / one[1], two[0] / two[1])
        for first, second in zip(full.score(prompt, groups), small.score(prompt, groups), strict=True)
        for one, two in zip(first, second, strict=True)
    ]
    assert any(one != two for one, two in pairs)
    assert all(abs(one - two) < 0.05 * abs(one) for one, two in pairs)
    untouched = AutoModelForCausalLM.from_pretrained(tiny_qwen)
    head = to_int8(untouched, torch.float32)
    assert isinstance(untouched.get_output_embeddings(), nn.Linear)
    states = torch.randn(5, head.in_features)
    exact = untouched.get_output_embeddings()(states).detach()
    assert torch.allclose(head(states), exact, atol=0.03 * float(exact.abs().max()))


@needs_int8
def test_rounded_logits_touch_the_normaliser_alone(tiny_qwen):
    spec = f"hf:{tiny_qwen}"
    lm = load_teacher(spec, RelabelConfig(precision="int8"), Silent())
    dtype = lm.model.dtype  # bfloat16 where the processor is fast at it
    states, targets = torch.randn(6, lm.model.config.hidden_size).to(dtype), torch.tensor([[1, 2], [3, 4], [5, 6]] * 2)
    with torch.inference_mode():
        exact = torch.log_softmax(lm.model.get_output_embeddings()(states).float(), dim=-1).gather(1, targets)
        found = lm.output.logprobs(states, targets)
        sure = lm.output.logprobs(100 * lm.model.get_output_embeddings().weight[:3], torch.arange(3))
    assert not torch.equal(found, exact)
    assert torch.allclose(found, exact, atol=0.05)
    rounding = 1e-5 if dtype == torch.float32 else 0.02
    assert torch.allclose(found[:, 0] - found[:, 1], exact[:, 0] - exact[:, 1], atol=rounding)
    assert bool((sure <= 0).all())


def test_precision_is_refused_where_it_cannot_be_had():
    assert not _wants_int8("full", "cpu", 4096)
    assert not _wants_int8("auto", "cuda", 4096)
    assert not _wants_int8("auto", "cpu", 576)
    with pytest.raises(TeacherError, match="relabel.precision"):
        _wants_int8("int8", "cuda", 4096)
