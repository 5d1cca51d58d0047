"""A Ray cluster of two workers makes what one process makes, also where a worker is killed in the middle of a shard."""

import os
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gecko.config.run import RunConfig
from gecko.core.counts import Counts
from gecko.core.errors import ConfigError, RunError, TeacherError
from gecko.corpus.readers import read_source
from gecko.encoder import load, nearest
from gecko.run.folder import Run
from gecko.run.manifest import Manifest
from gecko.run.ray import Cluster, _division
from gecko.search import BulkConfig, embed_to_folder
from gecko.search.bulk import RemoteEmbedder
from gecko.stages.models import RemoteEncoder, RemoteTeacher
from gecko.stages.runner import Pipeline

from ..conftest import write_corpus
from .test_shards import assert_equal_runs, files, run_whole, settings, timeless

pytestmark = pytest.mark.slow

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'gecko-embed[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker of one CPU has
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("RAY_worker_niceness", "0")  # Ray's 15 would starve them on a busy machine
        patched.setenv("HF_HUB_OFFLINE", "1")
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=100 << 20,
        )
        try:
            with Cluster(workers=2) as made:
                yield made
            assert ray.is_initialized()  # it was not this engine that had started it
        finally:
            ray.shutdown()
            torch.set_num_threads(threads)


def tasks(count: int) -> Callable[[], tuple[int, int] | None]:
    left = iter(range(count))
    return lambda: next(((number, number * 10) for number in left), None)


def deadly(do: Callable, mark: Path, at: int) -> Callable:
    """The same work, by a process that kills itself with -9 in the middle of the ``at``-th call, once."""
    calls = []

    def work(task: object, counts: Counts) -> list:
        calls.append(task)
        if len(calls) == at:
            try:
                mark.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return list(do(task, counts))

    return work


class Deadly:
    """A cluster that loses a worker where the teacher works."""

    remote = True

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder, self.stages = cluster, folder, []
        self.keep = cluster.keep

    def run(self, do, take):
        name = type(do).__name__
        self.stages.append(name)
        if name not in ("Write", "Judge"):
            yield from self.cluster.run(do, take)
            return
        mark = self.folder / f"killed-{name}"
        yield from self.cluster.run(deadly(do, mark, 2), take)
        assert mark.exists()


