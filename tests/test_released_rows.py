"""A run that adds released rows to its own."""

import json
from pathlib import Path

import pytest

from gecko.config import load_config
from gecko.fret.release import FILE, load_release, released_rows, write_release
from gecko.pipeline import Pipeline, distill
from gecko.records import Example, Query
from gecko.report.table import origins, verdict
from gecko.store import Run

SHARED = (
    "generate.batch=8",
    "generate.neighbourhood=4",
    "generate.min_seed_chars=10",
    "generate.heldout=0.25",
    "mine.n=5",
    "select.min_rc=null",
    "train.epochs=1",
    "train.batch=16",
    "train.max_tokens=32",
    'train.formats=["native"]',
    "evaluate.resamples=100",
    "check.enabled=false",
)


@pytest.fixture(scope="module")
def corpus(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    with path.open("w") as lines:
        for number in range(60):
            chosen = [words[(number * 7 + step * (1 + number % 5)) % len(words)] for step in range(12)]
            row = {"_id": f"p{number}", "title": chosen[0], "text": f"passage {number} about " + " ".join(chosen)}
            lines.write(json.dumps(row) + "\n")
    return path


def settings(corpus: Path, model: Path, *more: str):
    base = {"corpus": {"sources": [str(corpus)]}, "llm": "fake", "backbone": str(model)}
    return load_config(None, (*SHARED, *more), base)


@pytest.fixture(scope="module")
def release(corpus: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    with Run(folder / "run", settings(corpus, tiny_model, "generate.queries=40", "seed=5")) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        pipeline.through("select")
        write_release(released_rows(run), folder / FILE)
        released = load_release(str(folder), pipeline.by_id, run.config.select)
        # What is read from it is what the run itself selects.
        assert released.queries == run.read("generate", Query)
        assert released.labels.keys() == pipeline.labels.keys()
        for identifier, ranked in pipeline.labels.items():
            assert [label.passage_id for label in released.labels[identifier]] == [one.passage_id for one in ranked]
        assert released.examples(run.config.select, 5) == run.read("select", Example)
    return folder


def test_rows_of_both(corpus: Path, tiny_model: Path, tmp_path: Path, release: Path) -> None:
    config = settings(corpus, tiny_model, "generate.queries=16", f'select.released=["{release}"]')
    with Run(tmp_path / "run", config) as run:
        result = distill(run)
        pipeline = Pipeline(run)
        own = run.read("generate", Query)
        rows = run.read("select", Example)
        selected = run.finished("select")
        seconds = sum(run.finished(stage).seconds for stage in ("generate", "relabel"))
        assert result["agreement"]["queries"] == len(pipeline.heldout)
    released = load_release(str(release), pipeline.by_id, config.select)
    mine, theirs = {query.id for query in own}, {query.id for query in released.queries}
    assert not mine & theirs
    ours, added = origins(selected)
    assert ours == sum(row.query_id in mine for row in rows) > 0
    assert added == {str(release): sum(row.query_id in theirs for row in rows)}
    assert ours + added[str(release)] == len(rows)
    # No passage is held out on one side and taught on the other.
    held_here = {query.seed_id for query in own if query.split == "heldout"}
    held_there = {query.seed_id for query in released.queries if query.split == "heldout"}
    assert held_here and held_there
    assert not held_there & {query.seed_id for query in own if query.split == "train"}
    for row in rows:
        assert row.seed_id not in held_here | held_there
        if row.query_id in theirs:
            assert row.positive.id not in held_here
    assert selected.drops[f"{release}: of a held-out neighbourhood"] > 0
    assert {query.id for query in pipeline.heldout} & mine
    assert {query.id for query in pipeline.heldout} & theirs
    assert f"{len(rows) - ours} more rows came from {release}." in verdict(
        result | {"sets": measured()}, ours, seconds, added
    )
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{len(rows)} training rows, {len(rows) - ours} of them from" in page


def measured() -> dict[str, object]:
    one = {"mean": 0.5, "delta": 0.1, "ci95": [0.05, 0.2]}
    return {"set": {"queries": 5, "measures": {"ndcg@10": {"start": one, "native": one}}}}


def test_the_same_rows_are_not_taken_twice(corpus: Path, tiny_model: Path, tmp_path: Path, release: Path) -> None:
    more = ("generate.queries=16", "seed=5", f'select.released=["{release}", "{release / FILE}"]')
    with Run(tmp_path / "run", settings(corpus, tiny_model, *more)) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        pipeline.through("select")
        rows = run.read("select", Example)
        drops = run.finished("select").drops
    assert len({row.query_id for row in rows}) == len(rows)
    assert drops[f"{release / FILE}: known already"] > 0


def test_an_empty_release_changes_no_row(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    write_release([], folder / FILE)
    with Run(tmp_path / "run", settings(corpus, tiny_model, "generate.queries=16")) as run:
        alone = Pipeline(run)
        alone.ingest()
        alone.through("select")
        without = run.finished("select")
    config = settings(corpus, tiny_model, "generate.queries=16", f'select.released=["{folder}"]')
    with Run(tmp_path / "run", config, force=True) as run:
        empty = Pipeline(run)
        empty.ingest()
        empty.through("select")
        assert run.finished("select").fingerprint != without.fingerprint
        assert run.finished("select").identity == without.identity  # equal rows: what was trained stays


def test_the_packager_takes_each_query_once(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gecko.publish import main

    main([str(release / "run"), str(release / "run"), "-o", str(tmp_path / "out")])
    assert (tmp_path / "out" / FILE).read_bytes() == (release / FILE).read_bytes()
    with Run(release / "run") as run:
        assert f"{len(released_rows(run)):,} rows" in capsys.readouterr().out
