"""An index is opened whole or not at all, by any number of readers, and nothing is made in its folder by them."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest

from gecko.core.errors import RunError, StorageError
from gecko.core.records import Passage
from gecko.encoder import Embedder
from gecko.search import IndexConfig, build_index, open_index
from gecko.search import passages as database

PASSAGES = [
    Passage(f"p{n}", "", text)
    for n, text in enumerate(["a red fish", "the old house", "a small tree 港口起重机", "two big dogs", "a river"])
]


@pytest.fixture(scope="module")
def whole(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "index"
    build_index(embedder, iter(PASSAGES), folder, IndexConfig()).close()
    return folder


def flat(rows: int, dim: int) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        other = faiss.IndexFlatIP(dim)
        other.add(np.random.default_rng(0).random((rows, dim), dtype=np.float32))
        faiss.write_index(other, str(file))

    return write


def manifest(**changes: object) -> Callable[[Path], None]:
    return lambda file: file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def rows_gone(file: Path) -> None:
    with sqlite3.connect(file) as base:
        base.execute("DELETE FROM passages WHERE place > 3")


def of_another(file: Path) -> None:
    with sqlite3.connect(file) as base:
        base.execute("PRAGMA user_version = 77")


def garbage(file: Path) -> None:
    file.write_bytes(b"version 1\noid sha256:00\n" * 300)


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "faiss cut": ("index.faiss", lambda file: os.truncate(file, 90), "damaged"),
    "faiss empty": ("index.faiss", lambda file: file.write_bytes(b""), "damaged"),
    "faiss garbage": ("index.faiss", garbage, "damaged"),
    "faiss missing": ("index.faiss", Path.unlink, "damaged .it is missing"),
    "faiss with fewer": ("index.faiss", flat(3, 32), "damaged .3 vectors of 32 dimensions"),
    "faiss with more": ("index.faiss", flat(70, 32), "damaged .70 vectors"),
    "faiss of other width": ("index.faiss", flat(5, 8), "damaged .5 vectors of 8 dim"),
    "faiss of others": ("index.faiss", flat(5, 32), "not of the vectors in"),
    "vectors cut": ("vectors.f32", lambda file: os.truncate(file, 100), "damaged .100 bytes, 640 expected"),
    "vectors missing": ("vectors.f32", Path.unlink, "damaged .it is missing"),
    "passages missing": ("passages.sqlite", Path.unlink, "damaged .it is missing"),
    "passages empty": ("passages.sqlite", lambda file: file.write_bytes(b""), "damaged .no such table"),
    "passages garbage": ("passages.sqlite", garbage, "damaged .file is not a database"),
    "passages cut": ("passages.sqlite", lambda file: os.truncate(file, 8192), "damaged"),
    "passages gone": ("passages.sqlite", rows_gone, "damaged .it holds 3 passages and the words of 5"),
    "passages of another": ("passages.sqlite", of_another, "not those of the manifest"),
    "manifest empty": ("manifest.json", lambda file: file.write_text(""), "damaged"),
    "manifest a list": ("manifest.json", lambda file: file.write_text("[]"), "not the manifest of an index"),
    "manifest null": ("manifest.json", lambda file: file.write_text("null"), "not the manifest of an index"),
    "manifest missing": ("manifest.json", Path.unlink, "manifest.json is missing, and index.faiss, passages"),
    "another layout": ("manifest.json", manifest(layout=9), "another version of Gecko .layout 9, this one reads 1"),
    "no parts": ("manifest.json", manifest(parts={"model": "x"}), r"parts\.form is missing"),
    "rows in words": ("manifest.json", manifest(rows="5"), "rows is missing or of another kind"),
    "another store": ("manifest.json", manifest(store="float64"), "store is missing or of another kind"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_nothing_is_made(embedder: Embedder, whole: Path, tmp_path: Path, name: str) -> None:
    file, damage, message = DAMAGE[name]
    folder = tmp_path / "index"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns(".lock"))
    damage(folder / file)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for attempt in (
        lambda: open_index(embedder, folder),
        lambda: build_index(embedder, iter(PASSAGES), folder, IndexConfig()),
    ):
        with pytest.raises(RunError, match=message) as caught:
            attempt()
        assert str(folder) in str(caught.value)
        assert "again" in str(caught.value) or "use that version" in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("store", ["float32", "int8", "binary"])
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_graph_of_others_is_found_out(embedder: Embedder, tmp_path: Path, kind, store) -> None:
    config = IndexConfig(kind=kind, store=store)
    for name, rows in (("one", PASSAGES), ("two", [Passage(row.id, "", row.text[::-1]) for row in PASSAGES])):
        build_index(embedder, iter(rows), tmp_path / name, config).close()
        open_index(embedder, tmp_path / name).close()
    shutil.copy(tmp_path / "two" / "index.faiss", tmp_path / "one" / "index.faiss")
    with pytest.raises(RunError, match="not of the vectors in"):
        open_index(embedder, tmp_path / "one")


def test_what_is_lost_while_open_is_named(embedder: Embedder, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "index")
    with open_index(embedder, tmp_path / "index") as index:
        with sqlite3.connect(tmp_path / "index" / "passages.sqlite") as base:
            base.execute("DELETE FROM passages WHERE place = 2")
        with pytest.raises(RunError, match="passage 2 is missing"):
            index.search(["old house"], 5)


def test_a_stopped_build_without_its_passages(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, calls = IndexConfig(shard_rows=2), []
    embed = embedder.embed

    def fails(texts, **kwargs):
        calls.append(texts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return embed(texts, **kwargs)

    monkeypatch.setattr(embedder, "embed", fails)
    with pytest.raises(KeyboardInterrupt):
        build_index(embedder, iter(PASSAGES), tmp_path / "index", config)
    for name in ("passages.sqlite", "vectors.f32"):
        shutil.copytree(tmp_path / "index", tmp_path / name)
        (tmp_path / name / name).unlink()
        with pytest.raises(RunError, match=f"{name} is damaged .it is missing"):
            build_index(embedder, iter(PASSAGES), tmp_path / name, config)
        assert not (tmp_path / name / name).exists()


def test_readers_need_no_lock(embedder: Embedder, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    with build_index(embedder, iter([]), whole, IndexConfig()) as one, open_index(embedder, whole) as two:
        assert one.search(["red fish"], 1, method="bm25") == two.search(["red fish"], 1, method="bm25")


def older(folder: Path) -> None:
    """Make an index what an earlier version wrote: texts as they are in FTS5, and no word of it in the manifest."""
    with sqlite3.connect(folder / "passages.sqlite") as base:
        base.execute("DROP TABLE words")
        base.execute(
            "CREATE VIRTUAL TABLE words USING fts5(title, text, content='passages', content_rowid='place', "
            "tokenize='porter unicode61')"
        )
        base.execute("INSERT INTO words(rowid, title, text) SELECT place, title, text FROM passages")
        base.execute("PRAGMA user_version = 0")
    known = json.loads((folder / "manifest.json").read_text())
    del known["words"]
    (folder / "manifest.json").write_text(json.dumps(known))


@pytest.mark.parametrize("how", ["open", "build"])
def test_an_older_index_is_split_anew(
    embedder: Embedder, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    folder = tmp_path / "index"
    shutil.copytree(whole, folder)
    older(folder)
    with monkeypatch.context() as read_only:

        def refused(*_: object, **__: object) -> None:
            raise PermissionError(30, "Read-only file system")

        read_only.setattr("filelock.FileLock.acquire", refused)
        with pytest.raises(StorageError, match="of an earlier version of Gecko"):
            open_index(embedder, folder)
    again = open_index(embedder, folder) if how == "open" else build_index(embedder, iter([]), folder, IndexConfig())
    with again, open_index(embedder, whole) as expected:
        for query in ("起重机", "red fish", "dog"):
            assert again.search([query], method="bm25") == expected.search([query], method="bm25")
        assert [hit.passage.id for hit in again.search(["起重机"], method="bm25")[0]] == ["p2"]
    with database.Passages(folder, "rw") as kept:
        monkeypatch.setattr(database, "_WORDS", "not SQL")
        kept.cut(5)
        open_index(embedder, folder).close()  # once is enough
