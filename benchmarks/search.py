"""What an index over many passages costs: memory, time and recall of each kind, with vectors that cost nothing.

    python benchmarks/search.py                         # 100,000 passages
    python benchmarks/search.py --passages 1000000
    python benchmarks/search.py --kinds hnsw-int8,flat-int8
    python benchmarks/search.py --update minilm --passages 5000    # a tenth of the corpus changes

The corpus goes through ``gecko.search.build_index`` as any other does; only the model is a stand-in, which draws vectors
of 384 dimensions around 2,000 topics in a space of 48 (the words follow Zipf's law). Each row of the table is a process
of its own, so that its memory is its own: ``build`` is the highest while the index is made, ``ask`` while it answers.
``auto`` is all that ``gecko search`` does, passages and BM25 among it; the others make another index of the same vectors.
``plain`` is what one would write without: all texts in a list, all vectors in ``faiss.IndexFlatIP``.

Recall is of the ten nearest, against exact search. ``ratio`` is plain's time a query over auto's, ``memory_ratio`` its
memory over auto's highest, and ``limit_share`` auto's recall: 1 is exact.

With ``--update``, passages are embedded by a real model. ``ratio`` is the time of updating an index after a tenth of the
passages changed over that of building one anew; 0.1 is the least that embedding allows. Both indexes must give the same hits.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DIM, LATENT, TOPICS, BLOCK, WORDS = 384, 48, 2000, 8192, 60
QUERIES, K = 200, 10
KINDS = tuple(f"{kind}-{store}" for kind in ("flat", "hnsw") for store in ("float32", "int8", "binary"))


class Synthetic:
    """Passages, their vectors and queries, each block of which can be drawn again by itself."""

    def __init__(self, count: int) -> None:
        self.count = count
        rng = np.random.default_rng(0)
        syllables = [first + second for first in "bdfgklmnprstvz" for second in ("a", "e", "i", "o", "u")]
        self._words = [f"{a}{b}{c}" for a in syllables for b in syllables for c in syllables[:10]]
        odds = 1 / np.arange(200, len(self._words) + 200)  # no stop words
        self._odds = np.cumsum(odds / odds.sum())
        self._spread = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0][:LATENT].astype(np.float32)
        self._topics = rng.standard_normal((TOPICS, LATENT), np.float32)

    def passages(self) -> Iterator[Any]:
        """All passages; the place of one is in its title."""
        from gecko.core.records import Passage

        for start in range(0, self.count, BLOCK):
            for place, text in enumerate(self._texts(start), start):
                yield Passage(f"p{place}", f"passage {place}", text, "synthetic")

    def vectors(self, start: int) -> np.ndarray:
        """The unit vectors of the block that begins at ``start``."""
        return self._project(self._latents(start), np.random.default_rng([3, start]))

    def queries(self) -> dict[str, np.ndarray]:
        """Each query with its vector: words of a passage, and a point near it."""
        rng = np.random.default_rng(1)
        found: dict[str, np.ndarray] = {}
        blocks = range(0, self.count, BLOCK)
        for start in rng.choice(blocks, min(len(blocks), 10), replace=False).tolist():
            texts, latents = self._texts(start), self._latents(start)
            for row in rng.choice(len(texts), min(len(texts), QUERIES // 10), replace=False).tolist():
                text = " ".join(rng.choice(texts[row].split(), 5, replace=False))
                near = latents[row] + 0.3 * rng.standard_normal(LATENT, np.float32)
                found[text] = self._project(near[None], rng)[0]
        return found

    def _texts(self, start: int) -> list[str]:
        rng = np.random.default_rng([2, start])
        drawn = np.searchsorted(self._odds, rng.random((min(BLOCK, self.count - start), WORDS)))
        return [" ".join(map(self._words.__getitem__, row)) for row in drawn.tolist()]

    def _latents(self, start: int) -> np.ndarray:
        rng = np.random.default_rng([1, start])
        rows = min(BLOCK, self.count - start)
        return self._topics[rng.integers(0, TOPICS, rows)] + 0.7 * rng.standard_normal((rows, LATENT), np.float32)

    def _project(self, latents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        vectors = latents @ self._spread + 0.05 * rng.standard_normal((len(latents), DIM), np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class StandIn:
    """What ``build_index`` asks of an embedder."""

    identity, form, spec, dim = "synthetic", "native", "synthetic", DIM

    def __init__(self, data: Synthetic, queries: dict[str, np.ndarray]) -> None:
        self._data, self._queries = data, queries

    def finish(self, vectors: np.ndarray, dim: int | None) -> np.ndarray:
        """The vectors, which are whole."""
        assert dim in (None, DIM)
        return vectors

    def embed(self, texts: Sequence[str], *, task: str, title: Sequence[str] | None = None, **_: object) -> np.ndarray:
        """Vectors of a block of passages, or of queries."""
        if task == "RETRIEVAL_QUERY":
            return np.stack([self._queries[text] for text in texts])
        assert title is not None
        return self._data.vectors(int(title[0].split()[1]))


def peak() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def build(name: str, folder: Path, data: Synthetic) -> dict[str, Any]:
    """Make an index: ``auto`` from the passages, the others from its files."""
    from gecko.search import IndexConfig, build_index
    from gecko.search.build import build_faiss
    from gecko.search.index import IndexManifest

    home, stand_in, began = folder / name, StandIn(data, {}), time.perf_counter()
    if name == "auto":
        build_index(stand_in, data.passages(), home, IndexConfig(shard_rows=BLOCK)).close()
    else:
        kind, store = name.split("-")
        manifest = IndexManifest(**json.loads((folder / "auto" / "manifest.json").read_text()))
        home.mkdir()
        for file in ("vectors.f32", "passages.sqlite"):
            (home / file).hardlink_to(folder / "auto" / file)
        build_faiss(home, IndexConfig(kind=kind, store=store, shard_rows=BLOCK), manifest)
        (home / "manifest.json").write_text(json.dumps(vars(manifest)))
    size = (home / "index.faiss").stat().st_size / 2**20
    return {"seconds": time.perf_counter() - began, "build": peak(), "index": size}


def ask(name: str, folder: Path, data: Synthetic) -> dict[str, Any]:
    """Ask a finished index, one query at a time."""
    from gecko.search import open_index

    queries = data.queries()
    row: dict[str, Any] = {}
    with open_index(StandIn(data, queries), folder / name) as index:
        for method in ("dense", "hybrid"):
            found, row[method] = timed(lambda text, how=method: index.search([text], K, method=how), queries)
            if method == "dense":
                row["found"] = [[int(hit.passage.id[1:]) for hit in hits] for (hits,) in found]
    return {**row, "ask": peak()}


def plain(data: Synthetic) -> dict[str, Any]:
    """All in memory, and exact."""
    import faiss

    queries, began = data.queries(), time.perf_counter()
    texts = [(passage.id, passage.title, passage.text) for passage in data.passages()]
    index = faiss.IndexFlatIP(DIM)
    index.add(np.concatenate([data.vectors(start) for start in range(0, data.count, BLOCK)]))
    seconds, size = time.perf_counter() - began, 4 * DIM * data.count / 2**20
    found, dense = timed(lambda text: index.search(queries[text][None], K)[1][0].tolist(), queries)
    assert all(texts[row[0]] for row in found)
    return {"seconds": seconds, "build": peak(), "index": size, "dense": dense, "found": found, "ask": peak()}


def update(model: str, count: int, folder: Path) -> dict[str, Any]:
    """Build an index, change every tenth passage, and both update it and build another one."""
    from dataclasses import replace

    import gecko
    from gecko.search import IndexConfig, build_index

    embedder, seconds, found = gecko.load(model), {}, {}
    before = list(Synthetic(count).passages())
    after = [replace(row, text=f"{row.text} again") if n % 10 == 0 else row for n, row in enumerate(before)]
    embedder.embed([before[0].text])  # what is done once, in no time
    queries = [" ".join(row.text.split()[:5]) for row in after[:: max(1, count // 20)]]
    for name, rows, home in (("first", before, "one"), ("update", after, "one"), ("anew", after, "two")):
        began = time.perf_counter()
        with build_index(
            embedder, iter(rows), folder / home, IndexConfig(), sources="s", state=str(rows is after)
        ) as index:
            seconds[name] = time.perf_counter() - began
            found[name] = [[hit.passage.id for hit in row] for row in index.search(queries, K)]
    assert found["update"] == found["anew"]
    return {"ratio": seconds["update"] / seconds["anew"], "limit_share": 0.1, "passages": count, "seconds": seconds}


def timed(work: Any, queries: Sequence[str] | dict[str, np.ndarray]) -> tuple[list[Any], float]:
    """What ``work`` finds for each query, and the median of its milliseconds."""
    results, taken = [], []
    for text in queries:
        began = time.perf_counter()
        results.append(work(text))
        taken.append(time.perf_counter() - began)
    return results, float(np.median(taken)) * 1000


def main() -> None:
    """Measure each row in processes of its own, print the table, and the JSON last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--kinds", default=",".join(KINDS), help="beside plain and auto, with commas; or none")
    parser.add_argument("--folder", type=Path, help="where the indexes are made; none: a temporary one")
    parser.add_argument("--update", metavar="MODEL", help="measure an update instead, with this model")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, name = options.child
        data = Synthetic(options.passages)
        work = {"build": build, "ask": ask}[what]
        print(json.dumps(plain(data) if name == "plain" else work(name, options.folder, data)))
        return
    if options.update:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(json.dumps(update(options.update, options.passages, Path(folder))))
        return
    kinds = [kind for kind in options.kinds.split(",") if kind != "none"]
    if wrong := set(kinds) - set(KINDS):
        parser.error(f"--kinds {', '.join(sorted(wrong))}: give some of {', '.join(KINDS)}")
    rows: dict[str, dict[str, Any]] = {}
    print(f"{options.passages:,} passages; a query's milliseconds are the median of {QUERIES}, one at a time")
    print(f"{'':14}  built, s  index MB  build MB  ask MB  dense ms  hybrid ms  recall@10")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:

        def child(what: str, name: str) -> dict[str, Any]:
            command = [sys.executable, __file__, "--passages", str(options.passages), "--folder", folder]
            done = subprocess.run([*command, "--child", what, name], check=True, stdout=subprocess.PIPE, text=True)
            return json.loads(done.stdout.splitlines()[-1])

        for name in ("plain", "auto", *kinds):
            row = rows[name] = child("build", name) | (child("ask", name) if name != "plain" else {})
            exact = rows["plain"]["found"]
            row["recall"] = float(np.mean([len({*a} & {*b}) / K for a, b in zip(row["found"], exact, strict=True)]))
            hybrid = f"{row['hybrid']:11.1f}" if "hybrid" in row else f"{'':11}"
            print(
                f"{name:14}{row['seconds']:10.1f}{row['index']:10.0f}{row['build']:10.0f}{row['ask']:8.0f}"
                f"{row['dense']:10.2f}{hybrid}{row['recall']:11.3f}",
                flush=True,
            )
            if name not in ("plain", "auto"):
                shutil.rmtree(Path(folder) / name)
    ours, theirs = rows["auto"], rows["plain"]
    result = {
        "ratio": theirs["dense"] / ours["dense"],
        "limit_share": ours["recall"],
        "memory_ratio": theirs["build"] / max(ours["build"], ours["ask"]),
        "passages": options.passages,
        "rows": {name: {key: value for key, value in row.items() if key != "found"} for name, row in rows.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
