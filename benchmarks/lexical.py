"""What a start model learns from BM25 without a teacher or a query: sentences of the corpus, ordered by words and vectors.

    python benchmarks/lexical.py SET... [--weight 0.4] [--sentences 2000] [--seeds 3]

``SET`` is a BEIR folder, DIR or DIR@SPLIT, or ``stdlib-questions``. Sentences of the corpus serve as queries. The candidates
of each are BM25's first 32 passages and the start model's first 32, without the one that it stands in. The side of the
queries learns, against the start model's passage vectors, the softmax over

    (cosine + weight * BM25 / BM25 of the first) / 0.05

by its divergence (listwise distillation). Then the model embeds both sides and is measured on the set's queries, alone and
fused with BM25 as ``gecko search`` does. Gains over the start model are in points of nDCG@10, means over the seeds, with
paired bootstrap intervals over queries. No query or judgement of the set is read before the measurement. The last line is
JSON by set.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import kl_div, log_softmax, normalize, softmax

import gecko
from gecko.compute.device import has_fast_bfloat16
from gecko.encoder import load_encoder, resolve_model
from gecko.evaluation.beir import RetrievalSet
from gecko.evaluation.bm25 import bm25_run
from gecko.evaluation.evaluate import HEADLINE, HYBRID, evaluate_retrieval
from gecko.evaluation.metrics import macro_ci
from gecko.evaluation.sets import load_set
from gecko.report.text import markdown_table

DEPTH = 32  # candidates of each of the two rankings
WORDS = (5, 40)  # of a sentence that serves as a query
TEMPERATURE = 0.05
BATCH = 32


@dataclass(frozen=True)
class Rows:
    """Sentences, each with ``2 * DEPTH`` candidates.

    Attributes:
        texts: n sentences.
        candidates: (n, 64) places of passages; where both rankings name the same, random others fill up.
        cosines: (n, 64) of the start model.
        lexical: (n, 64) BM25 scores as shares of the sentence's best; 0 for a passage that BM25 did not list.
    """

    texts: list[str]
    candidates: np.ndarray
    cosines: np.ndarray
    lexical: np.ndarray


def main() -> None:
    """Teach, measure, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("sets", nargs="+", metavar="SET")
    options.add_argument("--model", default="minilm")
    options.add_argument("--sentences", type=int, default=2000)
    options.add_argument("--weight", type=float, default=0.4, help="of BM25 beside the cosine")
    options.add_argument("--learning-rate", type=float, default=5e-5)
    options.add_argument("--seeds", type=int, default=3)
    given = options.parse_args()
    lines, found = [["set", "dense", "fused with BM25"]], {}
    for spec in given.sets:
        data = load_set(spec)
        gains: dict[str, list[np.ndarray]] = {"": [], HYBRID: []}
        for seed in range(given.seeds):
            with tempfile.TemporaryDirectory() as folder:
                teach(data, given, seed).save(folder, create_model_card=False)
                models = {"taught": load_encoder(folder), "start": load_encoder(given.model)}
                scores = evaluate_retrieval([data], models, hybrid=True)[data.name].per_query
            for mark, rows in gains.items():
                rows.append(100 * (scores["taught" + mark][HEADLINE] - scores["start" + mark][HEADLINE]))
        found[data.name] = {
            mark or "dense": [round(value, 2) for value in macro_ci([np.mean(rows, axis=0)])]
            for mark, rows in gains.items()
        }
        lines.append([data.name, *(f"{a:+.1f} [{b:+.1f}, {c:+.1f}]" for a, b, c in found[data.name].values())])
        print(json.dumps({data.name: found[data.name]}), flush=True)
    print(markdown_table(lines))
    print(json.dumps(found))


def teach(data: RetrievalSet, given: argparse.Namespace, seed: int) -> SentenceTransformer:
    """The start model after one pass over sentences of a set's corpus."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    embedder = gecko.load(given.model)
    passages = embedder.embed([passage.content for passage in data.passages])
    rows = _rows(data, embedder, passages, given.sentences, rng)
    targets = torch.from_numpy((rows.cosines + given.weight * rows.lexical) / TEMPERATURE)
    model = SentenceTransformer(resolve_model(given.model), device="cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.learning_rate, weight_decay=0.0)
    steps = -(-len(rows.texts) // BATCH)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    vectors = torch.from_numpy(np.asarray(passages, np.float32))
    model.train()
    for part in np.array_split(rng.permutation(len(rows.texts)), steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16("cpu")):
            asked = model(model.preprocess([rows.texts[place] for place in part]))["sentence_embedding"]
        cosines = torch.einsum(
            "bd,bcd->bc", normalize(asked.float(), dim=-1), vectors[torch.from_numpy(rows.candidates[part])]
        )
        wanted = softmax(targets[torch.from_numpy(part)], dim=1)
        loss = kl_div(log_softmax(cosines / TEMPERATURE, dim=1), wanted, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def _rows(
    data: RetrievalSet, embedder: gecko.Embedder, passages: np.ndarray, count: int, rng: np.random.Generator
) -> Rows:
    sentences = [
        (text, place)
        for place, passage in enumerate(data.passages)
        for text in re.split(r"(?<=[.!?])\s+", passage.content.replace("\n", " "))
        if WORDS[0] <= len(text.split()) <= WORDS[1]
    ]
    chosen = [sentences[place] for place in rng.permutation(len(sentences))[:count]]
    texts = [text for text, _ in chosen]
    place_of = {passage.id: place for place, passage in enumerate(data.passages)}
    listed = bm25_run(data.passages, [(str(row), text) for row, text in enumerate(texts)], DEPTH + 1)
    every = embedder.embed(texts) @ passages.T  # (n, passages)
    candidates = np.empty((len(texts), 2 * DEPTH), np.int64)
    lexical = np.zeros(candidates.shape, np.float32)
    for row, (_, own) in enumerate(chosen):
        by_words = {place_of[key]: score for key, score in listed.get(str(row), {}).items() if place_of[key] != own}
        nearest = _without(np.argsort(-every[row])[: DEPTH + 1], own)
        others = _without(rng.permutation(len(data.passages))[: 3 * DEPTH], own)
        ranked = list(dict.fromkeys([*list(by_words)[:DEPTH], *nearest[:DEPTH], *others]))[: 2 * DEPTH]
        if len(ranked) < 2 * DEPTH:
            raise SystemExit(f"{data.name} has {len(data.passages)} passages; {2 * DEPTH + 1} or more are needed")
        candidates[row] = ranked
        best = max(by_words.values(), default=1.0)
        lexical[row] = [by_words.get(place, 0.0) / best for place in ranked]
    return Rows(texts, candidates, np.take_along_axis(every, candidates, axis=1).astype(np.float32), lexical)


def _without(places: np.ndarray | Sequence[int], own: int) -> list[int]:
    return [int(place) for place in places if place != own]


if __name__ == "__main__":
    main()
