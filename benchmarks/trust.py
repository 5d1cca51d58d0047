"""How far test sets that a teacher judged can be trusted: do they order systems as people's judgements do?

    python benchmarks/trust.py --log beir/feedbackqa@test > log.txt
    gecko testset runs/feedbackqa -o judged/feedbackqa --queries log.txt --limit 60 --model hf:OWNER/NAME
    python benchmarks/trust.py beir/feedbackqa@test=judged/feedbackqa --system minilm --system runs/feedbackqa/model@64

Each HUMAN=JUDGED is a labelled set and the folder that ``gecko testset`` made of its corpus and its queries. A system is a
model, or MODEL@DIM for its first dimensions; BM25 is always one. Pool every system (``gecko testset --model``): what is not
pooled is judged unfairly. Both sets are measured on the queries that both have, so the queries that the teacher finds
unanswered are counted and left out.

The table has nDCG@10 of each system by both judgements. Printed as JSON last: Spearman's rank correlation over the systems,
and the share of pairs of systems whose difference has the same sign, of all pairs (``sign``) and of those whose difference
by people's judgements has a 95 % interval without 0 (``sign_sure``). ``ratio`` is the mean ``sign_sure`` over the sets, or
the mean ``sign`` where no pair is sure, and 0.5 is chance.
"""

import argparse
import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from gecko.core.errors import GeckoError
from gecko.encoder import load_encoder
from gecko.evaluation.beir import RetrievalSet
from gecko.evaluation.cache import KeptEmbeddings
from gecko.evaluation.evaluate import HEADLINE, evaluate_retrieval
from gecko.evaluation.metrics import bootstrap_ci
from gecko.evaluation.sets import load_set
from gecko.fret.user_queries import likeness
from gecko.report.text import markdown_table
from gecko.weights.cache import cache_folder


def shared(human: RetrievalSet, judged: RetrievalSet) -> tuple[RetrievalSet, RetrievalSet]:
    """Both sets with the queries that both have, known by their texts, in one order."""
    by_text = {likeness(text): (key, text) for key, text in judged.queries}
    pairs = [(query, by_text[likeness(query[1])]) for query in human.queries if likeness(query[1]) in by_text]
    if not pairs:
        raise GeckoError(f"{human.name} and {judged.name} share no query; judge the queries that --log prints")
    found = []
    for data, queries in zip((human, judged), zip(*pairs, strict=True), strict=True):
        found.append(replace(data, queries=list(queries), qrels={key: data.qrels[key] for key, _ in queries}))
    return found[0], found[1]


def load_system(spec: str, folder: Path) -> KeptEmbeddings:
    """A model, or the first dimensions of one."""
    name, mark, dim = spec.rpartition("@")
    encoder = load_encoder(name if mark and dim.isdigit() else spec)
    return KeptEmbeddings(encoder.truncated(int(dim)) if mark and dim.isdigit() else encoder, folder)


def compare(human: RetrievalSet, judged: RetrievalSet, models: dict[str, KeptEmbeddings]) -> dict[str, Any]:
    """The numbers of one set."""
    from scipy.stats import spearmanr

    sets = shared(human, judged)
    [theirs, ours] = [next(iter(evaluate_retrieval([data], models).values())) for data in sets]
    systems = list(theirs.per_query)
    means = {name: (theirs.mean(name), ours.mean(name)) for name in systems}
    same, sure = [], []
    for one, other in combinations(systems, 2):
        agree = np.sign(means[one][0] - means[other][0]) == np.sign(means[one][1] - means[other][1])
        _, low, high = bootstrap_ci(theirs.per_query[one][HEADLINE] - theirs.per_query[other][HEADLINE])
        same.append(bool(agree))
        sure += [bool(agree)] if low > 0 or high < 0 else []
    return {
        "queries": len(sets[0].queries),
        "left_out": len(human.queries) - len(sets[0].queries),
        "systems": means,
        "spearman": float(spearmanr(*zip(*means.values(), strict=True)).statistic),
        "sign": float(np.mean(same)),
        "sign_sure": float(np.mean(sure)) if sure else None,
        "pairs": len(same),
        "pairs_sure": len(sure),
    }


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and the JSON last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="HUMAN=JUDGED")
    parser.add_argument("--system", action="append", default=[], metavar="MODEL[@DIM]")
    parser.add_argument("--log", metavar="HUMAN", help="print the queries of a labelled set, and stop")
    options = parser.parse_args(arguments)
    if options.log:
        print("\n".join(" ".join(text.split()) for _, text in load_set(options.log).queries))
        return
    if not options.sets or not options.system or any("=" not in pair for pair in options.sets):
        parser.error("give HUMAN=JUDGED and --system MODEL, each once or more")
    folder = cache_folder() / "embeddings"
    models = {spec: load_system(spec, folder) for spec in options.system}
    found = {}
    for pair in options.sets:
        human, _, judged = pair.partition("=")
        loaded = load_set(human)
        found[loaded.name] = compare(loaded, load_set(judged), models)
    rows = [("set", "system", "people", "teacher")]
    for name, row in found.items():
        rows += [(name, system, f"{100 * a:.1f}", f"{100 * b:.1f}") for system, (a, b) in row["systems"].items()]
    print(markdown_table(rows))
    shares = [row["sign"] if row["sign_sure"] is None else row["sign_sure"] for row in found.values()]
    print(json.dumps({"ratio": float(np.mean(shares)), "limit_share": 1.0, "sets": found}))


if __name__ == "__main__":
    main()