@pytest.fixture(scope="module")
def corpus(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", words)


def test_a_run_that_loses_workers(
    cluster: Cluster, corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gecko.stages.mine.QUERIES_A_SHARD", 40)
    monkeypatch.setattr(nearest, "PASSAGE_BLOCK", 16)
    monkeypatch.setattr(nearest, "PART", 16)  # the passages' vectors are sent in four parts
    config = settings(corpus, tiny_model, "corpus.shard_passages=20")
    run_whole(tmp_path / "alone", config)
    said: list[str] = []
    monkeypatch.setattr(cluster, "_say", said.append)
    engine = Deadly(cluster, tmp_path)
    run_whole(tmp_path / "run", config, engine=engine)
    assert engine.stages == ["Extract", "Embed", "Write", "Mine", "Judge"]
    assert len(said) == 2 and all("a worker has ended in the middle of part" in line for line in said)
    assert_equal_runs(tmp_path / "run", tmp_path / "alone")
    vectors = [np.load(tmp_path / name / "embed" / "passages.npy") for name in ("run", "alone")]
    np.testing.assert_array_equal(*vectors)
    assert len(files(tmp_path / "run", "mine")) > 1

    # A run that grew, with a second teacher, on what the cluster had made.
    more = settings(corpus, tiny_model, "corpus.shard_passages=20", "generate.queries=130", "relabel.teachers=['fake']")
    for name, options in (("alone", {}), ("run", {"engine": cluster})):
        with Run(tmp_path / name, more, force=True) as run:
            Pipeline(run, **options).through("relabel")
            assert run.finished("relabel").notes["taken over"] > 0
    assert_equal_runs(tmp_path / "run", tmp_path / "alone")
    assert files(tmp_path / "run", "relabel-2") == files(tmp_path / "alone", "relabel-2") != {}


def test_embedding_to_a_folder(cluster: Cluster, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    embedder, config = load(str(tiny_model)), BulkConfig(shard_rows=7)
    alone = embed_to_folder(embedder, read_source(str(corpus)), tmp_path / "alone", config)
    made = embed_to_folder(embedder, read_source(str(corpus)), tmp_path / "run", config, engine=cluster)
    assert made == alone
    names = [path.name for path in sorted((tmp_path / "alone").glob("part-*.parquet"))]
    assert len(names) == 9
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_documents_are_parsed_by_the_workers(
    cluster: Cluster, words: list[str], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trafilatura")
    folder = tmp_path / "pages"
    folder.mkdir()
    pages = {f"{word}.html": f"<h1>{word}</h1><p>{'all about ' + word + ' and more. '} " * 9 for word in words[:5]}
    pages["broken.pdf"] = "no such thing"
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        for name, text in pages.items():
            (folder / name).write_text(text)
            archive.writestr(name, text.replace("about", "of"))
    config = settings(folder, tiny_model, "corpus.chunk_tokens=null")

    def ingest(name: str, **options: Cluster) -> Manifest:
        with Run(tmp_path / name, config) as run:
            return Pipeline(run, **options).ingest()

    alone = ingest("alone")

    def refuse(*_: object) -> None:
        raise AssertionError("a document was parsed by the driver")

    monkeypatch.setattr("gecko.corpus.documents.Extractor.__call__", refuse)
    made = ingest("run", engine=cluster)
    assert timeless(made) == timeless(alone)
    assert files(tmp_path / "run", "ingest") == files(tmp_path / "alone", "ingest") != {}
    assert made.rows == 10 and made.drops == {"unreadable document": 2}


def test_a_shard_that_kills_every_worker(cluster: Cluster) -> None:
    def work(task: int, counts: Counts) -> list[int]:
        if task == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return [task]

    found = []
    with pytest.raises(RunError, match="part 3 has ended 3 workers"):
        for index, done in cluster.run(work, tasks(4)):
            found.append((index, done.rows))
    assert (0, [0]) in found


def test_errors_of_a_worker_are_those_of_the_stage(cluster: Cluster) -> None:
    teacher = RemoteTeacher("fake", "other", RunConfig(budget="1m").relabel, True)
    with pytest.raises(TeacherError, match=r"fake is another model on .* \(fake-1\) than in the run \(other\)"):
        list(cluster.run(lambda _, counts: [teacher(counts)], tasks(1)))
    with pytest.raises(ZeroDivisionError):
        list(cluster.run(lambda task, _: [1 // task], tasks(1)))
    assert len(list(cluster.run(lambda task, _: [task], tasks(3)))) == 3


def test_another_model_is_refused(tiny_model: Path) -> None:
    for sent in (RemoteEncoder(str(tiny_model), "other"), RemoteEmbedder(str(tiny_model), "other", "float32")):
        with pytest.raises(ConfigError, match=r"is another model on .* than in the run \(other\)"):
            sent()


def test_large_values_are_kept_for_all_workers(cluster: Cluster) -> None:
    kept = cluster.keep(np.arange(100_000))
    found = dict(cluster.run(lambda task, _: [int(kept()[task])], tasks(50)))
    assert {index: done.rows for index, done in found.items()} == {number: [number * 10] for number in range(50)}


def test_a_teacher_is_loaded_once_a_worker(cluster: Cluster, tmp_path: Path) -> None:
    teacher = RemoteTeacher("fake", "fake-1", RunConfig(budget="1m").relabel, True)

    def work(_: int, counts: Counts) -> list[tuple[int, int]]:
        return [(os.getpid(), id(teacher(counts)))]

    rows = [done.rows[0] for _, done in cluster.run(work, tasks(30))]
    assert len(rows) == 30
    assert len(set(rows)) == len({pid for pid, _ in rows}) == 2


NODE = {"Alive": True, "Resources": {"CPU": 8.0}}


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([NODE], None, (1, {"num_cpus": 8})),
        ([NODE, NODE, {"Alive": False, "Resources": {}}], None, (2, {"num_cpus": 8})),
        ([NODE, NODE], 5, (5, {"num_cpus": 2})),
        ([{"Alive": True, "Resources": {"CPU": 0.0}}, NODE], 3, (3, {"num_cpus": 2})),
        ([{"Alive": True, "Resources": {"CPU": 16.0, "GPU": 4.0}}], None, (4, {"num_gpus": 1, "num_cpus": 1})),
        ([{"Alive": True, "Resources": {"CPU": 16.0, "GPU": 4.0}}], 2, (2, {"num_gpus": 1, "num_cpus": 1})),
    ],
)
def test_what_a_worker_gets(nodes: list, workers: int | None, expected: tuple) -> None:
    assert _division(nodes, workers) == expected


def test_more_workers_than_there_is_room_for() -> None:
    with pytest.raises(ConfigError, match="--workers 9: a machine would have 9, and of 1 with CPUs the smallest has 8"):
        _division([NODE], 9)
    with pytest.raises(ConfigError, match="--workers 3: the cluster has 2 GPUs"):
        _division([{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}], 3)
