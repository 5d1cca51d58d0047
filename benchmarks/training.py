"""Training, against the trainer of sentence-transformers with its stock loss, on the same rows, batches and model.

Both sides are the same trainer with the same arguments, seed and order of rows, and the same loss: all positives and hard
negatives of the batch, temperature 0.05. Only what makes and encodes a batch differs: the stock collator and
MultipleNegativesRankingLoss on one side, gecko's Collator (each distinct text once, parts of like length) and GeckoLoss on
the other. The loss of the first batch, without dropout, is computed by both and must be equal.

A row is a query, a positive and a hard negative: BM25's best other passage. By default the rows come from the
documentation of the standard library (name → text); ``--pairs`` takes parquet files with the columns query, title and
text, and ``--run`` the rows of a gecko run.

    python benchmarks/training.py [--rows 256] [--batch 32] [--model minilm] [--pairs FOLDER | --run RUN] [--memory]

Each measurement is a process of its own, so that its peak memory is its own; the sides take turns. ``limit_share`` is the
time that the words' tokens would take at the machine's matmul peak (6 operations a weight and token), over the time taken.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gecko.compute.device import best_device, has_fast_bfloat16
from gecko.config.training import LossConfig
from gecko.core.progress import quiet_libraries
from gecko.core.records import Example, Text
from gecko.encoder import resolve_model
from gecko.encoder.build import load_backbone
from gecko.training import Collator, GeckoLoss, to_dataset
from gecko.training.collate import CALL_TOKENS, CALL_TOKENS_ELSEWHERE

LOSS = LossConfig(temperature=0.05, same_tower=False, mask_groups=False, hard_negatives="all")
WARM_UP = 2  # steps that are not timed


def main() -> None:
    """Read the options, measure, print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=256)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--model", default="minilm")
    options.add_argument("--max-tokens", type=int, default=256)
    options.add_argument("--pairs", type=Path, help="a folder of parquet files: query, title, text")
    options.add_argument("--run", type=Path, help="a gecko run that has selected its rows")
    options.add_argument("--float32", action="store_true", help="both sides in float32, even where bfloat16 is fast")
    options.add_argument("--rounds", type=int, default=1, help="measurements of each side")
    options.add_argument("--memory", action="store_true", help="also peak memory against the batch, with GradCache")
    options.add_argument("--quick", action="store_true", help="the smallest size that runs everything")
    options.add_argument("--side", help=argparse.SUPPRESS)
    options.add_argument("--part-tokens", type=int, help=argparse.SUPPRESS)
    options.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.quick:
        given.rows, given.batch, given.rounds, given.max_tokens = 40, 8, 1, 64
    if given.side:
        print(json.dumps(measure(given)))
        return

    sides: dict[str, list[dict[str, Any]]] = {"stock": [], "gecko": []}
    for _ in range(given.rounds):
        for side, results in sides.items():
            results.append(_in_process(given, side))
    best = {side: max(results, key=lambda result: result["rows_per_second"]) for side, results in sides.items()}
    stock, ours = best["stock"], best["gecko"]
    print(
        f"{given.model}, {ours['rows']} rows of {ours['source']}, batch {given.batch}, {ours['dtype']}, "
        f"{torch.get_num_threads()} threads"
    )
    print(
        f"\n{'':8}{'rows/s':>9}{'tokens/row':>12}{'of them padding':>17}{'peak MB':>9}{'first loss':>12}{'mean loss':>11}"
    )
    for side, result in best.items():
        print(
            f"{side:8}{result['rows_per_second']:9.1f}{result['tokens_per_row']:12.0f}{result['padding']:16.0%} "
            f"{result['peak_mb']:9.0f}{result['first_loss']:12.4f}{result['mean_loss']:11.4f}"
        )
    if abs(stock["first_loss"] - ours["first_loss"]) > 1e-3 * stock["first_loss"]:
        sys.exit("the two losses of the first batch differ: this compares different things")
    answer = {
        "ratio": round(ours["rows_per_second"] / stock["rows_per_second"], 2),
        "limit_share": round(ours["limit_share"], 3),
        "limit_share_stock": round(stock["limit_share"], 3),
        "rows_per_second": round(ours["rows_per_second"], 1),
        "peak_mb": round(ours["peak_mb"]),
        "peak_mb_stock": round(stock["peak_mb"]),
    }
    if given.memory:
        answer["memory"] = _memory(given)
    print(json.dumps(answer))


