import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gecko.config.load import load_config
from gecko.config.run import RunConfig
from gecko.core.counts import Counts
from gecko.core.disk import disk_errors
from gecko.core.errors import ConfigError, RunError, StorageError
from gecko.core.files import digest, file_sha256, read_json, tree_sha256, write_bytes, write_json
from gecko.core.records import Passage, Query
from gecko.run.folder import Run
from gecko.run.manifest import AHEAD, Manifest, schema_digest
from gecko.run.shards import build_file, run_local, run_stream

from ..conftest import rewrite_shards

CONFIG = RunConfig.model_validate({"budget": "1m", "generate": {"batch": 32}})
PARTS = {"inputs": "a", "settings": "b"}
ITEMS = ("ant", "bee", "cat", "dog")


def passages(item: str, counts: Counts) -> Iterator[Passage]:
    counts.tokens += len(item)
    counts.drops["short"] += item == "bee"
    for number in range(3):
        yield Passage(f"{item}{number}", item.upper(), f"the {item} of number {number}")


def forbidden(*_: object) -> list[Passage]:
    raise AssertionError("this work was done before")


def run_stage(folder: Path, work: Callable = passages, parts: dict[str, str] = PARTS) -> Manifest:
    with Run(folder, CONFIG) as run:
        return run_local(run, "ingest", Passage, parts, ITEMS, work)


