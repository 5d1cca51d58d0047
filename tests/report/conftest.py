from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gecko.config.load import load_config
from gecko.core.counts import Counts
from gecko.core.files import read_json, write_json
from gecko.core.records import Candidate, Example, Passage, Query, Score
from gecko.fret.select import group_labels, select
from gecko.fret.view import RunView
from gecko.run.folder import Run
from gecko.run.shards import build_file, run_local

# Everything that the corpus, a generated query or a folder's name could try.
HOSTILE = (
    "<script>alert(1)</script> {{7*7}} {% raw %} \"'><img src=x onerror=y> \u202eevil $x_1$ \x1b[31m & ]]> --> [/red]"
)
PASSAGES, QUERIES, N = 30, 15, 5


def value(mean: float, delta: float | None = None, low: float = 0.0, high: float = 0.0) -> dict[str, Any]:
    return {"mean": mean, "delta": delta, "ci95": None if delta is None else [low, high]}


def make_result(low: float = 0.002, high: float = 0.026, name: str = "scifact", **changed: Any) -> dict[str, Any]:
    models = {
        "bm25": value(0.65, -0.02, -0.05, 0.01),
        "start": value(0.67),
        "native": value(0.684, 0.014, low, high),
        "unified": value(0.60, -0.07, -0.09, -0.05),
    }
    result = {
        "form": "native",
        "formats": ["native", "unified"],
        "sets": {
            name: {
                "queries": 300,
                "passages": 5183,
                "unknown_documents": 2,
                "unknown_queries": 0,
                "measures": {"ndcg@10": models, "recall@20": models},
            }
        },
        "agreement": {
            "queries": 5,
            "models": {
                "start": value(0.7),
                "native": value(0.75, 0.05, -0.01, 0.11),
                "unified": value(0.6, -0.1, -0.2, -0.1),
            },
        },
    }
    return result | changed


def fill(run: Run, result: dict[str, Any] | None) -> None:
    """Finish all stages of ``run``; the optional ones only with a ``result``."""
    passages = [
        Passage(f"p{i:02d}", f"title {i} {HOSTILE}" if i % 2 else "", f"text {i} {HOSTILE} " + "word " * 100, "here")
        for i in range(PASSAGES)
    ]
    split = {True: "heldout", False: "train"}
    queries = [
        Query(f"q{i:02d}", f"task {i % 3} {HOSTILE}", f"query {i} {HOSTILE}", f"p{i:02d}", "fake", split[i % 5 == 4])
        for i in range(QUERIES)
    ]
    candidates = [
        Candidate(f"q{i:02d}", f"p{(i + (i + rank) % N) % PASSAGES:02d}", rank, 0.5, not (i == 3 and rank == N))
        for i in range(QUERIES)
        for rank in range(1, N + 1)
    ]
    scores = [
        Score(c.query_id, c.passage_id, "fake", "hash", -float((7 * n) % 11), 4, float((5 * n) % 7) - 2)
        for n, c in enumerate(candidates)
    ]

    def count(rows: list[Any], drops: dict[str, int]) -> Callable[[int, Counts], list[Any]]:
        def work(_: int, counts: Counts) -> list[Any]:
            for reason, number in drops.items():
                for place in range(number):
                    counts.drop(reason, f"{reason}, number {place} {HOSTILE}")
            counts.tokens = 1234
            return rows

        return work

    run_local(run, "ingest", Passage, {}, [0], count(passages, {"empty": 2}))
    run_local(run, "generate", Query, {}, [0], count(queries, {"no query": 5}))
    run_local(run, "mine", Candidate, {}, [0], count(candidates, {}))
    run_local(run, "relabel", Score, {}, [0], count(scores, {}))
    labels = group_labels(queries, candidates, scores, run.config.select)
    by_id = {passage.id: passage for passage in passages}

    def chosen(_: int, counts: Counts) -> list[Example]:
        return list(select(queries, labels, by_id, run.config.select, 0, counts))

    run_local(run, "select", Example, {"scores": run.finished("relabel").identity}, [0], chosen)
    if result is None:
        return
    probe = {"queries": 40, "start": 0.7, "ql": 0.72, "rc": 0.71, "rrf": 0.75, "delta": 0.05, "low": 0.01, "high": 0.09}
    probe |= {"seconds": 3.0, "tokens": 99, "cached": False}
    build_file(run, "check", {}, "probe.json", lambda path: write_json(path, probe))
    for form in run.config.train.formats:
        build_file(run, f"train-{form}", {"rows": run.finished("select").identity}, "model", lambda path: path.mkdir())
        write_json(run.path / f"train-{form}" / "training.json", {"losses": [[1, 2.5], [2, 1.5]]})
    trained = {form: run.finished(f"train-{form}").identity for form in run.config.train.formats}
    build_file(run, "evaluate", trained, "results.json", lambda path: write_json(path, result))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunView]:
    def make(result: dict[str, Any] | None = None, *overrides: str) -> RunView:
        config = load_config(overrides=["llm=fake", "generate.queries=20", *overrides])
        with Run(tmp_path / "run", config) as run:
            fill(run, result)
        for manifest in run.path.glob("*/manifest.json"):  # measured times would differ between two runs
            values = read_json(manifest)
            for number, shard in enumerate(values["shards"], start=1):
                shard["seconds"] = 10.0 * number
            write_json(manifest, values)
        return RunView(run)

    return make


@pytest.fixture
def result() -> Callable[..., dict[str, Any]]:
    return make_result


@pytest.fixture
def hostile() -> str:
    return HOSTILE
