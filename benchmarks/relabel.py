"""Relabelling, passage by passage, against asking pair by pair.

The same (query, passage) pairs are scored by QL and RC in four ways, in one process, with one teacher and the same prompts:

- gecko: passages shared by their queries, packed without padding, 8-bit linear layers where the CPU is fast at them;
- gecko, full precision: the same in the teacher's own type;
- shared preamble: a batched forward of passage and query a pair, over the cached keys and values of the instructions;
- pair by pair: a batched forward of the whole prompt a pair. This is what people write first, and the peer of ``ratio``.

The two loops are length-sorted, in bfloat16 where the machine has it, compute logits only where they are read, and run on
a random part of the pairs. Passages come from the standard library's documentation, queries from the shipped questions; the
candidates of a query are its 20 nearest among the passages taken.

    python benchmarks/relabel.py [--llm default] [--passages 40] [--loop-pairs 100] [--agreement 2] [--two-prompts] [--growth]

``limit_share`` is the time that the needed operations would take at the machine's matmul peaks of the same run (8-bit for the
linear layers, the full type for attention and the logits that are read), divided by the time that it took.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from gecko.config.stages import RelabelConfig
from gecko.core.progress import Silent
from gecko.corpus.stdlib import read_stdlib
from gecko.encoder import load_encoder
from gecko.encoder.nearest import top_k
from gecko.evaluation.builtin import stdlib_questions
from gecko.fret.relabel import judge, relevance_logit
from gecko.llm.base import Group
from gecko.llm.registry import load_teacher
from gecko.llm.transformers import TransformersLM
from gecko.prompts import Prompt, load_prompt

Scores = dict[tuple[int, int], tuple[float, float]]  # (group, query) -> (mean log-probability, log-odds)


def main() -> None:
    """Read the options, measure, print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--llm", default="default")
    options.add_argument("--passages", type=int, default=40, help="passages, and as many queries, of the headline")
    options.add_argument("--loop-pairs", type=int, default=100, help="pairs that the loops are timed on")
    options.add_argument(
        "--sparse-pairs", type=int, default=200, help="pairs where few queries share a passage; 0: none"
    )
    options.add_argument("--agreement", type=int, default=0, help="queries whose 20 pairs are also asked in float32")
    options.add_argument("--two-prompts", action="store_true", help="QL and RC under a prompt each, as in the paper")
    options.add_argument("--pack-tokens", type=int, help="tokens of one forward pass; none: as by default here")
    options.add_argument("--batch", type=int, default=16, help="pairs of one forward pass of the loops")
    options.add_argument("--growth", action="store_true", help="tokens of 100 to 10,000 queries, counted, not run")
    given = options.parse_args()

    prompts = (
        [load_prompt("query_likelihood"), load_prompt("relevance")] if given.two_prompts else [load_prompt("relevance")]
    )
    full = teacher(given.llm, "full", given.pack_tokens)
    fast = teacher(given.llm, "auto", given.pack_tokens)
    device = full.model.device.type
    peaks = matmul_peaks(full.model.dtype, device)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{full.name}; {where}; prompts: {', '.join(prompt.name for prompt in prompts)}")
    print("matmul peaks: " + ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in peaks.items()))

    groups = _groups(full, given.passages, given.passages)
    pairs = sum(len(group.queries) for group in groups)
    part = _part(groups, given.loop_pairs)
    rates: dict[str, float] = {}
    tokens: dict[str, float] = {}
    _, rates["pair by pair"] = _timed(lambda: _loop(full, prompts, part, given.batch, shared=False), len(part))
    tokens["pair by pair"] = _loop_tokens(full, prompts, part, shared=False)
    _, rates["shared preamble"] = _timed(lambda: _loop(full, prompts, part, given.batch, shared=True), len(part))
    tokens["shared preamble"] = _loop_tokens(full, prompts, part, shared=True)
    _, rates["gecko, full precision"] = _timed(lambda: _ours(full, prompts, groups), pairs)
    before = fast.usage.read
    _, rates["gecko"] = _timed(lambda: _ours(fast, prompts, groups), pairs)
    tokens["gecko"] = tokens["gecko, full precision"] = (fast.usage.read - before) / pairs
    print(f"\n{given.passages} passages, {given.passages} queries, {pairs} pairs")
    for name in ("pair by pair", "shared preamble", "gecko, full precision", "gecko"):
        against = "   ".join(
            f"{rates[name] / rates[peer]:6.2f} x {peer}" for peer in ("pair by pair", "shared preamble")
        )
        print(f"{name:24} {rates[name]:8.2f} pairs/s   {tokens[name]:6.0f} tokens/pair   {against}")
    shares = {
        name: _needed_seconds(lm, prompts, groups, peaks) / (pairs / rates[name])
        for name, lm in (("gecko", fast), ("gecko, full precision", full))
    }
    print("share of the machine's limit: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))

    if given.sparse_pairs:
        print("\nfewer queries a passage")
        queries = max(1, given.sparse_pairs // 20)
        for share in (0.15, 0.02):
            sparse = _groups(full, round(queries / share), queries)
            count = sum(len(group.queries) for group in sparse)
            before = fast.usage.read
            _, rate = _timed(lambda sparse=sparse: _ours(fast, prompts, sparse), count)
            read = (fast.usage.read - before) / count
            against = ", ".join(f"{rate / rates[peer]:.2f} x {peer}" for peer in ("pair by pair", "shared preamble"))
            print(f"queries/passages {share:4}: {rate:6.2f} pairs/s   {read:4.0f} tokens/pair   {against}")
    if given.growth:
        _growth(full, prompts)
    if given.agreement:
        _agreement(full, fast, prompts, _groups(full, 20, given.agreement))
    ratio = rates["gecko"] / rates["pair by pair"]
    print(
        json.dumps(
            {
                "ratio": round(ratio, 2),
                "limit_share": round(shares["gecko"], 3),
                "ratio_full_precision": round(rates["gecko, full precision"] / rates["pair by pair"], 2),
                "limit_share_full_precision": round(shares["gecko, full precision"], 3),
                "ratio_to_shared_preamble": round(rates["gecko"] / rates["shared preamble"], 2),
                "pairs_per_second": round(rates["gecko"], 2),
            }
        )
    )


def teacher(spec: str, precision: str, pack_tokens: int | None = None) -> TransformersLM:
    """A teacher in one precision, without progress."""
    config = RelabelConfig.model_validate({"precision": precision, "pack_tokens": pack_tokens})
    found: Any = load_teacher(spec, config, Silent())
    return found


def in_float32(lm: TransformersLM) -> TransformersLM:
    """The same teacher in float32; its model is turned, not copied."""
    return TransformersLM(
        lm.model.float(), lm.tokenizer, name=lm.name, identity=lm.identity,
        passage_tokens=lm.passage_tokens, pack_tokens=min(lm.pack_tokens, 2048),
    )  # fmt: skip


def _timed(work: Callable[[], Scores], count: int) -> tuple[Scores, float]:
    began = time.perf_counter()
    result = work()
    return result, count / (time.perf_counter() - began)


# --- the pairs


def _groups(lm: TransformersLM, passages: int, queries: int) -> list[Group]:
    """``passages`` of about 150 tokens, and the passages among them that ``queries`` questions retrieve, 20 each."""
    chosen = random.Random(0)
    corpus = [passage for passage in read_stdlib() if 300 < len(passage.content) < 1200]
    lengths = lm.count_tokens([passage.content for passage in corpus])
    corpus = [passage for passage, length in zip(corpus, lengths, strict=True) if 100 <= length <= 200]
    corpus = chosen.sample(corpus, min(passages, len(corpus)))
    asked = chosen.sample([text for _, text in stdlib_questions().queries], min(queries, 460))
    encoder = load_encoder("minilm")
    places, _ = top_k(encoder.queries(asked), encoder.passages(corpus), 20)
    of: dict[int, list[str]] = {}
    for query, row in zip(asked, places, strict=True):
        for place in row:
            of.setdefault(int(place), []).append(query)
    return [Group(corpus[place].content, tuple(found)) for place, found in sorted(of.items())]


def _pairs(groups: Sequence[Group]) -> list[tuple[tuple[int, int], Group]]:
    """Each pair on its own, with its place."""
    return [
        ((index, place), Group(group.passage, (query,)))
        for index, group in enumerate(groups)
        for place, query in enumerate(group.queries)
    ]


def _part(groups: Sequence[Group], count: int) -> list[tuple[tuple[int, int], Group]]:
    every = _pairs(groups)
    return random.Random(1).sample(every, min(count, len(every)))


# --- ours, and the loops


def _ours(lm: TransformersLM, prompts: Sequence[Prompt], groups: Sequence[Group]) -> Scores:
    rows = judge(groups, lm, prompts[0], prompts[-1])
    return {
        (index, place): (found.ql_sum / found.ql_tokens, relevance_logit(prompts[-1], found.labels))
        for index, row in enumerate(rows)
        for place, found in enumerate(row)
    }


def _rows(
    lm: TransformersLM, prompt: Prompt, pairs: Sequence[tuple[tuple[int, int], Group]]
) -> Iterator[tuple[tuple[int, int], list[int], int, int]]:
    """A pair's key, its tokens after the preamble, where its query begins and how long that is."""
    with_end = bool(prompt.labels)
    end = len(lm.tokens.cut(prompt).end) if with_end else 0
    branches = [
        branch
        for pack in lm.tokens.packs(prompt, [group for _, group in pairs], lm.pack_tokens, with_end=with_end)
        for branch in pack
    ]
    for (key, _), branch in zip(pairs, sorted(branches, key=lambda branch: branch.index), strict=True):
        (tail,) = branch.tails
        yield key, branch.passage + tail, len(branch.passage), len(tail) - end


def _loop_tokens(
    lm: TransformersLM, prompts: Sequence[Prompt], pairs: Sequence[tuple[tuple[int, int], Group]], *, shared: bool
) -> float:
    total = sum(
        len(ids) + (0 if shared else len(lm.tokens.cut(prompt).preamble))
        for prompt in prompts
        for _, ids, _, _ in _rows(lm, prompt, pairs)
    )
    return total / len(pairs)


@torch.inference_mode()
def _loop(
    lm: TransformersLM,
    prompts: Sequence[Prompt],
    pairs: Sequence[tuple[tuple[int, int], Group]],
    size: int,
    *,
    shared: bool,
) -> Scores:
    ql: dict[tuple[int, int], float] = {}
    rc: dict[tuple[int, int], float] = {}
    for prompt in prompts:
        rows = sorted(_rows(lm, prompt, pairs), key=lambda row: -len(row[1]))
        head = [] if shared else lm.tokens.cut(prompt).preamble
        past = lm._preamble(prompt) if shared else None
        labels = lm.tokens.labels(prompt) if prompt.labels else []
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            width = max(len(ids) for _, ids, _, _ in batch)
            device = lm.model.device
            ids = torch.tensor([head + ids + [0] * (width - len(ids)) for _, ids, _, _ in batch], device=device)
            real = [[1] * (len(head) + len(ids)) + [0] * (width - len(ids)) for _, ids, _, _ in batch]
            mask = torch.tensor(real, device=device)
            cache = None
            if past is not None:
                shape = (len(batch), -1, -1, -1)
                cache = DynamicCache([(keys.expand(shape), values.expand(shape)) for keys, values in past])
                seen = torch.ones(len(batch), past[0][0].shape[-2], dtype=mask.dtype, device=device)
                mask = torch.cat([seen, mask], dim=1)
            output = lm.model.base_model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=shared)
            for row, (key, tokens, first, length) in enumerate(batch):
                hidden = output.last_hidden_state[row]
                at = len(head) + first
                if prompt is prompts[0]:
                    targets = torch.tensor(tokens[first : first + length], device=device)
                    ql[key] = float(lm.output.logprobs(hidden[at - 1 : at + length - 1], targets).mean())
                if labels:
                    last = hidden[len(head) + len(tokens) - 1][None]
                    read = lm.output.logprobs(last, torch.tensor([labels], device=device))
                    rc[key] = relevance_logit(prompt, read[0].tolist())
    return {key: (ql[key], rc[key]) for key in ql}


# --- the limit


def matmul_peaks(dtype: torch.dtype, device: str = "cpu") -> dict[str, float]:
    """Matmul peaks, in operations a second: the best of three shapes of a decoder, each the best of five."""
    from gecko.compute.device import has_fast_int8
    from gecko.llm.int8 import Int8Linear, _Rounder

    best = {str(dtype).removeprefix("torch."): 0.0} | ({"int8": 0.0} if device == "cpu" and has_fast_int8() else {})
    wider = 1 if device == "cpu" else 16  # a GPU reaches its peak with more rows at once
    with torch.inference_mode():
        for rows, width, out in ((512, 1536, 17920), (1024, 8960, 1536), (1024, 2048, 2048)):
            layer = torch.nn.Linear(width, out, bias=False).to(device, dtype)
            states = torch.randn(wider * rows, width, device=device).to(dtype)
            works: list[Callable[[], Any]] = [lambda layer=layer, states=states: layer(states)]
            if "int8" in best:
                rounder = _Rounder()
                small = Int8Linear(layer, rounder, dtype)
                rounder(states)  # kept, so only the product is timed
                works.append(lambda small=small, states=states: small(states))
            for name, work in zip(best, works, strict=True):
                for _ in range(5):
                    wait(device)
                    began = time.perf_counter()
                    work()
                    wait(device)
                    best[name] = max(best[name], 2 * wider * rows * width * out / (time.perf_counter() - began))
    return best


def wait(device: str) -> None:
    """Until the device has done what it was told; a CPU has."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def linear_weights(lm: TransformersLM) -> tuple[int, bool]:
    """Weights of a decoder's linear layers without the output layer, and whether they and that layer are of 8 bits."""
    from gecko.llm.int8 import Int8Linear

    layers = [module for module in lm.model.base_model.modules() if isinstance(module, torch.nn.Linear | Int8Linear)]
    return sum(layer.in_features * layer.out_features for layer in layers), isinstance(layers[0], Int8Linear)


def _needed_seconds(
    lm: TransformersLM, prompts: Sequence[Prompt], groups: Sequence[Group], peaks: dict[str, float]
) -> float:
    """Seconds that the needed operations take at the peaks: linear layers, attention as the tree needs it, read logits."""
    config = lm.model.config
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention_width = config.num_attention_heads * head_width * config.num_hidden_layers
    full = next(iter(peaks.values()))
    linear, small = linear_weights(lm)
    linear_peak = peaks["int8"] if small else full
    seconds = 0.0
    for index, prompt in enumerate(prompts):
        with_end = bool(prompt.labels)
        past, end = len(lm.tokens.cut(prompt).preamble), len(lm.tokens.cut(prompt).end) if with_end else 0
        tokens = keys = reads = 0
        for pack in lm.tokens.packs(prompt, groups, lm.pack_tokens, with_end=with_end):
            for branch in pack:
                body = len(branch.passage)
                tokens += len(branch)
                keys += body * past + body * (body + 1) // 2
                for tail in branch.tails:
                    keys += len(tail) * (past + body) + len(tail) * (len(tail) + 1) // 2
                    reads += (len(tail) - end if index == 0 else 0) + (1 if prompt.labels else 0)
        seconds += (2 * linear * tokens + 2 * config.vocab_size * config.hidden_size * reads) / linear_peak
        seconds += 4 * attention_width * keys / full
    return seconds


# --- growth and agreement


def _growth(lm: TransformersLM, prompts: Sequence[Prompt]) -> None:
    """Tokens of relabelling as the number of queries grows over one corpus: neighbouring seeds, titles as the queries."""
    corpus = list(read_stdlib())
    encoder = load_encoder("minilm")
    vectors = encoder.passages(corpus)
    titles = [passage.title.split("(")[0] for passage in corpus]
    places, _ = top_k(encoder.queries(titles), vectors, 20)
    order = np.argsort(-(vectors @ vectors[0]), kind="stable")  # neighbours of a passage first
    bodies = [min(length, lm.passage_tokens) for length in lm.count_tokens([passage.content for passage in corpus])]
    print(f"\ncost against the number of queries, over {len(corpus):,} passages (tokens counted, not run)")
    for count in (100, 300, 1000, 3000, 10_000):
        asked = [int(order[index % len(order)]) for index in range(count)]
        read = {int(place) for seed in asked for place in places[seed]}
        tail = sum(len(lm.tokens.cut(prompt).end) + 12 for prompt in prompts)
        tokens = len(prompts) * sum(bodies[place] for place in read) + count * 20 * tail
        alone = len(prompts) * sum(bodies[int(place)] for seed in asked for place in places[seed]) + count * 20 * tail
        print(
            f"{count:6,} queries: {tokens / count:6.0f} tokens a query; {alone / count:6.0f} without sharing passages"
        )


def _agreement(full: TransformersLM, fast: TransformersLM, prompts: Sequence[Prompt], groups: Sequence[Group]) -> None:
    """QL, RC and the fused order against float32, pair by pair: ours no worse than the loop's own."""
    every = _pairs(groups)
    found = {
        "pair by pair, " + str(full.model.dtype).removeprefix("torch."): _loop(full, prompts, every, 16, shared=False),
        "gecko, full precision": _ours(full, prompts, groups),
        "gecko": _ours(fast, prompts, groups),
    }
    full = in_float32(full)
    exact = _loop(full, prompts, every, 16, shared=False)
    found["gecko, float32"] = _ours(full, prompts, groups)
    by_query: dict[str, list[tuple[int, int]]] = {}
    for key, group in every:
        by_query.setdefault(group.queries[0], []).append(key)
    print(f"\nagreement with float32 pair by pair, {len(every)} pairs, {len(by_query)} queries")
    for name, scores in found.items():
        off = [max(abs(scores[key][side] - exact[key][side]) for key in exact) for side in (0, 1)]
        mean = [float(np.mean([abs(scores[key][side] - exact[key][side]) for key in exact])) for side in (0, 1)]
        order = float(np.mean([_spearman(_fused(scores, keys), _fused(exact, keys)) for keys in by_query.values()]))
        print(
            f"{name:28} QL mean |d| {mean[0]:.1e} max {off[0]:.1e}   RC mean |d| {mean[1]:.1e} max {off[1]:.1e}   "
            f"RRF order, Spearman {order:.3f}"
        )


def _fused(scores: Scores, keys: Sequence[tuple[int, int]]) -> np.ndarray:
    values = np.array([scores[key] for key in keys])
    ranks = (-values).argsort(axis=0, kind="stable").argsort(axis=0, kind="stable") + 1
    return (1.0 / ranks).sum(axis=1)


def _spearman(one: np.ndarray, two: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(one, two).statistic)


if __name__ == "__main__":
    main()