def shard_bytes(folder: Path, stage: str = "ingest") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / stage).glob("part-*.parquet"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], str]:
    """What a run that nothing interrupts leaves: its shards and its identity."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    manifest = run_stage(folder)
    files = shard_bytes(folder)
    assert len(files) == len(set(files.values())) == len(ITEMS)
    return files, manifest.identity


# --- shards and manifest


def test_what_is_written_is_read(tmp_path: Path) -> None:
    manifest = run_stage(tmp_path)
    with Run(tmp_path) as run:
        rows = run.read("ingest", Passage)
        assert run.config == CONFIG
        assert run.finished("ingest") == manifest
    assert rows == [row for item in ITEMS for row in passages(item, Counts())]
    assert manifest.rows == len(rows) == 12
    assert manifest.tokens == 12
    assert manifest.drops == {"short": 1}
    assert manifest.done


def test_shards_are_the_same_bytes_in_every_run(tmp_path: Path, whole: tuple[dict[str, bytes], str]) -> None:
    manifest = run_stage(tmp_path)
    assert (shard_bytes(tmp_path), manifest.identity) == whole


def test_manifest_describes_the_files(tmp_path: Path) -> None:
    manifest = run_stage(tmp_path)
    assert [shard.file for shard in manifest.shards] == list(shard_bytes(tmp_path))
    for shard in manifest.shards:
        assert shard.sha256 == file_sha256(tmp_path / "ingest" / shard.file)


def test_identity_covers_rows_but_neither_parts_nor_seconds(tmp_path: Path) -> None:
    def other(item: str, counts: Counts) -> list[Passage]:
        return [*passages(item, counts), Passage("one", "more", "row")]

    manifest = run_stage(tmp_path / "a")
    assert run_stage(tmp_path / "b", other).identity != manifest.identity
    # Equal rows from other settings are equal: what was made of them stays paid for.
    assert run_stage(tmp_path / "c", parts={**PARTS, "inputs": "c"}).identity == manifest.identity
    before = manifest.identity
    manifest.shards[0].seconds += 100
    manifest.shards[0].tokens += 100
    assert manifest.identity == before


def test_no_shards_and_no_rows(tmp_path: Path) -> None:
    with Run(tmp_path, CONFIG) as run:
        assert run_local(run, "none", Passage, PARTS, [], forbidden).done
        assert run.read("none", Passage) == []
        assert run_local(run, "empty", Passage, PARTS, ["x"], lambda *_: []).rows == 0
        assert run.read("empty", Passage) == []


# --- reuse and archive


def test_same_fingerprint_is_used_as_it_is(tmp_path: Path) -> None:
    first = run_stage(tmp_path)
    with Run(tmp_path, CONFIG) as run:
        reordered = dict(reversed(PARTS.items()))
        assert run_local(run, "ingest", Passage, reordered, forbidden, forbidden) == first


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"inputs": "x", "settings": "b"}, "ingest: inputs changed"),
        ({"inputs": "x", "settings": "y"}, "ingest: inputs, settings changed"),
        ({"inputs": "a"}, "ingest: settings changed"),
        ({**PARTS, "version": "2"}, "ingest: version changed"),
    ],
)
def test_changed_parts_are_named_and_done_again(tmp_path: Path, parts: dict[str, str], named: str) -> None:
    said: list[str] = []
    old, done = run_stage(tmp_path), []

    def work(item: str, counts: Counts) -> list[Passage]:
        done.append(item)
        return [Passage(item, "", "new")]

    with Run(tmp_path, CONFIG, say=said.append) as run:
        new = run_local(run, "ingest", Passage, parts, ITEMS, work)
        assert [row.text for row in run.read("ingest", Passage)] == ["new"] * 4
    assert len(said) == 1
    assert said[0].startswith(named + ",")
    assert done == list(ITEMS)
    assert new.fingerprint != old.fingerprint


def test_old_output_is_archived_and_comes_back(tmp_path: Path, whole: tuple[dict[str, bytes], str]) -> None:
    first = run_stage(tmp_path)
    said: list[str] = []
    with Run(tmp_path, CONFIG, say=said.append) as run:
        second = run_local(run, "ingest", Passage, {"other": "c"}, ["x"], lambda *_: [Passage("x", "", "new")])
        assert shard_bytes(tmp_path / "archive", f"ingest-{first.fingerprint}") == whole[0]
        back = run_local(run, "ingest", Passage, PARTS, forbidden, forbidden)
        assert back == first
        assert shard_bytes(tmp_path) == whole[0]
        assert "taken back from archive/" in said[-1]
        assert (tmp_path / "archive" / f"ingest-{second.fingerprint}").is_dir()
        assert not (tmp_path / "archive" / f"ingest-{first.fingerprint}").exists()
        again = run_local(run, "ingest", Passage, {"other": "c"}, forbidden, forbidden)
        assert again == second


def test_half_done_output_is_archived_and_continued(tmp_path: Path, whole: tuple[dict[str, bytes], str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, stops_at("cat"))
    run_stage(tmp_path, parts={"other": "c"})
    done: list[str] = []
    manifest = run_stage(tmp_path, lambda item, counts: done.append(item) or passages(item, counts))
    assert done == ["cat", "dog"]
    assert (shard_bytes(tmp_path), manifest.identity) == whole


# --- resuming


def stops_at(last: str) -> Callable[[str, Counts], list[Passage]]:
    def work(item: str, counts: Counts) -> list[Passage]:
        if item == last:
            raise KeyboardInterrupt
        return list(passages(item, counts))

    return work


@pytest.mark.parametrize("last", ITEMS)
def test_an_interrupted_stage_continues_at_its_shard(
    tmp_path: Path, last: str, whole: tuple[dict[str, bytes], str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, stops_at(last))
    place = ITEMS.index(last)
    assert shard_bytes(tmp_path) == dict(list(whole[0].items())[:place])
    with Run(tmp_path) as run, pytest.raises(RunError, match="stage ingest is not finished; run: gecko ingest"):
        run.read("ingest", Passage)

    done: list[str] = []
    said: list[str] = []
    with Run(tmp_path, CONFIG, say=said.append) as run:
        work = lambda item, counts: done.append(item) or passages(item, counts)  # noqa: E731
        manifest = run_local(run, "ingest", Passage, PARTS, ITEMS, work)
    assert done == list(ITEMS[place:])
    assert said == ([f"ingest: continues at part {place + 1} of 4"] if place else [])
    assert (shard_bytes(tmp_path), manifest.identity) == whole
    assert (manifest.tokens, manifest.drops) == (12, {"short": 1})


KILLED = """
import os, sys
from pathlib import Path
from gecko.config.run import RunConfig
from gecko.core.records import Passage
from gecko.run.folder import Run
from gecko.run.shards import run_local

def work(item, counts):
    for number in range(3):
        if item == "cat" and number == 1:
            os.kill(os.getpid(), 9)
        yield Passage(f"{item}{number}", item.upper(), f"the {item} of number {number}")

