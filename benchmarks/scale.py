"""How the stages grow with the corpus, and what a million rows would cost.

    python benchmarks/scale.py [--sizes 1000,10000,100000] [--encode 500,2000] [--train 64,192] [--times FILE]
                               [--read 285 --write 100] [--h100-read N --h100-write N]
    python benchmarks/scale.py --ingest [--sizes 10000,1000000] [--near]
    python benchmarks/scale.py --mine [--passages 1000000] [--queries 256]

- Without an option each stage up to ``select`` is run at each size with a teacher and vectors that cost nothing, one query
  for four passages. Encoding passages and queries, and training on rows, are measured with the start model at sizes of
  their own. ``a + b·n`` is fitted (``a + b·n²`` for what compares each seed or query with each passage), and the time of
  1M and 6.6M rows is read from it. The teacher's part is worked out from tokens a second, those of this machine and those
  of one H100 (times eight), which are given: ``--read`` and ``--write`` are printed by ``gecko distill --dry-run``. What was
  measured is kept in ``--times`` and not measured again. ``ratio`` is the growth of the size over that of the time, in the
  stage that grows most for its kind: about 1 is the line that was fitted. ``limit_share`` is the teacher's share of a
  million rows' time: what a faster pipeline could still save is the rest.
- ``--ingest`` runs the stage on corpora of each size in processes of their own and prints the memory at its highest.
  ``ratio`` is the smallest corpus's peak over the largest's: 1 is flat. ``limit_share`` is the share of the time that
  reading and parsing the same lines takes alone.
- ``--mine`` finds the 20 nearest of each query in random unit vectors of 384 dimensions, here and with a plain
  ``faiss.IndexFlatIP``. Both are exact; ``ratio`` is faiss's time over ours, ``limit_share`` the share of the machine's
  matrix-product speed of the same run.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

WORDS = [
    f"{first}{second}" for first in ("ba", "ce", "di", "fo", "gu", "ka", "lem", "mor") for second in "abcdefghijklmnop"
]
# Each with the power of n that it grows with: the plan compares n / 4 seeds with n passages, mining as many queries.
STAGES = {"ingest": 1, "plan": 2, "generate": 1, "mine": 2, "relabel": 1, "select": 1}
MODELS = {"embed": 1, "queries": 1, "train": 1}  # of passages, queries and rows; what runs the start model
PASSAGES_A_ROW = 4
EPOCHS = 3
ROWS = (1_000_000, 6_600_000)
CANDIDATES = 20
PASSAGE_TOKENS = 120  # of the standard library's documentation
QUERY_TOKENS = 22  # with the control text around it
WRITTEN_TOKENS = 34
SHARED = 3.0  # queries that a passage is a candidate of, by which its reading is divided


def main() -> None:
    """Run what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="", help="passages, with commas")
    parser.add_argument("--encode", default="500,2000", help="passages to encode, and a query for four of them")
    parser.add_argument("--train", default="64,192", help="rows to train on for an epoch")
    parser.add_argument("--times", type=Path, help="a file that keeps what was measured")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--read", type=float, default=285, help="tokens a second that the teacher reads here")
    parser.add_argument("--write", type=float, default=100, help="tokens a second that it writes here")
    parser.add_argument("--h100-read", type=float, default=0, help="tokens a second on one H100; 0: no such column")
    parser.add_argument("--h100-write", type=float, default=0)
    parser.add_argument("--ingest", action="store_true")
    parser.add_argument("--near", action="store_true", help="with near duplicates")
    parser.add_argument("--mine", action="store_true")
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        _read_one(Path(options.one), options.near)
    elif options.ingest:
        _ingest(_sizes(options.sizes or "10000,1000000"), options.near)
    elif options.mine:
        _mine(options.passages, options.queries)
    else:
        _stages(_sizes(options.sizes or "1000,10000,100000"), options)


def _sizes(text: str) -> list[int]:
    return sorted(int(size) for size in text.split(","))


def _write_corpus(path: Path, size: int) -> None:
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as lines:
        for start in range(0, size, 10_000):
            drawn = rng.integers(0, len(WORDS), (min(10_000, size - start), 60)).tolist()
            for number, words in enumerate(drawn, start=start):
                text = " ".join([WORDS[word] for word in words])
                lines.write(f'{{"_id": "p{number}", "title": "passage {number}", "text": "{text}"}}\n')


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _read_one(path: Path, near: bool) -> None:
    from gecko.config.run import RunConfig
    from gecko.run.folder import Run
    from gecko.stages.runner import Pipeline

    corpus = {"sources": [str(path)], "near_duplicates": 0.8 if near else None}
    config = RunConfig(llm="fake", corpus=corpus, generate={"queries": 2})
    with Run(path.with_suffix(".run"), config) as run:
        start = time.perf_counter()
        manifest = Pipeline(run).ingest()
        seconds = time.perf_counter() - start
    print(json.dumps({"rows": manifest.rows, "shards": len(manifest.shards), "seconds": seconds, "peak": _peak()}))