def _memory(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory of two steps at growing batches, in one pass and by GradCache."""
    print(f"\n{'batch':>8}{'one pass, MB':>14}{'GradCache, MB':>15}")
    found = []
    for factor in (1, 2, 4) if given.quick else (1, 4, 16):
        batch = given.batch * factor
        sizes = {"batch": batch, "rows": 2 * batch, "steps": 2}
        peaks = [
            _in_process(given, "gecko", **sizes, part_tokens=tokens)["peak_mb"]
            for tokens in (None, 16 * given.max_tokens)
        ]
        print(f"{batch:8}{peaks[0]:14.0f}{peaks[1]:15.0f}")
        found.append({"batch": batch, "one_pass_mb": round(peaks[0]), "gradcache_mb": round(peaks[1])})
    return found


def _in_process(given: argparse.Namespace, side: str, **changed: Any) -> dict[str, Any]:
    values = {**vars(given), "side": side, "memory": False, "quick": False, **changed}
    command = [sys.executable, __file__]
    for name, value in values.items():
        if value not in (None, False):
            command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Train one epoch (or ``given.steps``) on one side, in this process."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import PrinterCallback, TrainerCallback

    examples, source = rows_of(given)
    data = to_dataset(examples, "unified", LOSS)
    device = best_device()
    bf16 = has_fast_bfloat16(device) and not given.float32
    with quiet_libraries():
        model = load_backbone(resolve_model(given.model))
    model.max_seq_length = given.max_tokens
    stock = given.side == "stock"
    cut = Collator(
        model.preprocess,
        call_tokens=CALL_TOKENS.get(device, CALL_TOKENS_ELSEWHERE),
        part_tokens=given.part_tokens,
    )
    collator = SentenceTransformerDataCollator(model.preprocess) if stock else cut
    loss = (
        MultipleNegativesRankingLoss(model, scale=20.0)
        if stock
        else GeckoLoss(model, LOSS, part_tokens=given.part_tokens)
    )

    class Trainer(SentenceTransformerTrainer):
        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            pass

    class Clock(TrainerCallback):
        seconds = 0.0
        rows = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            if state.global_step > WARM_UP:
                self.seconds += now - self.last
                self.rows += min(given.batch, len(data) - (state.global_step - 1) * given.batch)
            self.last = now

    with tempfile.TemporaryDirectory() as scratch, quiet_libraries():
        trainer = Trainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=scratch,
                num_train_epochs=1,
                max_steps=given.steps or -1,
                per_device_train_batch_size=given.batch,
                learning_rate=2e-5,
                bf16=bf16,
                use_cpu=device == "cpu",
                seed=0,
                save_strategy="no",
                logging_steps=1,
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=device == "cuda",
            ),
            train_dataset=data,
            data_collator=collator,
            loss=loss,
        )
        trainer.remove_callback(PrinterCallback)
        first = 0.0
        if not given.steps:
            first = _first_loss(model, loss, collator(list(data.select(range(given.batch)))), trainer)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    answer = {"peak_mb": _peak_mb(device), "first_loss": first, "mean_loss": sum(losses) / len(losses)}
    if given.steps:
        return answer
    padded, words = _tokens(trainer)
    weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    needed = 6 * weights * words / len(data) * clock.rows
    return {
        **answer,
        "rows": len(data),
        "source": source,
        "dtype": "bfloat16 over float32 weights" if bf16 else "float32",
        "rows_per_second": clock.rows / clock.seconds,
        "tokens_per_row": padded / len(data),
        "padding": 1 - words / padded,
        "limit_share": needed / _matmul_peak(device, bf16) / clock.seconds,
    }


def _first_loss(model: Any, loss: Any, batch: dict[str, Any], trainer: Any) -> float:
    """Of one batch, in float32 and without dropout."""
    model.eval()
    with torch.no_grad():
        features, labels = trainer.collect_features(trainer._prepare_inputs(batch))
        value = float(loss(features, labels))
    model.train()
    return value


def _tokens(trainer: Any) -> tuple[int, int]:
    """Tokens of an epoch as they are encoded, with and without padding."""
    padded = words = 0
    for batch in trainer.get_train_dataloader():
        for name, value in batch.items():
            if name.endswith("attention_mask"):
                padded, words = padded + value.numel(), words + int(value.sum())
    return padded, words


def _peak_mb(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _matmul_peak(device: str, bf16: bool) -> float:
    """Operations a second of a large matrix product."""
    size = 2048 if device == "cpu" else 8192
    one = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        product = one @ one
        float(product[0, 0])  # waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def rows_of(given: argparse.Namespace) -> tuple[list[Example], str]:
    """Rows, drawn with a fixed seed, and where they are from."""
    if given.run:
        from gecko.core.records import Example as Row
        from gecko.run.folder import Run

        found = list(Run(given.run).read("select", Row))
        random.Random(0).shuffle(found)
        return found[: given.rows], str(given.run)
    if given.pairs:
        pairs, source = _pairs(given.pairs, given.rows), given.pairs.name
    else:
        from gecko.corpus.stdlib import read_stdlib

        source = "the standard library's documentation"
        pairs = [(one.title, "", one.text) for one in read_stdlib() if one.title and len(one.text) >= 60]
        pairs = random.Random(0).sample(pairs, min(given.rows, len(pairs)))
    return _with_negatives(pairs), source


def _pairs(folder: Path, count: int) -> list[tuple[str, str, str]]:
    import pyarrow.parquet as pq

    files = sorted(folder.glob("*.parquet"))
    if not files:
        sys.exit(f"{folder} holds no parquet files; leave --pairs out to use the standard library's documentation")
    found: list[tuple[str, str, str]] = []
    generator = random.Random(0)
    for file in files:
        rows = pq.read_table(file, columns=["query", "title", "text"]).to_pylist()
        some = generator.sample(rows, min(len(rows), -(-count // len(files))))
        found += [
            (row["query"], row["title"] or "", row["text"]) for row in some if row["query"].strip() and row["text"]
        ]
    generator.shuffle(found)
    return found[:count]


def _with_negatives(pairs: list[tuple[str, str, str]]) -> list[Example]:
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize([text for _, _, text in pairs], show_progress=False), show_progress=False)
    queries = bm25s.tokenize([query for query, _, _ in pairs], show_progress=False)
    near = index.retrieve(queries, k=2, show_progress=False).documents  # (pairs, 2)
    rows = []
    for place, (query, title, text) in enumerate(pairs):
        other = int(next((one for one in near[place] if one != place), near[place][0]))
        negative = Text(str(other), pairs[other][1], pairs[other][2])
        rows.append(Example("pairs", "", query, Text(str(place), title, text), (negative,), group=str(place)))
    return rows


if __name__ == "__main__":
    main()