with Run(Path(sys.argv[1]), RunConfig(budget="1m")) as run:
    run_local(run, "ingest", Passage, {"inputs": "a", "settings": "b"}, ("ant", "bee", "cat", "dog"), work)
"""


def test_a_killed_process_is_continued(tmp_path: Path, whole: tuple[dict[str, bytes], str]) -> None:
    folder = tmp_path / "run"
    process = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False, capture_output=True)
    assert process.returncode == -9, process.stderr.decode()
    assert shard_bytes(folder) == dict(list(whole[0].items())[:2])
    done: list[str] = []
    manifest = run_stage(folder, lambda item, counts: done.append(item) or passages(item, counts))
    assert done == ["cat", "dog"]
    assert (shard_bytes(folder), manifest.identity) == whole


class Killed(BaseException):
    """Stands in for a process that ends at this very instruction."""


@pytest.mark.parametrize("where", ["before the rename", "after the rename"])
def test_whatever_write_it_dies_at(
    tmp_path: Path, whole: tuple[dict[str, bytes], str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    rename = Path.replace
    writes = 0
    while True:
        folder = tmp_path / str(writes)
        left = writes

        def replace(self: Path, target: Path) -> Path:
            nonlocal left
            left -= 1
            if left >= 0:
                return rename(self, target)
            if where == "after the rename":
                rename(self, target)
            raise Killed

        monkeypatch.setattr(Path, "replace", replace)
        try:
            run_stage(folder)
            break
        except Killed:
            monkeypatch.setattr(Path, "replace", rename)
        manifest = run_stage(folder)
        assert (shard_bytes(folder), manifest.identity) == whole, f"died at write {writes}"
        writes += 1
    assert writes == 10  # settings, an empty manifest, and shard and manifest four times


# --- full disks


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_at_any_write(
    tmp_path: Path, whole: tuple[dict[str, bytes], str], monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    owner = os if call == "fsync" else Path
    original = getattr(owner, call)
    writes = 0
    while True:
        folder = tmp_path / str(writes)
        left = writes

        def full(*args: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(code, os.strerror(code))
            return original(*args)

        monkeypatch.setattr(owner, call, full)
        try:
            run_stage(folder)
            break
        except StorageError as error:
            monkeypatch.setattr(owner, call, original)
            assert str(folder) in str(error)
            assert os.strerror(code) in str(error)
            assert "run the same command again" in str(error)
        kept = shard_bytes(folder)
        assert kept == dict(list(whole[0].items())[: len(kept)])
        assert len(kept) == max(0, (writes - 1) // 2)
        assert not [path for path in folder.rglob(".*") if path.name != ".lock"]  # no debris takes up the room
        again = run_stage(folder)
        assert (shard_bytes(folder), again.identity) == whole
        writes += 1
    assert writes == 10


def test_a_folder_that_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}: Permission denied"):
        Run(tmp_path, CONFIG)


def test_other_disk_errors_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="I/O error") as caught:
        write_bytes(tmp_path / "file", b"data")
    assert not isinstance(caught.value, StorageError)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError):
        write_bytes(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


# --- damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped bit": (flip, "does not match its checksum"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-10]), "does not match its checksum"),
    "emptied": (lambda path: path.write_bytes(b""), "does not match its checksum"),
}
MISSING = {"missing": (lambda path: path.unlink(), "is missing")}


@pytest.mark.parametrize("kind", DAMAGE | MISSING)
@pytest.mark.parametrize("number", [0, 2])
def test_a_damaged_shard_is_named(tmp_path: Path, kind: str, number: int) -> None:
    run_stage(tmp_path)
    path = tmp_path / "ingest" / f"part-{number:05d}.parquet"
    damage, message = (DAMAGE | MISSING)[kind]
    damage(path)
    with Run(tmp_path) as run, pytest.raises(RunError) as caught:
        run.read("ingest", Passage)
    assert f"shard {path} {message}" in str(caught.value)
    assert f"gecko ingest {tmp_path} makes it again" in str(caught.value)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_not_continued_from(tmp_path: Path, kind: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, stops_at("cat"))
    path = tmp_path / "ingest" / "part-00001.parquet"
    damage, message = DAMAGE[kind]
    damage(path)
    with pytest.raises(RunError) as caught:
        run_stage(tmp_path, forbidden)
    assert f"shard {path} {message}" in str(caught.value)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("numbers", [[0], [1], [0, 2]])
@pytest.mark.parametrize("killed", [True, False])
def test_a_deleted_shard_alone_is_made_again(
    tmp_path: Path, whole: tuple[dict[str, bytes], str], finished: bool, numbers: list[int], killed: bool
) -> None:
    if finished:
        run_stage(tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            run_stage(tmp_path, stops_at(ITEMS[-1]))
    for number in numbers:
        (tmp_path / "ingest" / f"part-{number:05d}.parquet").unlink()
    if killed:
        with pytest.raises(KeyboardInterrupt):
            run_stage(tmp_path, stops_at(ITEMS[numbers[-1]]))
    made: list[str] = []
    manifest = run_stage(tmp_path, lambda item, counts: (made.append(item), passages(item, counts))[1])
    expected = numbers[-1:] if killed else numbers
    assert made == [ITEMS[number] for number in expected] + ([] if finished else [ITEMS[-1]])
    assert (shard_bytes(tmp_path), manifest.identity) == whole
    assert run_stage(tmp_path, forbidden).done
    assert not (tmp_path / "ingest" / AHEAD).exists()


def test_a_deleted_shard_of_a_stage_that_reads_in_order_is_made_again(
    tmp_path: Path, whole: tuple[dict[str, bytes], str]
) -> None:
    def run(upto: int = len(ITEMS), change: bool = False) -> Manifest:
        def batches() -> Iterator[tuple[list[Passage], Counts]]:
            for item in ITEMS[:upto]:
                counts = Counts()
                yield list(passages(item, counts))[change:], counts
            if upto < len(ITEMS):
                raise KeyboardInterrupt

        with Run(tmp_path, CONFIG) as held:
            return run_stream(held, "ingest", Passage, PARTS, batches)

    def lose() -> None:
        (tmp_path / "ingest" / "part-00001.parquet").unlink()

    with pytest.raises(KeyboardInterrupt):
        run(upto=3)
    lose()
    with pytest.raises(KeyboardInterrupt):
        run(upto=3)
    assert run().identity == whole[1]
    lose()
    with pytest.raises(RunError, match="the input of part 1 has changed"):
        run(change=True)
    assert (run().identity, shard_bytes(tmp_path)) == (whole[1], whole[0])


def test_a_stage_that_goes_on_does_not_mix_what_is_read_otherwise(tmp_path: Path) -> None:
    def run(text: str, upto: int) -> Manifest:
        def batches() -> Iterator[tuple[list[Passage], Counts]]:
            for part in range(upto):
                yield [Passage(f"p{part}", "", f"{text} {part}", "a.html")], Counts()
            if upto < 3:
                raise KeyboardInterrupt

        with Run(tmp_path, CONFIG) as held:
            return run_stream(held, "ingest", Passage, PARTS, batches)

    with pytest.raises(KeyboardInterrupt):
        run("as one version reads it", upto=2)
    with pytest.raises(RunError, match="part 1 has changed .*this version reads it otherwise; delete the folder"):
        run("as another version reads it", upto=3)
    assert run("as one version reads it", upto=3).rows == 3
    assert run("as another version reads it", upto=3).rows == 3  # a finished stage is not read anew


def test_deleting_the_stage_mends_it(tmp_path: Path, whole: tuple[dict[str, bytes], str]) -> None:
    run_stage(tmp_path)
    for path in (tmp_path / "ingest").iterdir():
        path.unlink()
    (tmp_path / "ingest" / "part-00007.parquet").write_bytes(b"debris")
    manifest = run_stage(tmp_path)
    assert (shard_bytes(tmp_path), manifest.identity) == whole


@pytest.mark.parametrize("text", ["", "{", '{"layout": 1', '{"layout": 1}', "[]", "null", "\x00\x00"])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    run_stage(tmp_path)
    path = tmp_path / "ingest" / "manifest.json"
    path.write_text(text, encoding="utf-8")
    with Run(tmp_path) as run, pytest.raises(RunError) as caught:
        run.read("ingest", Passage)
    assert f"{path} is damaged" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "\x00"])
def test_damaged_settings_are_named(tmp_path: Path, text: str) -> None:
    run_stage(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    for config in (None, CONFIG):
        with pytest.raises(RunError) as caught:
            Run(tmp_path, config)
        assert f"{tmp_path / 'config.json'} is damaged" in str(caught.value)


def test_settings_of_a_newer_version_are_named(tmp_path: Path) -> None:
    run_stage(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, "novelty": 1}), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        Run(tmp_path)
    assert f"{path}: unknown key novelty" in str(caught.value)


def test_settings_of_an_older_version(tmp_path: Path) -> None:
    """Keys that came later have their defaults; a key that is gone is named, and what can be done."""
    run_stage(tmp_path)
    path = tmp_path / "config.json"
    saved = path.read_text(encoding="utf-8")
    older = {key: value for key, value in json.loads(saved).items() if key not in ("mixture", "card")}
    del older["relabel"]["teachers"], older["generate"]["rounds"]
    path.write_text(json.dumps(older), encoding="utf-8")
    with Run(tmp_path) as run:
        assert run.config == CONFIG
        assert run_local(run, "ingest", Passage, PARTS, ITEMS, forbidden).done
    with Run(tmp_path, CONFIG):
        pass
    assert path.read_text(encoding="utf-8") == saved  # and it is written as one of this version
    older["generate"]["query_count"] = older["generate"].pop("queries")
    path.write_text(json.dumps(older), encoding="utf-8")
    for config in (None, CONFIG):
        with pytest.raises(ConfigError) as caught:
            Run(tmp_path, config)
        message = str(caught.value)
        assert f"{path}: unknown key generate.query_count" in message
        assert "made by another version of Gecko" in message and "use that version" in message
    assert json.loads(path.read_text(encoding="utf-8")) == older  # a refusal changes nothing


def test_records_of_an_older_version(tmp_path: Path) -> None:
    """A field that came later has its default; records that lack another, or have more, are refused by name."""
    run_stage(tmp_path)
    rewrite_shards(tmp_path / "ingest", lambda table: table.drop_columns(["source"]))
    with Run(tmp_path) as run:
        assert run.read("ingest", Passage) == [row for item in ITEMS for row in passages(item, Counts())]
    for change, fields in (
        (lambda table: table.drop_columns(["title"]), "id, text"),
        (lambda table: table.append_column("novelty", table["id"]), "id, text, novelty"),
    ):
        rewrite_shards(tmp_path / "ingest", change)
        with Run(tmp_path) as run, pytest.raises(RunError) as caught:
            run.read("ingest", Passage)
        message = str(caught.value)
        assert f"{tmp_path / 'ingest' / 'part-00000.parquet'} was written by another version of Gecko" in message
        assert f"it has the fields {fields}, a Passage of this version has id, title, text, source" in message
        assert "use the version that made the run" in message
        rewrite_shards(tmp_path / "ingest", lambda table: table.select(["id", "text"]))


@pytest.mark.parametrize("layout", [0, 2, None])
def test_another_layout_is_refused(tmp_path: Path, layout: int | None) -> None:
    run_stage(tmp_path)
    path = tmp_path / "ingest" / "manifest.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, "layout": layout}), encoding="utf-8")
    with pytest.raises(RunError) as caught:
        run_stage(tmp_path, forbidden)
    assert f"{path} has layout {layout}, this version reads 1" in str(caught.value)


# --- the folder


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nothing is not a run \(it has no config.json\); start one with: gecko"):
        Run(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file is a file; give the path of a folder"):
        Run(tmp_path / "file", CONFIG)


def test_a_stage_that_was_never_run(tmp_path: Path) -> None:
    with Run(tmp_path, CONFIG) as run, pytest.raises(RunError, match=f"run: gecko mine {tmp_path}"):
        run.read("mine", Passage)


def pay(folder: Path) -> None:
    """Have a teacher work for the run, after which its settings are settled."""
    with Run(folder, CONFIG) as run:
        run_local(run, "generate", Passage, PARTS, ITEMS, passages)


def test_settings_are_free_until_the_teacher_was_paid(tmp_path: Path) -> None:
    run_stage(tmp_path)
    other = CONFIG.model_copy(update={"llm": "fake", "seed": 3})
    with Run(tmp_path, other) as run:
        assert run.config == other
        assert run.changed
    with Run(tmp_path, other) as run:
        assert not run.changed


def test_other_settings_are_listed_and_need_force(tmp_path: Path) -> None:
    pay(tmp_path)
    other = CONFIG.model_copy(update={"llm": "fake", "seed": 3})
    with pytest.raises(RunError) as caught:
        Run(tmp_path, other)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert "seed: 0 -> 3" in lines
    assert "llm: 'default' -> 'fake'" in lines
    assert "--restart" in lines[-1]
    with Run(tmp_path) as run:
        assert run.config == CONFIG  # a refusal changes nothing
    with Run(tmp_path, other, force=True) as run:
        assert run.config == other
    with Run(tmp_path) as run:
        assert run.config == other


def test_a_folder_is_finished_with_the_default_that_it_was_begun_with(tmp_path: Path) -> None:
    began = load_config(None, ["generate.batch=32", "corpus.chunk_tokens=null"])
    with Run(tmp_path, began) as run:
        run_local(run, "generate", Passage, PARTS, ITEMS, passages)
    with Run(tmp_path, load_config(None, ["generate.batch=32"])) as run:  # the command of then
        assert run.config == began
        assert not run.changed
    with Run(tmp_path, load_config(None, ["generate.batch=32", "corpus.chunk_tokens=read"]), force=True) as run:
        assert run.config.corpus.chunk_tokens == "read"  # what is named is meant
    with pytest.raises(RunError, match=r"corpus\.chunk_tokens: 'read' -> None"):
        Run(tmp_path, began)
    with Run(tmp_path / "new", load_config(None, ["generate.batch=32"])) as run:
        assert run.config.corpus.chunk_tokens == "read"


HOLDS = """
import sys
from pathlib import Path
from gecko.config.run import RunConfig
from gecko.run.folder import Run