def _ingest(sizes: list[int], near: bool) -> None:
    found = []
    print(f"{'passages':>10} {'shards':>7} {'seconds':>8} {'passages/s':>11} {'peak MB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            path = Path(folder) / f"{size}.jsonl"
            _write_corpus(path, size)
            command = [sys.executable, __file__, "--one", str(path), *(["--near"] if near else [])]
            done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            found.append(done)
            shutil.rmtree(path.with_suffix(".run"))
            rate = done["rows"] / done["seconds"]
            print(
                f"{done['rows']:>10,} {done['shards']:>7} {done['seconds']:>8.1f} {rate:>11,.0f} {done['peak']:>8.0f}"
            )
            if size < sizes[-1]:
                path.unlink()
        start = time.perf_counter()
        with path.open("rb") as lines:
            for line in lines:
                json.loads(line)
        least = time.perf_counter() - start
    result = {
        "ratio": found[0]["peak"] / found[-1]["peak"],
        "limit_share": least / found[-1]["seconds"],
        "sizes": found,
    }
    print(json.dumps(result))


def _mine(count: int, queries: int) -> None:
    import faiss

    from gecko.encoder.nearest import top_k

    rng = np.random.default_rng(0)
    passages = rng.standard_normal((count, 384), dtype=np.float32)
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    asked = passages[rng.choice(count, queries, replace=False)] + 0.05 * rng.standard_normal((queries, 384), np.float32)
    block = passages[:4096]
    start = time.perf_counter()
    for _ in range(20):
        block @ block.T
    peak = 20 * 2 * 4096**2 * 384 / (time.perf_counter() - start)
    before, start = _peak(), time.perf_counter()
    places, _ = top_k(asked, passages, CANDIDATES)
    ours, grown = time.perf_counter() - start, _peak() - before
    index = faiss.IndexFlatIP(384)
    before = _peak()
    index.add(passages)
    copied = _peak() - before
    start = time.perf_counter()
    _, theirs = index.search(asked, CANDIDATES)
    faiss_time = time.perf_counter() - start
    same = float(np.mean([len(set(one) & set(two)) / CANDIDATES for one, two in zip(places, theirs, strict=True)]))
    print(f"{count:,} passages, {queries} queries, top {CANDIDATES}; the same passages: {100 * same:.2f} %")
    print(f"gecko  {ours:7.2f} s   {grown:6.0f} MB more")
    print(f"faiss  {faiss_time:7.2f} s   {copied:6.0f} MB more (its copy of the vectors)")
    share = 2 * count * queries * 384 / ours / peak
    print(json.dumps({"ratio": faiss_time / ours, "limit_share": share, "recall": same, "seconds": ours}))


def _stages(sizes: list[int], options: argparse.Namespace) -> None:
    if len(sizes) < 2:
        sys.exit("a line needs two sizes: --sizes 1000,10000")
    times: dict[str, dict[str, float]] = json.loads(options.times.read_text()) if _is_file(options.times) else {}

    def keep(found: dict[str, float], size: int) -> None:
        for stage, seconds in found.items():
            times.setdefault(stage, {})[str(size)] = seconds
        if options.times:
            options.times.write_text(json.dumps(times, indent=1))

    if any(str(size) not in times.get("select", {}) for size in sizes):
        _run(80, options.backbone)  # imports
    for size in sizes:
        if str(size) not in times.get("select", {}):
            keep(_run(size, options.backbone), size)
    for size in _sizes(options.encode):
        if str(size) not in times.get("embed", {}):
            keep({"embed": _encode(size, options.backbone, "passages")}, size)
        if str(size // 4) not in times.get("queries", {}):
            keep({"queries": _encode(size // 4, options.backbone, "queries")}, size // 4)
    for size in _sizes(options.train):
        if str(size) not in times.get("train", {}):
            keep({"train": _train(size, options.backbone)}, size)
    _print_lines(times, options)


def _is_file(path: Path | None) -> bool:
    return path is not None and path.is_file()


def _print_lines(times: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    lines, straight = {}, []
    for stage, power in {**STAGES, **MODELS}.items():
        sizes = sorted(map(int, times[stage]))
        taken = np.array([times[stage][str(size)] for size in sizes])
        # Weighed so that a deviation counts by its share and the largest size is not alone.
        slope, start = np.polyfit(np.array(sizes, float) ** power, taken, 1, w=1 / np.maximum(taken, 1e-3))
        lines[stage] = (float(start), float(slope))
        straight.append((sizes[-1] / sizes[0]) ** power * taken[0] / max(taken[-1], 1e-3))
        unit = {"queries": "queries", "train": "rows"}.get(stage, "passages")
        measured = ", ".join(f"{size:,}: {seconds:.2f} s" for size, seconds in zip(sizes, taken, strict=True))
        print(f"{stage:9} {start:8.2f} s + {slope:8.2e} s · n{'²' if power == 2 else ' '}  {unit:9} ({measured})")
    read = PASSAGE_TOKENS + CANDIDATES * (PASSAGE_TOKENS / SHARED + QUERY_TOKENS)
    print(f"\nhours for rows of {read:.0f} tokens read and {WRITTEN_TOKENS} written, {PASSAGES_A_ROW} passages a row")
    speeds = {"here": (options.read, options.write)}
    if options.h100_read and options.h100_write:
        speeds["8 H100"] = (8 * options.h100_read, 8 * options.h100_write)
    stages = {"encode": ("embed", "queries"), "search": ("plan", "mine"), "train": ("train",)}
    stages["the rest"] = tuple(STAGES.keys() - {"plan", "mine"})
    print(
        f"{'rows':>10}" + "".join(f"{name:>10}" for name in stages) + "".join(f"{f'teacher, {n}':>18}" for n in speeds)
    )
    shares = []
    for rows in ROWS:
        sizes = dict.fromkeys(lines, PASSAGES_A_ROW * rows) | {"queries": rows, "train": EPOCHS * rows}
        power = {**STAGES, **MODELS}
        hours = {stage: max(0.0, a + b * sizes[stage] ** power[stage]) / 3600 for stage, (a, b) in lines.items()}
        taught = {name: rows * (read / r + WRITTEN_TOKENS / w) / 3600 for name, (r, w) in speeds.items()}
        shares.append(taught["here"] / (taught["here"] + sum(hours.values())))
        cells = [sum(hours[stage] for stage in members) for members in stages.values()]
        print(
            f"{rows:>10,}"
            + "".join(f"{cell:>10,.1f}" for cell in cells)
            + "".join(f"{h:>18,.1f}" for h in taught.values())
        )
    print(json.dumps({"ratio": min(straight), "limit_share": shares[0], "fit": lines}))


class _Given:
    """Vectors that cost nothing: what encoding takes is measured on its own."""

    def passages(self, passages: list[Any], **_: Any) -> np.ndarray:
        """A random unit row for each."""
        drawn = np.random.default_rng(len(passages)).standard_normal((len(passages), 384), dtype=np.float32)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    def queries(self, texts: list[str], _: list[str]) -> np.ndarray:
        """Likewise."""
        return self.passages(texts)


def _run(size: int, backbone: str) -> dict[str, float]:
    """Seconds of each stage at one size, without those of models."""
    from gecko.config.run import RunConfig
    from gecko.run.folder import Run
    from gecko.stages import plan
    from gecko.stages.embed import vectors
    from gecko.stages.runner import Pipeline

    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.jsonl"
        _write_corpus(path, size)
        settings: dict[str, Any] = {"corpus": {"sources": [str(path)]}, "generate": {"queries": size // PASSAGES_A_ROW}}
        config = RunConfig(llm="fake", backbone=backbone, select={"min_rc": None}, check={"enabled": False}, **settings)
        with Run(Path(folder) / "run", config) as run:
            pipeline = Pipeline(run)
            pipeline.models.start = _Given()
            for stage in STAGES:
                start = time.perf_counter()
                if stage == "plan":
                    np.asarray(vectors(pipeline))
                    start = time.perf_counter()
                    plan.make(pipeline)
                else:
                    pipeline.make(stage)
                found[stage] = time.perf_counter() - start
    return found


def _texts(count: int, words: int) -> list[str]:
    drawn = np.random.default_rng(count).integers(0, len(WORDS), (count, words)).tolist()
    return [" ".join(WORDS[word] for word in row) for row in drawn]


def _encode(count: int, backbone: str, what: str) -> float:
    from gecko.core.records import Passage
    from gecko.encoder import load_encoder

    encoder = load_encoder(backbone)
    texts = _texts(count + 32, 60 if what == "passages" else 8)
    encode = {
        "passages": lambda texts: encoder.passages([Passage("", "", text) for text in texts]),
        "queries": lambda texts: encoder.queries(texts, [""] * len(texts)),
    }[what]
    encode(texts[count:])  # warm
    start = time.perf_counter()
    encode(texts[:count])
    return time.perf_counter() - start


def _train(count: int, backbone: str) -> float:
    from gecko.config.training import TrainConfig
    from gecko.core.records import Example, Text
    from gecko.encoder import resolve_model
    from gecko.training import train

    queries, texts = _texts(count, 8), _texts(2 * count, 60)
    rows = [
        Example(
            "fret", "", query, Text(f"p{n}", "", texts[2 * n]), (Text(f"n{n}", "", texts[2 * n + 1]),), group=f"p{n}"
        )
        for n, query in enumerate(queries)
    ]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainConfig(epochs=1, checkpoint_steps=10_000)
        places = {"folder": Path(folder) / "model", "checkpoints": Path(folder) / "checkpoints"}
        train(rows, resolve_model(backbone), form="native", config=settings, seed=0, **places)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
