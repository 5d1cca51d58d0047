"""The teacher's reading in torch and in OpenVINO: the same packs, the same tree of passages and queries.

The decoder is traced with its mask, its positions and the preamble's keys and values as inputs, so both read each passage
once; the output layer is ours for all. What OpenVINO is given: float32, or bfloat16 where that is fast; 8-bit weights with
inputs rounded at run time (its dynamic quantisation); and 8 bits throughout, with ranges that nncf finds on the first packs.
``ratio`` is our tokens/s over the fastest of these; ``limit_share`` the share of this machine's 8-bit products that our
linear layers alone come to. Rank quality is the correlation of QL and RC with torch's in full precision, and of the fused
ranks of each query's passages.

CTranslate2 has no place for a mask of one's own, so it cannot share a passage among queries: it would read the whole
prompt for each pair, about sixteen times the tokens.

    python benchmarks/engines.py [--llm default] [--passages 20]
"""

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import nncf
import numpy as np
import openvino
import torch
from relabel import linear_weights, matmul_peaks, teacher
from transformers.cache_utils import Cache, DynamicLayer

from gecko.compute.device import has_fast_bfloat16
from gecko.evaluation.builtin import probe
from gecko.fret.relabel import relevance_logit
from gecko.llm.base import Group
from gecko.llm.prompt_tokens import masked
from gecko.llm.transformers import TransformersLM
from gecko.prompts import Prompt, load_prompt

CALIBRATION = 4  # packs


class Body(torch.nn.Module):
    """A decoder whose past is one tensor, (2 x layers, heads, P, width of a head), so that it can be traced."""

    def __init__(self, lm: TransformersLM) -> None:
        super().__init__()
        self.body = lm.model.base_model

    def forward(self, ids: Any, mask: Any, positions: Any, past: Any) -> Any:
        """(1, T) ids to (1, T, width) states."""
        layers = []
        for one in range(len(past) // 2):
            layer = DynamicLayer()
            layer.lazy_initialization(past, past)
            layer.keys, layer.values = (
                past[2 * one][None],
                past[2 * one + 1][None],
            )  # no empty tensor, which has no shape
            layers.append(layer)
        output = self.body(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=Cache(layers=layers),
            use_cache=True,
        )
        return output.last_hidden_state


def main() -> None:
    """Read the options, measure, print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--llm", default="default")
    options.add_argument("--passages", type=int, default=20, help="of the first topic of the reranking probe")
    given = options.parse_args()

    prompt = load_prompt("relevance")
    topic = probe()[0]
    queries = tuple(text for _, text in topic.queries)
    groups = [Group(passage.content, queries) for passage in topic.passages[: given.passages]]
    fast = teacher(given.llm, "int8")
    ours, weights = _measured(fast, prompt, groups), linear_weights(fast)[0]
    head = fast.output.head
    del fast  # two more copies of the weights, in float32, are on their way
    full = teacher(given.llm, "full")
    peaks = matmul_peaks(full.model.dtype)
    exact = _measured(full, prompt, groups)
    found = {"torch, full precision": exact, "gecko, 8 bits": ours}
    full.output.head = head
    inputs = [
        _inputs(full, prompt, pack) for pack in full.tokens.packs(prompt, groups, full.pack_tokens, with_end=True)
    ]
    nncf.set_log_level(logging.ERROR)
    full.model.float()
    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if has_fast_bfloat16("cpu") else "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(full.model.config.hidden_size),
    }
    with tempfile.TemporaryDirectory() as folder:
        graph = f"{folder}/body.xml"
        with torch.inference_mode(), warnings.catch_warnings(action="ignore"):
            plain = openvino.convert_model(Body(full).eval(), example_input=inputs[0])
        openvino.save_model(plain, graph, compress_to_fp16=False)
        del plain
        for weight in full.model.base_model.layers.parameters():
            weight.data = torch.empty(0)  # the graph holds them now: one copy fewer in memory
        for name, make in _forms(inputs).items():
            print(f"trying {name}", flush=True)
            model = openvino.Core().compile_model(make(openvino.Core().read_model(graph)), "CPU", hints)
            full._forward = _by(model, full)  # type: ignore[method-assign]
            found[name] = _measured(full, prompt, groups)
            print(f"{found[name][0]:.1f} tokens/s", flush=True)
            del model
    print(f"{full.name}; {torch.get_num_threads()} threads; {len(groups)} passages of {len(queries)} queries each")
    print("products: " + ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in peaks.items()))
    for name, (rate, scores) in found.items():
        print(f"{name:44} {rate:7.1f} tokens/s   {_quality(scores, exact[1])}")
    others = [rate for name, (rate, _) in found.items() if name.startswith("OpenVINO")]
    limit = peaks["int8"] / (2 * weights)
    print(json.dumps({"ratio": round(ours[0] / max(others), 2), "limit_share": round(ours[0] / limit, 3)}))


def _forms(inputs: Sequence[tuple[torch.Tensor, ...]]) -> dict[str, Callable[[Any], Any]]:
    def throughout(model: Any) -> Any:
        data = nncf.Dataset([tuple(tensor.numpy() for tensor in one) for one in inputs[:CALIBRATION]])
        return nncf.quantize(model, data, subset_size=CALIBRATION, model_type=nncf.ModelType.TRANSFORMER)

    return {
        "OpenVINO, full precision": lambda model: model,
        "OpenVINO, 8-bit weights, dynamic inputs": lambda model: nncf.compress_weights(
            model, mode=nncf.CompressWeightsMode.INT8_SYM
        ),
        "OpenVINO, 8 bits throughout": throughout,
    }


def _inputs(lm: TransformersLM, prompt: Prompt, pack: Any) -> tuple[torch.Tensor, ...]:
    preamble = lm._preamble(prompt)
    past = torch.cat([tensor for layer in preamble for tensor in layer]).float().clone()
    return (*masked(pack, past.shape[-2], lm.model.device), past)


def _by(model: Any, lm: TransformersLM) -> Callable[[Prompt, Any], torch.Tensor]:
    def forward(prompt: Prompt, pack: Any) -> torch.Tensor:
        inputs = _inputs(lm, prompt, pack)
        lm.usage.read += inputs[0].shape[1]
        states = model([tensor.numpy() for tensor in inputs])[0][0]
        return torch.from_numpy(np.array(states))

    return forward


def _measured(lm: TransformersLM, prompt: Prompt, groups: Sequence[Group]) -> tuple[float, np.ndarray]:
    """Tokens read a second, and (passages, queries, 2) of QL and RC."""
    lm.judge(prompt, groups[:2])  # warm, and the preamble is read
    before, began = lm.usage.read, time.perf_counter()
    judged = lm.judge(prompt, groups)
    rate = (lm.usage.read - before) / (time.perf_counter() - began)
    return rate, np.array(
        [[(one.ql_sum / one.ql_tokens, relevance_logit(prompt, one.labels)) for one in row] for row in judged]
    )


def _quality(scores: np.ndarray, exact: np.ndarray) -> str:
    """Correlations with the exact scores: of QL, of RC, and of the reciprocal ranks that both give a query's passages."""

    def fused(values: np.ndarray) -> np.ndarray:
        ranks = 1 + np.argsort(np.argsort(-values, axis=0), axis=0)
        return (1 / ranks).sum(axis=-1)

    def alike(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])

    return (
        f"QL {alike(scores[..., 0], exact[..., 0]):.4f}   RC {alike(scores[..., 1], exact[..., 1]):.4f}   "
        f"RRF {alike(fused(scores), fused(exact)):.3f}"
    )


if __name__ == "__main__":
    main()
