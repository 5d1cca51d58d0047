"""A stage whose shards come in any order is what it is in their order."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from gecko.config.load import load_config
from gecko.config.run import RunConfig
from gecko.core.counts import Counts
from gecko.core.errors import RunError
from gecko.core.files import read_json, write_json
from gecko.core.records import Passage
from gecko.run.engine import LOCAL, Job, Local, perform
from gecko.run.folder import Run
from gecko.run.manifest import AHEAD, Manifest, Shard
from gecko.run.shards import run_shards
from gecko.stages.runner import Pipeline

from ..conftest import write_corpus

CONFIG = RunConfig(budget="1m")
PARTS = {"inputs": "a", "settings": "b"}
ITEMS = [f"item {number}" for number in range(7)]
STAGES = ("generate", "mine", "relabel")


def rows(item: str, counts: Counts) -> Iterator[Passage]:
    counts.tokens += len(item)
    counts.drop("short", item)
    yield Passage(item, "", f"the text of {item}")


def spread(
    folder: Path,
    *,
    parts: dict[str, str] = PARTS,
    made: list[str] | None = None,
    after=lambda _: (),
    engine=LOCAL,
) -> Manifest:
    """Stage ``relabel`` with seven shards; ``made`` gets the items that were worked on."""

    def work(item: str, counts: Counts) -> Iterator[Passage]:
        if made is not None:
            made.append(item)
        return rows(item, counts)

    def job(_: Mapping[int, Shard]) -> Job[str, Passage]:
        return Job(work, lambda index, _: ITEMS[index], after)

    with Run(folder, CONFIG) as run:
        return run_shards(run, "relabel", Passage, parts, ITEMS, job, engine, key=lambda item: item)


def timeless(manifest: Manifest) -> dict[str, object]:
    return asdict(replace(manifest, shards=[replace(shard, seconds=0.0) for shard in manifest.shards]))


def files(folder: Path, *stages: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for stage in stages
        for path in sorted((folder / stage).glob("part-*.parquet"))
    }


@pytest.fixture
def whole(tmp_path: Path) -> Manifest:
    """What one process makes of the seven shards, in a folder ``whole``; ``run`` is there without any."""
    for name in ("whole", "run"):
        with Run(tmp_path / name, CONFIG):
            pass
    return spread(tmp_path / "whole")


def same(folder: Path, whole: Manifest) -> None:
    with Run(folder) as run:
        assert timeless(run.finished("relabel")) == timeless(whole)
    assert files(folder, "relabel") == files(folder.parent / "whole", "relabel")
    assert len(files(folder, "relabel")) == len(ITEMS)
    assert not list((folder / "relabel").glob("worker-*"))
    assert [path.name for path in folder.glob(".*")] == [".lock"]


class Backwards(Local):
    """All shards that can begin are begun, and the last one is finished first."""

    def __init__(self, most: int = 1000) -> None:
        self.left = most

    def run(self, do, take):
        while True:
            tasks = []
            while (taken := take()) is not None:
                tasks.append(taken)
            if not tasks:
                return
            for index, task in reversed(tasks):
                if not self.left:
                    raise InterruptedError
                self.left -= 1
                yield index, perform(do, task)


def test_shards_that_come_in_any_order(tmp_path: Path, whole: Manifest) -> None:
    made: list[str] = []
    assert spread(tmp_path / "run", made=made, engine=Backwards()).done
    assert made == ITEMS[::-1]
    same(tmp_path / "run", whole)


def test_what_was_finished_out_of_turn_is_not_made_again(tmp_path: Path, whole: Manifest) -> None:
    made: list[str] = []
    with pytest.raises(InterruptedError):
        spread(tmp_path / "run", engine=Backwards(3), made=made)
    with Run(tmp_path / "run") as run:
        manifest = run.manifest("relabel")
        assert manifest is not None and manifest.shards == []
        # archived, it is as much paid for as any
        earlier = Run.earlier.__get__(run)
        run._move(tmp_path / "run" / "relabel", tmp_path / "run" / "archive" / "relabel-x")
        assert [shard.key for shard in earlier("relabel", PARTS, ())[0][1].shards] == ITEMS[4:]
        run._move(tmp_path / "run" / "archive" / "relabel-x", tmp_path / "run" / "relabel")
    assert [shard["key"] for shard in read_json(tmp_path / "run" / "relabel" / AHEAD)["shards"]] == ITEMS[4:]
    spread(tmp_path / "run", made=made)
    assert made == [*ITEMS[:3:-1], *ITEMS[:4]]
    same(tmp_path / "run", whole)


def test_a_shard_begins_after_those_it_builds_on(tmp_path: Path, whole: Manifest) -> None:
    made: list[str] = []
    spread(tmp_path / "run", made=made, engine=Backwards(), after=lambda index: [index - 2] if index > 1 else [])
    assert made == [ITEMS[number] for number in (1, 0, 3, 2, 5, 4, 6)]
    same(tmp_path / "run", whole)


def test_what_workers_of_an_earlier_version_made_is_taken_over(tmp_path: Path, whole: Manifest) -> None:
    """They listed their shards in files of their own, and held locks of their own."""
    folder, made = tmp_path / "run", []
    with pytest.raises(InterruptedError):
        spread(folder, engine=Backwards(3))
    (folder / "relabel" / AHEAD).rename(folder / "relabel" / "worker-2-of-4.json")
    spread(folder, made=made)
    assert made == ITEMS[:4]
    same(folder, whole)


# --- refusals


def test_a_part_of_other_work_is_named(tmp_path: Path, whole: Manifest) -> None:
    """Copied from another run, say."""
    with pytest.raises(InterruptedError):
        spread(tmp_path / "run", engine=Backwards(3))
    file = tmp_path / "run" / "relabel" / AHEAD
    write_json(file, {**read_json(file), "fingerprint": "0", "parts": {**PARTS, "inputs": "c"}})
    with pytest.raises(RunError, match=r"worker-ahead.json is of other work than .*manifest.json \(inputs differ\)"):
        spread(tmp_path / "run")


def test_a_damaged_part_is_named_and_made_again_once_deleted(tmp_path: Path, whole: Manifest) -> None:
    with pytest.raises(InterruptedError):
        spread(tmp_path / "run", engine=Backwards(3))
    path = tmp_path / "run" / "relabel" / "part-00005.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        RunError, match=r"part-00005.parquet does not match its checksum .*; delete it, and .* makes it again"
    ):
        spread(tmp_path / "run")
    path.unlink()
    made: list[str] = []
    spread(tmp_path / "run", made=made)
    assert made == [*ITEMS[:4], ITEMS[5]]
    same(tmp_path / "run", whole)


# --- whole runs


@pytest.fixture(scope="module")
def corpus(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", words)


def settings(corpus: Path, model: Path, *more: str) -> RunConfig:
    overrides = (
        "generate.queries=110",  # of 60 passages: some come again, and are to get another query
        "generate.batch=8",
        "generate.neighbourhood=4",
        "generate.min_seed_chars=10",
        "mine.n=6",
        "relabel.shard_passages=5",
        "select.min_rc=null",
        "check.enabled=false",
        *more,
    )
    return load_config(None, overrides, {"corpus": {"sources": [str(corpus)]}, "llm": "fake", "backbone": str(model)})


def run_whole(folder: Path, config: RunConfig, **options) -> None:
    with Run(folder, config) as run:
        pipeline = Pipeline(run, **options)
        pipeline.ingest()
        pipeline.through("relabel")


@pytest.fixture(scope="module")
def alone(corpus: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    run_whole(folder, settings(corpus, tiny_model))
    return folder


def assert_equal_runs(folder: Path, alone: Path) -> None:
    assert files(folder, *STAGES) == files(alone, *STAGES)
    with Run(folder) as one, Run(alone) as other:
        for stage in STAGES:
            assert timeless(one.finished(stage)) == timeless(other.finished(stage))
    assert not list(folder.glob("*/worker-*"))


def test_any_order_with_passages_that_come_again(corpus: Path, tiny_model: Path, alone: Path, tmp_path: Path) -> None:
    run_whole(tmp_path / "run", settings(corpus, tiny_model), engine=Backwards())
    assert_equal_runs(tmp_path / "run", alone)
