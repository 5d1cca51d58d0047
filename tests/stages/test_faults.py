"""A run that is killed with -9 at random moments, again and again, ends with the bytes of one that never was.

One process imports everything once and forks a child for each attempt, so that thirty kills take seconds.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gecko.config.run import RunConfig
from gecko.core.errors import RunError
from gecko.core.records import Passage
from gecko.run.folder import Run
from gecko.run.shards import run_local

STAGES = ("ingest", "generate", "mine", "relabel", "select")

FORKS = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import gecko.corpus.ingest, gecko.encoder, gecko.evaluation.teacher.probe, gecko.fret.generate, gecko.fret.mine
import gecko.fret.relabel, gecko.fret.select, gecko.llm.fake, gecko.llm.registry, sentence_transformers
from gecko.config.load import make_config
from gecko.stages.runner import Pipeline
from gecko.run.folder import Run

folder, config, stages, kills, seed = json.loads(sys.argv[1])
folder, config, rng = Path(folder), make_config(config, "test"), random.Random(seed)

def attempt(path, stage, seconds=None):
    # Whether the stage, and all before it, came to their end within so many seconds.
    child = os.fork()
    if child == 0:
        try:
            with Run(path, config) as run:
                pipeline = Pipeline(run)
                pipeline.ingest()
                if stage != "ingest":
                    pipeline.through(stage)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, 0 if end is None else os.WNOHANG)
        if done:
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                sys.exit("a child failed")
            return True
        if time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.001)

def shards(path):
    files = [file for stage in stages for file in (path / stage).glob("part-*.parquet")]
    files += [file for file in (path / "plan/plan.json", path / "embed/passages.npy") if file.exists()]
    return {str(file.relative_to(path)): file.read_bytes().hex() for file in sorted(files)}

before = None  # what the stages before the first of interest leave, so that it alone is killed
whole = folder / "whole"
start = time.monotonic()
attempt(whole, stages[-1])
took = time.monotonic() - start
if len(stages) == 1 and stages[0] != "ingest":
    order = ["ingest", "generate", "mine", "relabel", "select"]
    before = folder / "before"
    attempt(before, order[order.index(stages[0]) - 1])
    start = time.monotonic()
    attempt(whole, stages[-1])
    shutil.copytree(before, folder / "timed")
    start = time.monotonic()
    attempt(folder / "timed", stages[-1])
    took = time.monotonic() - start
expected, done, rounds = shards(whole), 0, 0
while done < kills:
    path = folder / f"run{rounds}"
    if before is not None:
        shutil.copytree(before, path)
    while done < kills and not attempt(path, stages[-1], rng.uniform(0, took)):
        done += 1
    attempt(path, stages[-1])
    if shards(path) != expected:
        sys.exit(f"run {rounds} differs: {sorted(set(shards(path)) ^ set(expected))}")
    debris = [file.name for file in path.glob("*/.*")]
    if debris:
        sys.exit(f"left over: {debris}")
    rounds += 1
print(json.dumps({"kills": done, "rounds": rounds, "files": len(expected)}))
"""


@pytest.fixture(scope="module")
def corpus(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rows = [
        {
            "_id": f"p{n}",
            "title": words[n % len(words)],
            "text": f"passage {n} about " + " ".join(words[n % 7 : n % 7 + 9]),
        }
        for n in range(80)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def killed(folder: Path, corpus: Path, model: Path, stages: tuple[str, ...], kills: int) -> dict[str, int]:
    config = RunConfig(
        llm="fake",
        backbone=str(model),
        corpus={"sources": [str(corpus)], "shard_passages": 10},
        generate={"queries": 30, "batch": 4, "min_seed_chars": 10},
        mine={"n": 6},
        relabel={"shard_passages": 5},
        select={"min_rc": None},
        check={"enabled": False},
    )
    task = json.dumps([str(folder), config.model_dump(), stages, kills, 7])
    done = subprocess.run([sys.executable, "-c", FORKS, task], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.slow
def test_thirty_kills_leave_no_trace(tmp_path: Path, corpus: Path, tiny_model: Path) -> None:
    result = killed(tmp_path, corpus, tiny_model, STAGES, 30)
    assert result["kills"] == 30 and result["rounds"] >= 2
    assert result["files"] >= 17  # with the plan and the vectors


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_thirty_kills_of_each_stage(tmp_path: Path, corpus: Path, tiny_model: Path, stage: str) -> None:
    assert killed(tmp_path, corpus, tiny_model, (stage,), 30)["kills"] == 30


def test_debris_is_swept_and_nothing_else(tmp_path: Path) -> None:
    with Run(tmp_path, RunConfig(budget="1m")) as run:
        run_local(run, "ingest", Passage, {}, ["a"], lambda *_: [Passage("a", "", "text")])
    debris = [tmp_path / ".config.json.123", tmp_path / "ingest/.part-00000.parquet.99"]
    kept = [tmp_path / "ingest/.note", tmp_path / "ingest/part-00000.parquet", tmp_path / "notes.2024"]
    for path in [*debris, kept[0], kept[2]]:
        path.write_text("x")
    with Run(tmp_path) as run:
        assert len(run.read("ingest", Passage)) == 1
    assert not any(path.exists() for path in debris)
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize("fault", ["flipped", "truncated", "missing"])
def test_a_damaged_shard_is_named(tmp_path: Path, fault: str) -> None:
    with Run(tmp_path, RunConfig(budget="1m")) as run:
        run_local(run, "ingest", Passage, {}, ["a", "b"], lambda item, _: [Passage(item, "", "text")])
    path = tmp_path / "ingest" / "part-00001.parquet"
    data = bytearray(path.read_bytes())
    if fault == "missing":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if fault == "flipped" else data[:-7])
    with (
        Run(tmp_path) as run,
        pytest.raises(RunError, match=r"shard .*part-00001\.parquet (does not match|is missing)"),
    ):
        run.read("ingest", Passage)


@pytest.mark.skipif(not Path("/dev/full").exists() or os.geteuid() != 0, reason="needs a small file system of its own")
def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path) -> None:
    from gecko.core.errors import StorageError

    small = tmp_path / "small"
    small.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], check=False, capture_output=True
    )
    if mount.returncode:
        pytest.skip("no right to mount a small file system")
    try:
        text = os.urandom(60_000).hex()

        def work(item: str, _: object) -> list[Passage]:
            return [Passage(item, "", text[::-1] + item)]

        with (
            Run(small / "run", RunConfig(budget="1m")) as run,
            pytest.raises(StorageError, match=r"cannot write .*part-"),
        ):
            run_local(run, "ingest", Passage, {}, list("abcdefgh"), work)
        with Run(small / "run") as run:
            manifest = run.manifest("ingest")
            assert manifest is not None and not manifest.done and 1 <= len(manifest.shards) < 8
            for shard in manifest.shards:
                assert len(run.read_shard(small / "run/ingest", shard, Passage)) == 1
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
