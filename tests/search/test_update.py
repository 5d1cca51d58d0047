"""An index that grows: what an update embeds, that it equals an index built anew, and what readers see meanwhile."""

import json
import multiprocessing
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import gecko
from gecko.cli.main import app
from gecko.core.errors import ConfigError, CorpusError, RunError
from gecko.core.records import Passage
from gecko.encoder import Embedder
from gecko.search import Index, IndexConfig, build_index, open_index
from gecko.search import build as room
from gecko.search.index import default_folder, sources_key, sources_state

QUERIES = ["river stone bread", "thunder meadow", "violin harbour pepper saddle"]


@pytest.fixture(scope="module")
def passages(words: list[str]) -> list[Passage]:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 8)) for _ in range(200)]
    return [Passage(f"p{n}", words[n % 7], text, f"{'ab'[n % 2]}.md") for n, text in enumerate(texts)]


@pytest.fixture(scope="module")
def changed(passages: list[Passage]) -> list[Passage]:
    """A tenth of them: some new in the middle, some changed, some gone, one moved, one of another source alone."""
    rows = list(passages)
    for place in (3, 50, 51, 120):
        rows[place] = replace(rows[place], text=f"copper {rows[place].text}")
    rows[70] = replace(rows[70], source="c.md")
    rows.append(rows.pop(10))
    del rows[90:96]
    rows[30:30] = [Passage(f"n{n}", "new", f"lantern tunnel {n} walnut", "new.md") for n in range(9)]
    return rows


