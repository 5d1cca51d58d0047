"""How far test sets that a teacher judged can be trusted: do they order systems as people's judgements do?

    python benchmarks/trust.py SET... --judge --system start=minilm --system start@96=minilm@96
        --system student=models/default/{set}-0
    python benchmarks/trust.py SET... [--json]        the table, from the judgements that are kept

``SET`` is a labelled set, DIR or DIR@SPLIT. A system has a name and is a model, or MODEL@DIM for its first dimensions, and
``{set}`` stands for the name of the set; BM25 is always one. ``--judge`` pools the first ten passages of every system for
the queries of ``LABELS/NAME/teacher.json``, has the teacher judge them as ``gecko testset`` does, and keeps ids, scores and
each system's ranks in ``LABELS/NAME/pooled.parquet``: enough for the table, without a model. What ``share.py --judge`` or
``gecko check-teacher`` has asked the same teacher is not asked again.

The table has nDCG@10 of each system by people's judgements and by the teacher's, and the difference to ``start`` by both.
Queries that the teacher finds unanswered are left out and counted. The last line is JSON: of each set Spearman's rank
correlation over the systems, and the share of pairs of systems whose difference has the same sign, of all pairs (``sign``)
and of those whose difference by people's judgements has a 95 % interval without 0 (``sign_sure``). ``ratio`` is the share
of all sets' sure pairs, and 0.5 is chance.
"""

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gecko.core.files import read_json, write_table
from gecko.core.progress import Terminal, Ui
from gecko.core.records import Score
from gecko.core.text import difference
from gecko.encoder import load_encoder
from gecko.evaluation.beir import RetrievalSet
from gecko.evaluation.bm25 import bm25_run
from gecko.evaluation.cache import KeptEmbeddings
from gecko.evaluation.evaluate import BM25, HEADLINE, dense_run
from gecko.evaluation.metrics import Array, bootstrap_ci, descending, per_query
from gecko.evaluation.sets import load_set
from gecko.evaluation.teacher.answers import load_form
from gecko.evaluation.teacher.value import ValueConfig, connect, grouped
from gecko.evaluation.testset import grade, pool
from gecko.report.text import markdown_table
from gecko.weights.cache import cache_folder

LABELS = Path(__file__).parent / "labels"
FILE = "pooled.parquet"
DEPTH = 10
START, RANK = "start", "rank "  # a column of ranks is RANK and the system's name


