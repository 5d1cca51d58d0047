"""A stage that several workers share is, joined, what one process makes; so is one whose shards come in any order."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from gecko.config import RunConfig, load_config
from gecko.errors import ConfigError, RunError
from gecko.llm.fake import FakeLM
from gecko.pipeline import Pipeline
from gecko.records import Passage, Query
from gecko.shares import Share, parse_share, working
from gecko.store import AHEAD, Manifest, Run, Shard, read_json, write_json
from gecko.work import LOCAL, Counts, Job, Local, perform

from .conftest import write_corpus

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
    share: str | None = None,
    *,
    parts: dict[str, str] = PARTS,
    made: list[str] | None = None,
    after=lambda _: (),
    engine=LOCAL,
) -> Manifest:
    """Stage ``relabel`` with seven shards, or a worker's share of it; ``made`` gets the items that were worked on."""

    def work(item: str, counts: Counts) -> Iterator[Passage]:
        if made is not None:
            made.append(item)
        return rows(item, counts)

    def job(_: Mapping[int, Shard]) -> Job[str, Passage]:
        return Job(work, lambda index, _: ITEMS[index], after)

    chosen = parse_share("relabel", share) if share else None
    with Run(folder, None if share else CONFIG, share=chosen) as run:
        return run.spread("relabel", Passage, parts, ITEMS, job, engine, key=lambda item: item)


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


@pytest.mark.parametrize("order", [("1/3", "2/3", "3/3"), ("3/3", "1/3", "2/3"), ("2/3",)])
def test_joined_is_as_if_made_by_one(tmp_path: Path, whole: Manifest, order: tuple[str, ...]) -> None:
    made: list[str] = []
    for share in order:
        before = len(made)
        assert not spread(tmp_path / "run", share, made=made).done
        assert made[before:] == ITEMS[int(share[0]) - 1 :: 3]
    joined = spread(tmp_path / "run", made=made)  # and what nobody has made
    assert joined.done
    assert sorted(made) == ITEMS
    same(tmp_path / "run", whole)


def test_other_workers_go_on_with_what_is_there(tmp_path: Path, whole: Manifest) -> None:
    made: list[str] = []
    spread(tmp_path / "run", "2/3", made=made)
    for share in ("1/2", "2/2"):
        spread(tmp_path / "run", share, made=made)
    assert sorted(made) == ITEMS
    spread(tmp_path / "run", made=made)
    assert sorted(made) == ITEMS
    same(tmp_path / "run", whole)


def test_a_share_that_is_done_is_not_done_again(tmp_path: Path, whole: Manifest) -> None:
    made: list[str] = []
    for _ in range(2):
        spread(tmp_path / "run", "1/2", made=made)
    assert made == ITEMS[::2]
    spread(tmp_path / "run")
    assert spread(tmp_path / "run", "2/2", made=made).done  # nothing is left
    assert made == ITEMS[::2]
    same(tmp_path / "run", whole)


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


def test_a_worker_waits_for_nobody_who_does_not_work(
    tmp_path: Path, whole: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gecko.store.GRACE_SECONDS", 0.0)
    made: list[str] = []

    def after(index: int) -> list[int]:
        return [index - 1] if index == 4 else []

    message = (
        r"worker 1 of 2 of relabel cannot go on: its next part builds on part 4, which worker 2 of 2 of relabel has"
    )
    with pytest.raises(RunError, match=message):
        spread(tmp_path / "run", "1/2", made=made, after=after)
    assert made == [ITEMS[number] for number in (0, 2, 6)]
    spread(tmp_path / "run", "2/2", made=made, after=after)
    spread(tmp_path / "run", "1/2", made=made, after=after)
    assert made == [ITEMS[number] for number in (0, 2, 6, 1, 3, 5, 4)]
    spread(tmp_path / "run")
    same(tmp_path / "run", whole)


# --- refusals


def test_a_worker_that_would_make_something_else(tmp_path: Path, whole: Manifest) -> None:
    spread(tmp_path / "run", "1/2")
    before = files(tmp_path / "run", "relabel")
    with pytest.raises(RunError) as caught:
        spread(tmp_path / "run", "2/2", parts={**PARTS, "inputs": "c", "version": "2"})
    assert "worker 2 of 2 of relabel would make another relabel than" in str(caught.value)
    assert "worker-1-of-2.json: inputs, version differ" in str(caught.value)
    assert files(tmp_path / "run", "relabel") == before
    spread(tmp_path / "run", "2/2")
    spread(tmp_path / "run")
    same(tmp_path / "run", whole)


def test_a_part_of_other_work_is_named(tmp_path: Path, whole: Manifest) -> None:
    """Copied from a machine without the common file system, say."""
    spread(tmp_path / "run", "1/2")
    file = tmp_path / "run" / "relabel" / "worker-1-of-2.json"
    write_json(file, {**read_json(file), "fingerprint": "0", "parts": {**PARTS, "inputs": "c"}})
    with pytest.raises(RunError, match=r"worker-1-of-2.json is of other work than .*manifest.json \(inputs differ\)"):
        spread(tmp_path / "run")


@pytest.mark.parametrize("share", [None, "1/2"])
def test_a_damaged_part_is_named_and_made_again_once_deleted(
    tmp_path: Path, whole: Manifest, share: str | None
) -> None:
    spread(tmp_path / "run", "1/2")
    path = tmp_path / "run" / "relabel" / "part-00002.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        RunError, match=r"part-00002.parquet does not match its checksum .*; delete it, and .* makes it again"
    ):
        spread(tmp_path / "run", share)
    path.unlink()
    made: list[str] = []
    spread(tmp_path / "run", share, made=made)
    assert ITEMS[2] in made and ITEMS[0] not in made
    spread(tmp_path / "run")
    same(tmp_path / "run", whole)


