"""Passages a second on the CPU: Gecko beside ``SentenceTransformer.encode``, on the same texts, cores and process.

    python benchmarks/encode.py                 # 4,000 passages of the standard library's documentation
    python benchmarks/encode.py --quick         # 200, to see that it runs
    python benchmarks/encode.py --ndcg 0        # also rank all passages for the 460 questions (--ndcg 3000: a sample)

Times include tokenising and are the best of several rounds, in which the engines take turns. Vectors are held against
those of sentence-transformers in float32. The machine's peak is a measured product of large matrices in the same
precision. bfloat16 is measured where the processor has it. The last line is one JSON object, whose ``ratio`` is that of
the precision which Gecko takes by itself.
"""

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ONE_LINE = "sentence-transformers .to(bfloat16)"


def main() -> None:
    """Measure, print the table, and the JSON last."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--passages", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--ndcg", type=int, metavar="N", help="rank relevant passages and N others; 0: all of them")
    parser.add_argument("--quick", action="store_true", help="200 passages, one round")
    options = parser.parse_args()
    if options.quick:
        options.passages, options.rounds = 200, 1
    logging.getLogger("transformers").setLevel(logging.ERROR)

    import torch
    from sentence_transformers import SentenceTransformer

    import gecko
    from gecko.compute.device import has_fast_bfloat16
    from gecko.corpus.stdlib import read_stdlib
    from gecko.encoder import resolve_model
    from gecko.encoder.packed import can_pack, int8_works

    torch.set_num_threads(options.threads)
    passages = list(read_stdlib())
    chosen = np.random.default_rng(0).choice(len(passages), min(options.passages, len(passages)), replace=False)
    texts = [passages[place].content for place in chosen]

    plain = SentenceTransformer(resolve_model(options.model), device="cpu")
    default = gecko.load(options.model)
    has = {"float32": True, "bfloat16": has_fast_bfloat16("cpu"), "int8": can_pack(plain) and int8_works()}
    wanted = [name for name, there in has.items() if there]
    models = {f"gecko {name}": gecko.load(options.model, precision=name) for name in wanted}
    with tempfile.TemporaryDirectory() as folder:
        if (exported := export(options.model, Path(folder) / "model")) is not None:
            models["gecko openvino int8"] = exported
        engines: dict[str, Callable[[Sequence[str]], np.ndarray]] = {
            "sentence-transformers": lambda rows: plain.encode(rows, normalize_embeddings=True),
            **({ONE_LINE: one_line(resolve_model(options.model))} if has["bfloat16"] else {}),
            **{name: (lambda rows, model=model: model.embed(rows)) for name, model in models.items()},
        }
        vectors = {name: engine(texts[:64]) for name, engine in engines.items()}  # warm
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(options.rounds):
            for name, engine in engines.items():
                began = time.perf_counter()
                vectors[name] = engine(texts)
                seconds[name].append(time.perf_counter() - began)
        quality = {name: ndcg(models[name], options.ndcg) for name in models} if options.ndcg is not None else {}

    lengths = [item.tokens for item in default.prepare(texts)]
    reference = vectors["sentence-transformers"]
    base = min(seconds["sentence-transformers"])
    work = flops(plain, lengths) if can_pack(plain) else None
    peaks = {name: peak(name) for name in wanted}
    print(f"{len(texts):,} passages, {sum(lengths):,} tokens, {options.threads} threads, {options.rounds} rounds")
    print(f"{'':38}{'passages/s':>12}{'ratio':>8}{'GFLOP/s':>9}{'of peak':>9}{'cosine min':>12}{'mean':>9}  nDCG@10")
    rows = []
    for name, taken in seconds.items():
        best = min(taken)
        cosines = (vectors[name] * reference).sum(axis=1)
        precision = next((kind for kind in ("int8", "bfloat16") if kind in name), "float32")
        speed = work / best / 1e9 if work else None
        share = speed / peaks[precision] if speed and precision in peaks else None
        row = {
            "engine": name,
            "passages_per_second": len(texts) / best,
            "ratio": base / best,
            "gflops": speed,
            "limit_share": share,
            "cosine_min": float(cosines.min()),
            "cosine_mean": float(cosines.mean()),
            "ndcg@10": quality.get(name),
        }
        rows.append(row)
        print(
            f"{name:38}{row['passages_per_second']:12.1f}{row['ratio']:8.2f}{speed or 0:9.0f}{share or 0:9.1%}"
            f"{row['cosine_min']:12.4f}{row['cosine_mean']:9.4f}  "
            + (f"{quality[name]:.4f} ({quality[name] / quality['gecko float32']:.2%})" if name in quality else "")
        )
    print("peak, GFLOP/s: " + ", ".join(f"{name} {value:.0f}" for name, value in peaks.items()))
    ours = [row for row in rows if row["engine"].startswith("gecko")]
    fastest = max(ours, key=lambda row: row["ratio"])
    chosen_row = next(row for row in ours if row["engine"] == f"gecko {default.precision}")
    print(
        json.dumps(
            {
                "ratio": chosen_row["ratio"],
                "limit_share": chosen_row["limit_share"],
                "default": default.precision,
                "fastest": fastest["engine"],
                "fastest_ratio": fastest["ratio"],
                "bfloat16_one_line_ratio": next((row["ratio"] for row in rows if row["engine"] == ONE_LINE), None),
                "engines": rows,
            }
        )
    )


def one_line(folder: str):
    """What is often done instead: the whole model in bfloat16."""
    import torch
    from sentence_transformers import SentenceTransformer

    half = SentenceTransformer(folder, device="cpu").to(torch.bfloat16)
    return lambda rows: half.encode(rows, normalize_embeddings=True, convert_to_tensor=True).float().numpy()


def export(spec: str, folder: Path):
    """The model as an OpenVINO graph in int8; none where OpenVINO is not installed."""
    import gecko
    from gecko.core.errors import ConfigError
    from gecko.encoder.export import export_model

    try:
        export_model(spec, folder, "openvino", int8=True)
    except ConfigError as error:
        print(f"no OpenVINO: {error}")
        return None
    return gecko.load(str(folder))


def flops(model, lengths: Sequence[int]) -> float:
    """Multiplications and additions of the linear layers and the attention, without any padding."""
    config = model.transformers_model.config
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    tokens = np.asarray(lengths, dtype=np.float64)
    return float(layers * (tokens.sum() * 2 * (4 * width * width + 2 * width * inner) + (4 * tokens**2 * width).sum()))


def peak(precision: str, size: int = 2048, seconds: float = 1.0) -> float:
    """GFLOP/s of a product of large square matrices."""
    import torch

    from gecko.compute.device import fast_dtype
    from gecko.compute.int8 import PackedWeights

    left, right = torch.randn(size, size), torch.randn(size, size)
    if precision == "int8":
        weights = PackedWeights(right)
        values = torch.randint(0, 256, (size, size)).to(torch.uint8)

        def product():
            return weights.multiply(values, fast_dtype("cpu"))
    else:
        left, right = (part.to(getattr(torch, precision)) for part in (left, right))

        def product():
            return left @ right

    best, began = float("inf"), time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() - began < seconds:
            start = time.perf_counter()
            product()
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def ndcg(model, others: int) -> float:
    """nDCG@10 on the questions that ship with the package, over the relevant passages and ``others`` more."""
    from dataclasses import replace

    from gecko.evaluation.builtin import stdlib_questions
    from gecko.evaluation.evaluate import dense_run
    from gecko.evaluation.metrics import per_query

    data = stdlib_questions()
    if others:
        relevant = {key for grades in data.qrels.values() for key in grades}
        rest = [passage for passage in data.passages if passage.id not in relevant]
        picked = np.random.default_rng(0).choice(len(rest), min(others, len(rest)), replace=False)
        kept = [passage for passage in data.passages if passage.id in relevant]
        data = replace(data, passages=[*kept, *(rest[place] for place in picked)])
    return float(per_query(dense_run(data, model), data.qrels)["ndcg@10"].mean())


if __name__ == "__main__":
    main()
