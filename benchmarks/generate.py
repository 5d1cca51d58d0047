"""Writing queries: gecko's batched decoding against transformers' `generate` at its best batch size.

The same prompts (passages of mixed lengths from the standard library's documentation, the shipped P_QG), greedy, in one
process. `generate` gets left-padded batches sorted by length, the same stop strings and the same limit of new tokens; its
best batch size of those given is the peer. With ``--same`` both write in float32 and their texts are compared.

    python benchmarks/generate.py [--llm default] [--passages 64] [--batches 8 16 32] [--same]

``limit_share`` is the time that reading the weights once a decoding step, at the memory bandwidth of the same run, and
reading the prompts, at the matmul peak, would take, divided by the time that it took.
"""

import argparse
import json
import random
import time

import torch
from relabel import in_float32, linear_weights, matmul_peaks, teacher, wait

from gecko.config.stages import GenerateConfig
from gecko.corpus.stdlib import read_stdlib
from gecko.llm.base import Sampling
from gecko.llm.transformers import TransformersLM
from gecko.prompts import Prompt, load_prompt


def main() -> None:
    """Read the options, measure, print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--llm", default="default")
    options.add_argument("--passages", type=int, default=64)
    options.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32])
    options.add_argument("--same", action="store_true", help="both in float32: compare the texts, time nothing")
    given = options.parse_args()
    prompt = load_prompt("generate")
    corpus = [passage.content for passage in read_stdlib()]
    passages = random.Random(0).sample(corpus, given.passages)
    limit = GenerateConfig().max_new_tokens
    full = teacher(given.llm, "full")
    if given.same:
        full = in_float32(full)
        theirs = _generate(full, prompt, passages, max(given.batches), limit)
        ours = _ours(full, prompt, passages, max(given.batches), limit)
        equal = sum(one.strip() == two.strip() for one, two in zip(ours, theirs, strict=True))
        print(json.dumps({"texts": len(ours), "equal": equal}))
        return

    rates = {}
    for batch in given.batches:
        began = time.perf_counter()
        _generate(full, prompt, passages, batch, limit)
        rates[batch] = len(passages) / (time.perf_counter() - began)
        print(f"transformers, batch {batch:3}: {rates[batch]:.3f} queries/s")
    best = max(rates.values())
    found = {}
    for name, lm in (("full precision", full), ("gecko", teacher(given.llm, "auto"))):
        lm.usage.read = lm.usage.written = 0
        began = time.perf_counter()
        _ours(lm, prompt, passages, max(given.batches), limit)
        seconds = time.perf_counter() - began
        found[name] = len(passages) / seconds
        print(
            f"gecko, {name}: {found[name]:.3f} queries/s, {found[name] / best:.2f} x; "
            f"{lm.usage.read} tokens read, {lm.usage.written} written"
        )
    share = _needed_seconds(lm, max(given.batches), len(passages)) / seconds
    print(
        json.dumps(
            {
                "ratio": round(found["gecko"] / best, 2),
                "limit_share": round(share, 3),
                "ratio_full_precision": round(found["full precision"] / best, 2),
            }
        )
    )


def _ours(lm: TransformersLM, prompt: Prompt, passages: list[str], batch: int, limit: int) -> list[str]:
    texts: list[str] = []
    for start in range(0, len(passages), batch):
        part = passages[start : start + batch]
        texts += lm.generate(prompt, part, Sampling(0.0, 1.0, limit, tuple(range(len(part)))))
    return texts


@torch.inference_mode()
def _generate(lm: TransformersLM, prompt: Prompt, passages: list[str], batch: int, limit: int) -> list[str]:
    cut = lm.tokens.cut(prompt)
    prompts = [cut.preamble + ids + cut.middle for ids in lm.tokens.passages(cut, passages)]
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    pad = lm.tokenizer.pad_token_id or 0
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        width = len(prompts[part[0]])
        padded = [[pad] * (width - len(prompts[index])) + prompts[index] for index in part]
        ids = torch.tensor(padded, device=lm.model.device)
        real = [[0] * (width - len(prompts[index])) + [1] * len(prompts[index]) for index in part]
        mask = torch.tensor(real, device=lm.model.device)
        written = lm.model.generate(
            ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, stop_strings=list(prompt.stop),
            tokenizer=lm.tokenizer, pad_token_id=pad, repetition_penalty=1.0,
        )  # fmt: skip
        for index, row in zip(part, written[:, width:].tolist(), strict=True):
            text = lm.tokenizer.decode(row, skip_special_tokens=True)
            for stop in prompt.stop:
                text = text.split(stop)[0]
            texts[index] = text
    return texts


def _needed_seconds(lm: TransformersLM, batch: int, prompts: int) -> float:
    """The prompts at the matmul peak, and the weights once a step at the copy bandwidth."""
    device = lm.model.device.type
    peaks = matmul_peaks(torch.bfloat16 if lm.model.dtype == torch.bfloat16 else torch.float32, device)
    weights, small = linear_weights(lm)
    head = lm.model.get_output_embeddings().weight
    size = (weights + head.numel()) * (1 if small else head.element_size())
    block = torch.ones(1 << 26, dtype=torch.float32, device=device)  # 256 MB
    bandwidth = 0.0
    for _ in range(3):
        began = time.perf_counter()
        block.sum()
        wait(device)
        bandwidth = max(bandwidth, block.nbytes / (time.perf_counter() - began))
    steps = lm.usage.written / min(batch, prompts)
    return 2 * weights * lm.usage.read / max(peaks.values()) + steps * size / bandwidth


if __name__ == "__main__":
    main()