def test_who_may_work_beside_whom(tmp_path: Path, whole: Manifest) -> None:
    folder = tmp_path / "run"
    first = Share("relabel", 1, 2)

    def others(*_: object) -> None:
        assert list(working(folder)) == [first]
        with pytest.raises(RunError, match="worker 1 of 2 of relabel works in .*; wait for it to end"):
            Run(folder)
        with pytest.raises(RunError, match="worker 1 of 2 of relabel works in .* already"):
            Run(folder, share=first)
        with pytest.raises(RunError, match=r"worker 1 of 2 .*would do its shards again; give all workers the same n"):
            Run(folder, share=Share("relabel", 2, 3))
        with pytest.raises(RunError, match="would make another relabel than worker 1 of 2 of relabel: inputs differ"):
            spread(folder, "2/2", parts={**PARTS, "inputs": "c"})
        spread(folder, "2/2")

    def job(_: Mapping[int, Shard]) -> Job[str, Passage]:
        def work(item: str, counts: Counts) -> Iterator[Passage]:
            if item == ITEMS[2]:
                others()
            return rows(item, counts)

        return Job(work, lambda index, _: ITEMS[index])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gecko.store.LOCK_SECONDS", 0.1)
        with Run(folder, share=first) as run:
            run.spread("relabel", Passage, PARTS, ITEMS, job, LOCAL, key=lambda item: item)
    assert list(working(folder)) == []
    assert spread(folder).done
    same(folder, whole)


def test_who_waits_for_an_earlier_stage_is_in_nobodys_way(tmp_path: Path, whole: Manifest) -> None:
    folder, said, opened = tmp_path / "run", [], threading.Event()

    def later() -> None:
        with Run(folder, share=Share("relabel", 1, 2), say=said.append):
            opened.set()

    with Share("generate", 1, 2).lock(folder):
        thread = threading.Thread(target=later)
        thread.start()
        while not said:
            time.sleep(0.01)
        with Run(folder, share=Share("generate", 2, 2)):
            assert sorted(map(str, working(folder))) == [f"worker {number} of 2 of generate" for number in (1, 2)]
        assert not opened.is_set()
    thread.join(timeout=60)
    assert opened.is_set()
    assert said == ["worker 1 of 2 of relabel waits for worker 1 of 2 of generate"]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "a/b", "-1/2", "1/0"])
def test_no_share(text: str) -> None:
    with pytest.raises(ConfigError, match="--shard .*: write it as i/n"):
        parse_share("relabel", text)


def test_which_stages_a_share_covers() -> None:
    share = parse_share("relabel", "2/4")
    assert [share.covers(stage) for stage in ("relabel", "relabel-2", "relabel-set", "generate")] == [
        True,
        True,
        False,
        False,
    ]
    assert [share.has(index) for index in range(5)] == [False, True, False, False, False]
    assert share.owner(3) == parse_share("relabel", "4/4")


# --- whole runs, in processes of their own

SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import gecko.corpus.ingest, gecko.encoder, gecko.evaluation.teacher_check, gecko.fret.generate, gecko.fret.mine
import gecko.fret.relabel, gecko.llm.fake, gecko.llm.load, sentence_transformers
from gecko import store
from gecko.pipeline import Pipeline
from gecko.shares import parse_share
from gecko.store import Run

folder, stages, deadly = Path(sys.argv[1]), sys.argv[2].split(","), json.loads(sys.argv[3])
store.POLL_SECONDS, store.GRACE_SECONDS = 0.02, 1.0

def start(share, *stages):
    child = os.fork()
    if child:
        return child
    try:
        kept, written = Run._write_shard, []
        def write(self, stage, *rest):
            written.append(stage)
            if [share, stage, written.count(stage)] in deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return kept(self, stage, *rest)
        Run._write_shard = write
        for stage in stages:
            with Run(folder, share=parse_share(stage, share)) as run:
                Pipeline(run).through(stage)
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)

def end(children):
    return {share: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for share, child in children.items()}

killed = 0
shares = ["1/3", "2/3", "3/3"]
for stage in stages:
    left, rounds = shares, 0
    while left:  # whoever waited in vain for one that had not started is started again
        rounds += 1
        if rounds == 20:
            sys.exit(f"{stage}: {ended}")
        ended = end({share: start(share, stage) for share in left})
        left = [share for share, code in ended.items() if code]
        killed += sum(code == -signal.SIGKILL for code in ended.values())
        deadly.clear()
print(json.dumps(killed))
"""


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


def test_three_processes_one_of_them_killed(corpus: Path, tiny_model: Path, alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Run(folder, settings(corpus, tiny_model)) as run:
        Pipeline(run).ingest()
    deadly = [["2/3", "generate", 2]]
    arguments = [sys.executable, "-c", SCRIPT, str(folder), "generate,mine,relabel", json.dumps(deadly)]
    done = subprocess.run(
        arguments, check=False, capture_output=True, text=True, env=dict(os.environ, HF_HUB_OFFLINE="1")
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == 1
    assert len(list((folder / "relabel").glob("worker-?-of-3.json"))) == 3  # nobody but a worker has made any
    run_whole(folder, settings(corpus, tiny_model))
    assert_equal_runs(folder, alone)
    with Run(alone) as run:
        assert run.finished("generate").drops["repeated"] > 0  # what was written before made a difference
        assert len(run.finished("relabel").shards) > 6


def test_any_order_with_passages_that_come_again(corpus: Path, tiny_model: Path, alone: Path, tmp_path: Path) -> None:
    run_whole(tmp_path / "run", settings(corpus, tiny_model), engine=Backwards())
    assert_equal_runs(tmp_path / "run", alone)


def test_a_share_counts_as_paid_when_the_run_grows(
    corpus: Path, tiny_model: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with Run(folder, settings(corpus, tiny_model, "generate.queries=40")) as run:
        Pipeline(run).ingest()
    asked: list[str] = []
    kept = FakeLM.generate

    def recorded(self, prompt, passages, sampling):
        asked.extend(passages)
        return kept(self, prompt, passages, sampling)

    monkeypatch.setattr(FakeLM, "generate", recorded)
    with Run(folder, share=Share("generate", 2, 2)) as run:
        Pipeline(run).through("generate")
    assert len(asked) == 16
    run_whole(folder, settings(corpus, tiny_model))
    assert len(asked) == 110
    assert files(folder, *STAGES) == files(alone, *STAGES)
    with Run(folder) as run:
        assert len(run.read("generate", Query)) == run.finished("generate").rows


def test_workers_take_the_settings_as_they_are(alone: Path) -> None:
    from typer.testing import CliRunner

    from gecko.cli import app

    for options, message in (
        (["--set", "mine.n=5"], "--shard takes the run's settings as they are"),
        (["--engine", "ray"], "exclude each other"),
    ):
        result = CliRunner().invoke(app, ["relabel", str(alone), "--shard", "1/2", *options])
        assert isinstance(result.exception, ConfigError) and message in str(result.exception)
    result = CliRunner().invoke(app, ["relabel", str(alone), "--address", "auto"])
    assert isinstance(result.exception, ConfigError) and "--address: for --engine ray only" in str(result.exception)
    result = CliRunner().invoke(app, ["relabel", str(alone), "--shard", "1/2"])
    assert result.exit_code == 0, result.exception
    assert "relabel: " in result.stdout and " rows" in result.stdout  # it was done already