with Run(Path(sys.argv[1]), RunConfig(budget="1m")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        for config in (CONFIG, None):
            with pytest.raises(RunError, match=f"another process works in {tmp_path}"):
                Run(tmp_path, config)
    assert process.returncode == 0
    Run(tmp_path, CONFIG).__exit__()
    Run(tmp_path, CONFIG).__exit__()


def test_amounts_may_change_and_a_look_changes_nothing(tmp_path: Path) -> None:
    pay(tmp_path)
    more = CONFIG.model_copy(update={"budget": "2m"})
    with Run(tmp_path, more, keep=False) as run:
        assert run.config == more
    with Run(tmp_path) as run:
        assert run.config == CONFIG
    with Run(tmp_path, more) as run:
        assert not run.changed  # whatever --restart was given for still holds
    with Run(tmp_path) as run:
        assert run.config == more


def test_a_refused_folder_is_let_go(tmp_path: Path) -> None:
    pay(tmp_path)
    with pytest.raises(RunError, match="other settings"):
        Run(tmp_path, CONFIG.model_copy(update={"seed": 3}))
    with Run(tmp_path, CONFIG):
        pass


# --- artifacts


def test_artifact_is_made_once_and_again_when_needed(tmp_path: Path) -> None:
    made: list[str] = []

    def make(text: str) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            made.append(text)
            path.write_text(text, encoding="utf-8")

        return write

    with Run(tmp_path, CONFIG) as run:
        path = build_file(run, "plan", PARTS, "plan.json", make("one"))
        assert path == tmp_path / "plan" / "plan.json"
        identity = run.finished("plan").identity
        assert build_file(run, "plan", PARTS, "plan.json", make("two")) == path
        assert (made, path.read_text()) == (["one"], "one")
        path.unlink()
        build_file(run, "plan", PARTS, "plan.json", make("one"))
        assert (made, path.read_text()) == (["one", "one"], "one")
        assert run.finished("plan").identity == identity
        build_file(run, "plan", {"other": "c"}, "plan.json", make("two"))
        assert path.read_text() == "two"
        assert run.finished("plan").identity != identity
        build_file(run, "plan", PARTS, "plan.json", make("three"))  # taken back
        assert (made, path.read_text()) == (["one", "one", "two"], "one")


def test_artifact_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def dies(path: Path) -> None:
        path.mkdir(exist_ok=True)
        (path / "half").write_text("half")
        raise Killed

    def make(path: Path) -> None:
        path.mkdir()  # made afresh: nothing of the attempt before is left in it
        (path / "whole").write_text("whole")

    with Run(tmp_path, CONFIG) as run:
        for _ in range(2):
            with pytest.raises(Killed):
                build_file(run, "train", PARTS, "model", dies)
            assert not (tmp_path / "train" / "model").exists()
            with pytest.raises(RunError, match="not finished"):
                run.finished("train")
        final = build_file(run, "train", PARTS, "model", make)
        assert [path.name for path in final.iterdir()] == ["whole"]
        assert run.finished("train").shards[0].sha256 == tree_sha256(final)


def test_artifact_on_a_full_disk(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        path.write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    with Run(tmp_path, CONFIG) as run:
        with pytest.raises(StorageError, match=r"cannot write .*model.bin: No space left on device"):
            build_file(run, "train", PARTS, "model.bin", full)
        assert build_file(run, "train", PARTS, "model.bin", lambda path: path.touch()).exists()


# --- hashes


def test_digest_keeps_borders() -> None:
    values = [digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("abc", ""), digest("", "abc"), digest()]
    assert len(set(values)) == len(values)
    assert digest("ä") == digest("ä".encode())
    assert all(len(value) == 16 for value in values)


def test_tree_hash_covers_names_and_bytes(tmp_path: Path) -> None:
    def tree(name: str, files: dict[str, str]) -> str:
        for file, text in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tree_sha256(tmp_path / name)

    base = tree("a", {"x": "1", "d/y": "2"})
    assert tree("b", {"d/y": "2", "x": "1"}) == base
    others = [{"x": "1", "d/y": "3"}, {"x": "1", "d/z": "2"}, {"x": "1", "y": "2"}, {"x": "2", "d/y": "1"}]
    hashes = {tree(f"c{number}", files) for number, files in enumerate(others)}
    assert len(hashes) == 4
    assert base not in hashes
    assert tree_sha256(tmp_path / "a" / "x") == file_sha256(tmp_path / "a" / "x")


def test_schema_digests_differ() -> None:
    assert schema_digest(Passage) != schema_digest(Query)


def test_what_cannot_be_read_is_not_called_unwritten(tmp_path: Path) -> None:
    other = tmp_path / "models" / "weights"
    with (
        pytest.raises(StorageError, match=rf"^{other}: Permission denied; mend that"),
        disk_errors(tmp_path / "run" / "embed" / "x"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", str(other))


def test_the_name_of_a_file_that_is_not_utf_8_is_kept(tmp_path: Path) -> None:
    named = {"sources": [os.fsdecode(b"caf\xe9.jsonl"), "caf\u00e9"]}
    write_json(tmp_path / "a.json", named)
    assert read_json(tmp_path / "a.json") == named
    assert digest(named["sources"][0]) != digest(named["sources"][1])
    write_json(tmp_path / "b.json", {"a": "\u00e9"})
    assert (tmp_path / "b.json").read_text(encoding="utf-8") == '{\n "a": "\u00e9"\n}\n'


def test_a_run_by_the_text_of_its_path(tmp_path: Path) -> None:
    with Run(str(tmp_path / "run"), RunConfig(budget="1m")) as run:
        assert run.path == tmp_path / "run"
    with pytest.raises(ConfigError, match="folder 5 is a int; give a string or a path"):
        Run(5)  # type: ignore[arg-type]


def test_a_folder_that_was_paid_for_keeps_its_amount_and_a_dry_run_leaves_none(tmp_path: Path) -> None:
    said: list[str] = []

    def budget(*named: str, force: bool = False, keep: bool = True) -> str | None:
        with Run(tmp_path / "run", load_config(None, named), say=said.append, force=force, keep=keep) as run:
            return run.config.budget

    assert budget("budget=10h", keep=False) == "10h"
    assert budget() == "20m"
    assert budget("budget=2h") == "2h"
    (tmp_path / "run" / "generate").mkdir()
    (tmp_path / "run" / "generate" / "part-00000.parquet").touch()
    assert not said
    assert budget() == "2h" and "the folder's budget of 2h is kept" in said[-1]
    assert budget("budget=3h") == "3h"
    assert budget(force=True) == "20m"
