"""What a start model learns from BM25 without a teacher or a query: ``lexical.sentences`` alone, no rows.

    python benchmarks/lexical.py SET... [--weight 0.4] [--sentences 2000] [--seeds 3]

``SET`` is a BEIR folder, DIR or DIR@SPLIT, or ``stdlib-questions``. The model is taught as in a run
(:mod:`gecko.stages.lexical`), with the weight that is given, since there are no judged rows to choose it by. Then it embeds
both sides and is measured on the set's queries, alone and fused with BM25 as ``gecko search`` does. Gains over the start
model are in points of nDCG@10, means over the seeds, with paired bootstrap intervals over queries. No query or judgement of
the set is read before the measurement. The last line is JSON by set.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from gecko.config.load import load_config
from gecko.core.progress import Terminal
from gecko.encoder import load_encoder
from gecko.evaluation.cache import KeptEmbeddings, SupportsEmbedding
from gecko.evaluation.evaluate import HEADLINE, HYBRID, evaluate_retrieval
from gecko.evaluation.metrics import macro_ci
from gecko.evaluation.sets import load_set
from gecko.report.text import markdown_table
from gecko.stages import lexical
from gecko.weights.cache import cache_folder


def main() -> None:
    """Teach, measure, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("sets", nargs="+", metavar="SET")
    options.add_argument("--model", default="minilm")
    options.add_argument("--sentences", type=int, default=2000)
    options.add_argument("--weight", type=float, default=0.4, help="of BM25 beside the cosine")
    options.add_argument("--seeds", type=int, default=3)
    given = options.parse_args()
    changes = [f"lexical.sentences={given.sentences}", f"lexical.weight={given.weight}"]
    lines, found, ui = [["set", "dense", "fused with BM25"]], {}, Terminal()
    start = load_encoder(given.model)
    kept = KeptEmbeddings(start, cache_folder() / "embeddings")
    for spec in given.sets:
        data = load_set(spec)
        vectors = np.asarray(kept.passages(data.passages))
        gains: dict[str, list[np.ndarray]] = {"": [], HYBRID: []}
        for seed in range(given.seeds):
            config = load_config(None, changes, {"seed": seed, "backbone": given.model})
            with tempfile.TemporaryDirectory() as work:
                folder = Path(work) / "lexical"
                lexical.learn(folder, data.passages, vectors, start, [], config, ui)
                models: dict[str, SupportsEmbedding] = {
                    "taught": load_encoder(str(folder / lexical.MODEL)),
                    "start": kept,
                }
                scores = evaluate_retrieval([data], models, hybrid=True)[data.name].per_query
            for mark, rows in gains.items():
                rows.append(100 * (scores["taught" + mark][HEADLINE] - scores["start" + mark][HEADLINE]))
        measured = {mark or "dense": macro_ci([np.mean(rows, axis=0)]) for mark, rows in gains.items()}
        found[data.name] = {name: [round(value, 2) for value in values] for name, values in measured.items()}
        lines.append([data.name, *(f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" for mean, low, high in measured.values())])
    print(markdown_table(lines))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