def main(arguments: list[str] | None = None) -> None:
    """Judge what is asked for; print the table, and the JSON last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="SET")
    parser.add_argument("--labels", type=Path, default=LABELS)
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--system", action="append", default=[], metavar="NAME=MODEL[@DIM]")
    parser.add_argument("--json", action="store_true", help="print the last line alone")
    given = parser.parse_args(arguments)
    systems = dict(system.split("=", 1) for system in given.system if "=" in system)
    if given.judge and (START not in systems or len(systems) < len(given.system)):
        parser.error(f"--judge needs --system NAME=MODEL, each name once, and one of them named {START}")
    found = {}
    for spec in given.sets:
        data = load_set(spec)
        if given.judge:
            _judge(given.labels / data.name, data, systems, Terminal())
        found[data.name] = compare(data, pq.read_table(given.labels / data.name / FILE))
    if not given.json:
        print(_table(found))
    sure = sum(row["pairs_sure"] for row in found.values())
    agree = sum(row["sign_sure"] * row["pairs_sure"] for row in found.values() if row["pairs_sure"])
    print(json.dumps({"ratio": agree / sure if sure else None, "limit_share": 1.0, "sets": found}))


def _judge(folder: Path, data: RetrievalSet, systems: dict[str, str], ui: Ui) -> None:
    """Write the pool of a set with the teacher's scores and each system's ranks."""
    known = read_json(folder / "teacher.json")
    data = data.asking(known["orders"]["rrf"])
    rankings = {BM25: bm25_run(data.passages, data.queries, DEPTH)}
    for name, spec in systems.items():
        ui.say(f"{data.name}: {name} ranks")
        rankings[name] = dense_run(data, load_system(spec.format(set=data.name)), DEPTH)
    pooled, texts = pool(rankings, DEPTH), dict(data.queries)
    by_id = {passage.id: passage for passage in data.passages}
    value = ValueConfig()
    form, (judge, *_) = load_form(value.forms[0]), connect(known["llm"], systems[START], value, ui)
    with judge.alone(wait=True):
        judge.ask(form, grouped(data, pooled), data.name)
    pairs = [(query, passage) for query, candidates in pooled.items() for passage in candidates]
    scores = [judge.score(form, query, texts[query], by_id[passage]) for query, passage in pairs]
    assert all(isinstance(score, Score) for score in scores)
    columns: dict[str, Any] = {
        "query_id": [query for query, _ in pairs],
        "passage_id": [passage for _, passage in pairs],
    }
    columns |= {name: [getattr(score, name) for score in scores] for name in ("ql_sum", "ql_tokens", "rc")}
    for name, by_query in rankings.items():
        ranks = {query: {key: rank for rank, key in enumerate(found, 1)} for query, found in by_query.items()}
        columns[RANK + name] = pa.array([ranks[query].get(passage) for query, passage in pairs], pa.int8())
    write_table(folder / FILE, pa.table(columns))


def load_system(spec: str) -> KeptEmbeddings:
    """A model, or the first dimensions of one."""
    name, mark, dim = spec.rpartition("@")
    cut = bool(mark) and dim.isdigit()
    encoder = load_encoder(name if cut else spec)
    return KeptEmbeddings(encoder.truncated(int(dim)) if cut else encoder, cache_folder() / "embeddings")


def compare(data: RetrievalSet, table: pa.Table) -> dict[str, Any]:
    """The numbers of one set: nDCG@10 and differences to ``start``, on 0–1, people's first."""
    from scipy.stats import spearmanr

    rows = table.to_pylist()
    teacher: dict[str, dict[str, int]] = {}
    for row in rows:
        said = Score(row["query_id"], row["passage_id"], "", "", row["ql_sum"], row["ql_tokens"], row["rc"])
        teacher.setdefault(said.query_id, {})[said.passage_id] = grade(said)
    answered = [query for query, grades in teacher.items() if any(grades.values())]
    people = {query: data.qrels[query] for query in answered}
    scored: dict[str, tuple[Array, Array]] = {}
    for name in (column.removeprefix(RANK) for column in table.column_names if column.startswith(RANK)):
        ranked: dict[str, dict[int, str]] = {query: {} for query in answered}
        for row in rows:
            if row["query_id"] in ranked and row[RANK + name] is not None:
                ranked[row["query_id"]][row[RANK + name]] = row["passage_id"]
        run = {query: descending([found[rank] for rank in sorted(found)]) for query, found in ranked.items()}
        by_people, by_teacher = (
            per_query(run, qrels, (HEADLINE,))[HEADLINE]
            for qrels in (people, {query: teacher[query] for query in answered})
        )
        scored[name] = by_people, by_teacher
    means = {name: (float(ours.mean()), float(its.mean())) for name, (ours, its) in scored.items()}
    same, sure = [], []
    for one, other in combinations(scored, 2):
        agree = np.sign(means[one][0] - means[other][0]) == np.sign(means[one][1] - means[other][1])
        _, low, high = bootstrap_ci(scored[one][0] - scored[other][0])
        same.append(bool(agree))
        sure += [bool(agree)] if low > 0 or high < 0 else []
    return {
        "queries": len(answered),
        "left_out": len(teacher) - len(answered),
        "judged": len(rows),
        "systems": means,
        "over_start": {
            name: [list(bootstrap_ci(mine - base)) for mine, base in zip(both, scored[START], strict=True)]
            for name, both in scored.items()
            if name != START
        },
        "spearman": float(spearmanr(*zip(*means.values(), strict=True)).statistic),
        "sign": float(np.mean(same)),
        "sign_sure": float(np.mean(sure)) if sure else None,
        "pairs": len(same),
        "pairs_sure": len(sure),
    }


def _table(found: dict[str, dict[str, Any]]) -> str:
    lines = [("set", "system", "people", "teacher", "over start, people", "over start, teacher")]
    for name, row in found.items():
        for system, (people, teacher) in row["systems"].items():
            ahead = [difference(delta, ends) for delta, *ends in row["over_start"].get(system, [])] or ["", ""]
            lines.append((name, system, f"{100 * people:.1f}", f"{100 * teacher:.1f}", *ahead))
    return markdown_table(lines)


if __name__ == "__main__":
    main()