@pytest.fixture
def embedded(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passages that are embedded."""
    embed, texts = embedder.embed, []

    def noting(batch: list[str], **options: Any) -> Any:
        if options.get("title") is not None:
            texts.extend(batch)
        return embed(batch, **options)

    monkeypatch.setattr(embedder, "embed", noting)
    return texts


def rows_of(index: Index) -> list[tuple[object, ...]]:
    with sqlite3.connect(index.folder / index.manifest.files / "passages.sqlite") as base:
        return base.execute("SELECT * FROM passages ORDER BY place").fetchall()


def vectors_of(index: Index) -> np.ndarray:
    file = index.folder / index.manifest.files / "vectors.f32"
    return np.fromfile(file, np.float32).reshape(index.manifest.rows, index.manifest.dim)


def assert_same(one: Index, other: Index) -> None:
    assert rows_of(one) == rows_of(other)
    np.testing.assert_allclose(vectors_of(one), vectors_of(other), atol=1e-5)
    assert (one.manifest.texts, one.manifest.kind, one.manifest.store, one.manifest.rows) == (
        *(other.manifest.texts, other.manifest.kind, other.manifest.store, other.manifest.rows),
    )
    for method in ("dense", "bm25", "hybrid"):
        for ours, theirs in zip(
            one.search(QUERIES, 10, method=method), other.search(QUERIES, 10, method=method), strict=True
        ):
            assert [hit.passage for hit in ours] == [hit.passage for hit in theirs]
            np.testing.assert_allclose([hit.score for hit in ours], [hit.score for hit in theirs], atol=1e-5)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_an_update_equals_an_index_built_anew(
    embedder: Embedder,
    passages: list[Passage],
    changed: list[Passage],
    embedded: list[str],
    tmp_path: Path,
    kind: Any,
) -> None:
    config, folder = IndexConfig(kind=kind, shard_rows=64), tmp_path / "index"
    build_index(embedder, iter(passages), folder, config, sources="s", state="1").close()
    embedded.clear()
    with build_index(embedder, iter(changed), folder, config, sources="s", state="2") as index:
        known = {row.text for row in passages}
        assert embedded == [row.text for row in changed if row.text not in known] and len(embedded) == 13
        with build_index(embedder, iter(changed), tmp_path / "anew", config) as anew:
            assert_same(index, anew)
    assert {path.name for path in folder.iterdir()} == {".lock", "manifest.json", index.manifest.files}
    # And back: an update of an update.
    embedded.clear()
    with build_index(embedder, iter(passages), folder, config, sources="s", state="3") as index:
        assert len(embedded) == 10
        with build_index(embedder, iter(passages), tmp_path / "first", config) as first:
            assert_same(index, first)
    assert {path.name for path in folder.iterdir()} == {".lock", "manifest.json", index.manifest.files}


def test_sources_that_were_only_touched_are_read_and_nothing_is_written(
    embedder: Embedder, passages: list[Passage], embedded: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    build_index(embedder, iter(passages), folder, IndexConfig(), sources="s", state="1").close()
    embedded.clear()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix != ".json"}
    build_index(embedder, iter(passages), folder, IndexConfig(), sources="s", state="2").close()
    assert not embedded
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix != ".json"} == before

    def never() -> Iterator[Passage]:
        raise AssertionError
        yield

    build_index(embedder, never(), folder, IndexConfig(), sources="s", state="2").close()
    build_index(embedder, never(), folder, IndexConfig(), sources="s").close()


def test_a_stopped_update_embeds_nothing_twice_and_the_old_index_answers(
    embedder: Embedder,
    passages: list[Passage],
    changed: list[Passage],
    embedded: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, folder = IndexConfig(shard_rows=50), tmp_path / "index"
    build_index(embedder, iter(passages), folder, config, sources="s", state="1").close()
    embedded.clear()
    with monkeypatch.context() as patched:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(room, "build_faiss", killed)
        with pytest.raises(KeyboardInterrupt):
            build_index(embedder, iter(changed), folder, config, sources="s", state="2")
    assert len(embedded) == 13
    with open_index(embedder, folder) as index:
        assert len(index) == len(passages)
    later = [*changed, Passage("last", "", "compass orchard", "z.md")]
    embedded.clear()
    with build_index(embedder, iter(later), folder, config, sources="s", state="3") as index:
        assert embedded == ["compass orchard"]
        with build_index(embedder, iter(later), tmp_path / "anew", config) as anew:
            assert_same(index, anew)
    assert {path.name for path in folder.iterdir()} == {".lock", "manifest.json", index.manifest.files}


def test_a_first_build_that_was_stopped_goes_on_with_other_passages(
    embedder: Embedder,
    passages: list[Passage],
    changed: list[Passage],
    embedded: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, folder = IndexConfig(shard_rows=50), tmp_path / "index"

    def cut() -> Iterator[Passage]:
        yield from passages[:120]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(embedder, cut(), folder, config, sources="s", state="1")
    assert len(embedded) == 100
    embedded.clear()
    with build_index(embedder, iter(changed), folder, config, sources="s", state="2") as index:
        known = {row.text for row in passages[:100]}
        assert embedded == [row.text for row in changed if row.text not in known]
        with build_index(embedder, iter(changed), tmp_path / "anew", config) as anew:
            assert_same(index, anew)


def test_nothing_is_lost_where_an_update_fails(embedder: Embedder, passages: list[Passage], tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build_index(embedder, iter(passages), folder, IndexConfig(), sources="s", state="1").close()
    with pytest.raises(CorpusError, match="there is no passage"):
        build_index(embedder, iter([]), folder, IndexConfig(), sources="s", state="2")
    with open_index(embedder, folder) as index:
        assert len(index) == len(passages) and index.manifest.state == "1"
    (folder / "vectors.f32").write_bytes(b"")
    with pytest.raises(RunError, match=r"vectors.f32 is damaged .less than 200 vectors.*remove .*index and build"):
        build_index(embedder, iter(passages[:50]), folder, IndexConfig(), sources="s", state="2")


def test_an_index_of_an_earlier_version_is_updated(
    embedder: Embedder, passages: list[Passage], embedded: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    build_index(embedder, iter(passages), folder, IndexConfig(), sources="names and times", state="").close()
    manifest = json.loads((folder / "manifest.json").read_text())
    for key in ("state", "files"):
        del manifest[key]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    embedded.clear()
    with build_index(embedder, iter(passages[5:]), folder, IndexConfig(), sources="names", state="1") as index:
        assert len(index) == 195 and not embedded
    with pytest.raises(RunError, match="of other passages"):
        build_index(embedder, iter(passages), folder, IndexConfig(), sources="other names", state="1")


def test_a_reader_that_comes_while_files_are_swapped_looks_again(
    embedder: Embedder,
    passages: list[Passage],
    changed: list[Passage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gecko.search import index as reading

    folder = tmp_path / "index"
    build_index(embedder, iter(passages), folder, IndexConfig(), sources="s", state="1").close()
    early = open_index(embedder, folder)
    expected = early.search(QUERIES)
    stale = reading.read_manifest(folder, None)
    build_index(embedder, iter(changed), folder, IndexConfig(), sources="s", state="2").close()
    assert early.search(QUERIES) == expected  # it keeps its files
    read, looks = reading.read_manifest, [stale]
    monkeypatch.setattr(reading, "read_manifest", lambda *given: looks.pop() if looks else read(*given))
    with open_index(embedder, folder) as late:
        assert len(late) == len(changed)


def _ask(folder: Path, model: Path, answers: Any) -> None:
    with open_index(gecko.load(str(model), precision="float32"), folder) as index:
        answers.put([[hit.passage.id for hit in row] for row in index.search(QUERIES)])


@pytest.mark.slow
def test_many_processes_read_an_index_that_nobody_may_write(
    embedder: Embedder, passages: list[Passage], changed: list[Passage], tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    build_index(embedder, iter(passages), folder, IndexConfig(), sources="s", state="1").close()
    with build_index(embedder, iter(changed), folder, IndexConfig(), sources="s", state="2") as index:
        expected = [[hit.passage.id for hit in row] for row in index.search(QUERIES)]
    (folder / ".lock").unlink()
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    readers = [context.Process(target=_ask, args=(folder, tiny_model, answers)) for _ in range(3)]
    for reader in readers:
        reader.start()
    assert [answers.get(timeout=120) for _ in readers] == [expected] * 3
    for reader in readers:
        reader.join()
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)


@pytest.mark.parametrize(("kind", "store"), [("flat", "float32"), ("hnsw", "int8"), ("flat", "binary")])
def test_a_filter_leaves_what_the_whole_ranking_has_of_it(
    embedder: Embedder, passages: list[Passage], tmp_path: Path, kind: Any, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gecko.search import index as reading

    monkeypatch.setattr(reading, "ROWS", 30)
    build_index(embedder, iter(passages), tmp_path / "whole", IndexConfig(kind="flat", store="float32")).close()
    build_index(embedder, iter(passages), tmp_path / "index", IndexConfig(kind=kind, store=store)).close()
    keeps: list[tuple[dict[str, str], Callable[[Passage], bool]]] = [
        ({"source": "a.md"}, lambda row: row.source == "a.md"),
        ({"id": "p1*"}, lambda row: row.id.startswith("p1")),
        (
            {"source": "b.*", "title": passages[3].title},
            lambda row: row.source == "b.md" and row.title == passages[3].title,
        ),
        ({"id": "p?"}, lambda row: False),
        ({"id": "[p]1"}, lambda row: False),
    ]
    with open_index(embedder, tmp_path / "whole") as whole, open_index(embedder, tmp_path / "index") as index:
        for where, keep in keeps:
            assert index.matching(where) == sum(map(keep, passages))
            for method in ("dense", "bm25"):
                every = whole.search(QUERIES, len(passages), method=method)
                for ranked, found in zip(every, index.search(QUERIES, 7, method=method, where=where), strict=True):
                    left = [hit for hit in ranked if keep(hit.passage)][:7]
                    assert [hit.passage for hit in found] == [hit.passage for hit in left]
                    np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in left], atol=1e-5)
            assert all(keep(hit.passage) for row in index.search(QUERIES, where=where) for hit in row)
        with pytest.raises(ConfigError, match="no field 'author' to filter by; give one of id, title, source"):
            index.search(QUERIES, where={"author": "x"})


def gecko_search(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["search", *map(str, arguments), "--json"])
    if result.exception is not None:
        raise result.exception
    return result


def test_the_command_updates_the_index_of_the_same_sources(
    tiny_model: Path, words: list[str], embedder: Embedder, tmp_path: Path, own_cache: Path
) -> None:
    corpus = tmp_path / "docs"
    corpus.mkdir()
    for number in range(6):
        (corpus / f"{number}.md").write_text(f"# About {words[number]}\n\n{' '.join(words[number : number + 9])}\n")
    key, state = sources_key([str(corpus)]), sources_state([str(corpus)])
    first = gecko_search(tiny_model, corpus, "-q", words[3])
    assert "6 passages" in first.stderr
    (corpus / "5.md").write_text(f"# About\n\nsomething else, with {words[20]} and {words[21]}\n")
    (corpus / "0.md").unlink()
    assert sources_key([str(corpus)]) == key and sources_state([str(corpus)]) != state
    second = gecko_search(tiny_model, corpus, "-q", words[20], "--where", "source=5.md")
    assert "1 passages embedded, 4 vectors kept, 2 passages gone" in " ".join(second.stderr.split())
    assert {hit["passage"]["source"] for hit in json.loads(second.stdout)["hits"]} == {"5.md"}
    assert default_folder(embedder, key, IndexConfig()).parent == own_cache / "index"
    assert len(list((own_cache / "index").iterdir())) == 1
    os.utime(corpus / "1.md")
    assert "embedded" not in gecko_search(tiny_model, corpus, "-q", words[3]).stderr
    for given, message in (
        ("source", "--where 'source': write it as FIELD=VALUE"),
        ("author=me", "no field 'author'"),
        ("source=9.md", "--where source=9.md: no passage has that"),
    ):
        with pytest.raises(ConfigError, match=message):
            gecko_search(tiny_model, corpus, "-q", "x", "--where", given)
    shutil.rmtree(corpus)
