"""Attention over a tree without a mask: against a mask, and what becomes of a kernel that cannot do it.

That a whole teacher answers alike both ways is in ``test_transformers.py``, all of which runs by mask and by tree.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from gecko.compute.device import texts_together
from gecko.core.errors import TeacherError
from gecko.llm.base import Group, Sampling
from gecko.llm.transformers import TransformersLM
from gecko.llm.tree import NAME, Kernel, Segments, joined, kernel_for, offer_tree, segments

from .conftest import RELEVANCE, plain
from .test_transformers import GROUPS, PASSAGES, WRITE, greedy

CPU = torch.device("cpu")


def states(tokens: int, heads: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, heads, 8, generator=torch.Generator().manual_seed(seed))


def by_mask(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)[0].transpose(
        0, 1
    )


@pytest.mark.parametrize("causal", [False, True])
def test_segments_equal_a_mask(causal: bool) -> None:
    query, key, value = states(9, 4, 1), states(20, 2, 2), states(20, 2, 3)
    mask = torch.zeros(9, 20, dtype=torch.bool)
    for asks, sees in (((0, 2), (0, 6)), ((2, 8), (6, 13)), ((8, 9), (13, 20))):
        for place, row in enumerate(range(*asks)):
            hidden = asks[1] - asks[0] - 1 - place if causal else 0  # the last of a segment sees all of its keys
            mask[row, sees[0] : sees[1] - hidden] = True
    found, _ = plain(query, key, value, segments([2, 6, 1], CPU), segments([6, 7, 7], CPU), causal, 0.3)
    torch.testing.assert_close(found, by_mask(query, key, value, mask))


def test_of_a_slot_what_is_used_is_read() -> None:
    query, key, value = states(2, 2, 1), states(10, 1, 2), states(10, 1, 3)
    slots = Segments(torch.tensor([0, 5, 10], dtype=torch.int32), 4, torch.tensor([4, 1], dtype=torch.int32))
    found, _ = plain(query, key, value, segments([1, 1], CPU), slots, False, 0.3)
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[0, :4] = mask[1, 5] = True
    torch.testing.assert_close(found, by_mask(query, key, value, mask))


def test_two_sets_of_keys_are_joined() -> None:
    query, key, value = states(3, 4, 1), states(11, 2, 2), states(11, 2, 3)

    def over(keys: slice) -> tuple[torch.Tensor, torch.Tensor]:
        size = segments([len(key[keys])], CPU)
        return plain(query, key[keys], value[keys], segments([3], CPU), size, False, 0.3)

    torch.testing.assert_close(joined(over(slice(4)), over(slice(4, None))), over(slice(None))[0])


def load(folder: Path, kernel: Kernel | None, **settings: Any) -> TransformersLM:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return TransformersLM(model, tokenizer, name="tiny", identity="t", kernel=kernel, **settings)


def fails(*_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    raise RuntimeError("no kernel image is available for execution on the device")


def unscaled(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return plain(*given[:-1], 40.0)


def wrong_in_slots(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    output, logsumexp = plain(*given)
    return (output if given[4].used is None else -100 * output), logsumexp


@pytest.mark.parametrize("kernel", [fails, unscaled, wrong_in_slots])
def test_a_kernel_that_reads_something_else_is_not_used(tiny_qwen: Path, kernel: Kernel) -> None:
    sure, lm = load(tiny_qwen, None), load(tiny_qwen, kernel)
    assert not lm.by_tree
    assert lm.usage.tokens == 0
    assert lm.judge(RELEVANCE, GROUPS) == sure.judge(RELEVANCE, GROUPS)
    assert lm.generate(WRITE, PASSAGES, greedy(6)) == sure.generate(WRITE, PASSAGES, greedy(6))


def test_attention_of_another_kind_is_refused() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    offer_tree()
    query = torch.zeros(1, 2, 3, 8)
    with pytest.raises(TeacherError, match="softcap"):
        ALL_ATTENTION_FUNCTIONS[NAME](torch.nn.Identity(), query, query, query, None, tree=object(), softcap=50.0)


def test_bodies_are_read_pack_by_pack(tiny_llama: Path) -> None:
    sampling = Sampling(0.9, 0.95, 8, tuple(range(len(PASSAGES))))
    large, small = load(tiny_llama, plain, pack_tokens=4096), load(tiny_llama, plain, pack_tokens=16)
    passes = []
    small.model.base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    assert small.generate(WRITE, PASSAGES, sampling) == large.generate(WRITE, PASSAGES, sampling)
    assert len(passes) >= len(PASSAGES) + 7  # one a body, one a token


def test_a_group_without_queries_takes_nothing_from_the_others(tiny_qwen: Path) -> None:
    lm = load(tiny_qwen, plain)
    alone = lm.judge(RELEVANCE, GROUPS[:1])
    found = lm.judge(RELEVANCE, [GROUPS[0], Group("a bird", ())])
    assert found[1] == []
    small = load(tiny_qwen, plain, pack_tokens=16)
    assert small.label_logprobs(RELEVANCE, [Group("a bird", ()), *GROUPS[:1]])[0] == []
    assert lm.label_logprobs(RELEVANCE, [Group("a bird", ())]) == [[]]
    assert [row.ql_sum for row in found[0]] == pytest.approx([row.ql_sum for row in alone[0]], abs=1e-4)


def test_without_a_gpu_there_is_no_kernel(tiny_qwen: Path) -> None:
    assert kernel_for(load(tiny_qwen, None).model) is None


def test_a_second_teacher_of_the_same_model_reads_by_tree_too(tiny_qwen: Path) -> None:
    first = load(tiny_qwen, plain)
    assert first.model.config._attn_implementation == NAME
    second = TransformersLM(first.model, first.tokenizer, name="tiny", identity="t", kernel=plain)
    assert second.by_tree and second.judge(RELEVANCE, GROUPS) == first.judge(RELEVANCE, GROUPS)
    third = TransformersLM(first.model, first.tokenizer, name="tiny", identity="t", kernel=fails)
    assert third.no_tree == "RuntimeError: no kernel image is available for execution on the device"
    assert third.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kernel", [None, plain])
@pytest.mark.parametrize("window", [80, 4096])
def test_texts_that_are_longer_than_a_window_are_written_as_alone(
    tiny_llama: Path, tmp_path: Path, kernel: Kernel | None, window: int
) -> None:
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=window, initializer_range=0.4,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    lm = TransformersLM(model, tokenizer, name="tiny", identity="t", kernel=kernel)
    assert lm.by_tree == (kernel is not None)
    passages = ["a bird " * 30, "river", "the red river runs " * 9]
    cut = lm.tokens.cut(WRITE)
    for passage, text in zip(passages, lm.generate(WRITE, passages, greedy(8)), strict=True):
        ids = cut.preamble + lm.tokens.data([" " + passage])[0] + cut.middle
        alone: list[int] = []
        for _ in range(8):
            with torch.inference_mode():
                alone.append(int(model(torch.tensor([ids + alone]), use_cache=False).logits[0, -1].argmax()))
        assert text == lm.writer.cut_at_stop(alone, ())[0]


def test_padded_bodies_are_read_by_few(tiny_qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, sampling = load(tiny_qwen, None), Sampling(0.0, 1.0, 4, tuple(range(36)))
    expected = lm.generate(WRITE, PASSAGES * 9, sampling)
    monkeypatch.setattr("gecko.llm.transformers.PADDED_TOKENS", 1)
    rows: list[int] = []
    decode = lm._decode
    monkeypatch.setattr(lm, "_decode", lambda *given: (rows.append(len(given[1])), decode(*given))[1])
    assert lm.generate(WRITE, PASSAGES * 9, sampling) == expected
    assert rows == [32, 4]


def test_a_gpu_writes_more_texts_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gecko.compute.device.best_device", lambda: "cuda")
    assert [texts_together(spec) for spec in ("default", "hf:some/model", "gguf:file", "vllm:some/model")] == [512] * 4
    assert texts_together("openai:http://localhost#model") == texts_together("fake") == 32
    monkeypatch.setattr("gecko.compute.device.best_device", lambda: "cpu")
    assert texts_together("default") == 32
