import io
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from gecko.core.errors import CorpusError, RunError
from gecko.core.records import Passage
from gecko.encoder import Embedder
from gecko.search import BulkConfig, embed_rows, embed_to_folder, read_lines

ROWS = [Passage(str(n), "red" if n % 2 else "", "the cat " * (n % 5 + 1) + "big " * n) for n in range(23)]
CONFIG = BulkConfig(shard_rows=5)


def read(folder: Path) -> tuple[list[str], np.ndarray]:
    tables = [pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))]
    ids = [key for table in tables for key in table["id"].to_pylist()]
    return ids, np.array([row for table in tables for row in table["embedding"].to_pylist()])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_vectors_of_rows(embedder: Embedder, tmp_path: Path) -> None:
    manifest = embed_to_folder(embedder, iter(ROWS), tmp_path / "out", CONFIG)
    ids, vectors = read(tmp_path / "out")
    assert (manifest.rows, manifest.done, len(manifest.shards)) == (23, True, 5)
    assert ids == [row.id for row in ROWS]
    expected = embedder.embed([row.text for row in ROWS], title=[row.title for row in ROWS])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    streamed = np.concatenate([part for _, part in embed_rows(embedder, iter(ROWS), CONFIG)])
    np.testing.assert_allclose(streamed, expected, atol=1e-6)


def test_texts_beside_the_vectors(embedder: Embedder, tmp_path: Path) -> None:
    rows = [Passage("a", "", 'say "no"', "x.md"), Passage("b", "Über", "", "")]
    config = BulkConfig(with_text=True)
    embed_to_folder(embedder, iter(rows), tmp_path / "out", config)
    columns = pq.read_table(tmp_path / "out").to_pydict()
    np.testing.assert_allclose(
        columns.pop("embedding"), embedder.embed(['say "no"', ""], title=["", "Über"]), atol=1e-6
    )
    assert columns == {name: [getattr(row, name) for row in rows] for name in ("id", "title", "text", "source")}
    with pytest.raises(RunError, match="with_text True there, False now"):
        embed_to_folder(embedder, iter(rows), tmp_path / "out", BulkConfig())
    embed_to_folder(embedder, iter(rows), tmp_path / "plain", BulkConfig())
    assert pq.read_table(tmp_path / "plain").column_names == ["id", "embedding"]
    with pytest.raises(RunError, match="with_text False there, True now"):
        embed_to_folder(embedder, iter(rows), tmp_path / "plain", config)


@pytest.mark.parametrize(("output", "width"), [("int8", 16), ("binary", 2)])
def test_small_vectors(embedder: Embedder, tmp_path: Path, output, width: int) -> None:
    config = BulkConfig(task="CLUSTERING", dim=16, output=output, shard_rows=9)
    embed_to_folder(embedder, iter(ROWS), tmp_path / "out", config)
    _, vectors = read(tmp_path / "out")
    expected = embedder.embed([row.content for row in ROWS], task="CLUSTERING", dim=16, output=output)
    assert vectors.shape == (23, width)
    assert np.abs(vectors.astype(int) - expected.astype(int)).max() <= (1 if output == "int8" else 0)


def test_a_stopped_run_goes_on_to_the_same_bytes(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_to_folder(embedder, iter(ROWS), tmp_path / "whole", CONFIG)
    embed, calls = embedder.embed, itertools.count()

    def fails_at_the_third(*args, **kwargs):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return embed(*args, **kwargs)

    monkeypatch.setattr(embedder, "embed", fails_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        embed_to_folder(embedder, iter(ROWS), tmp_path / "cut", CONFIG)
    assert len(list((tmp_path / "cut").glob("part-*.parquet"))) == 2
    with pytest.raises(RunError, match="another input: part 1"):
        embed_to_folder(embedder, reversed(ROWS), tmp_path / "cut", CONFIG)
    with pytest.raises(RunError, match="dim None there, 8 now"):
        embed_to_folder(embedder, iter(ROWS), tmp_path / "cut", BulkConfig(shard_rows=5, dim=8))
    embed_to_folder(embedder, iter(ROWS), tmp_path / "cut", CONFIG)
    assert next(calls) == 2 + 1 + 3  # the two finished shards were not made again
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    embed_to_folder(embedder, iter(ROWS), tmp_path / "cut", CONFIG)
    assert next(calls) == 7


def test_other_folders_are_left_alone(embedder: Embedder, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"notes\.txt"):
        embed_to_folder(embedder, iter(ROWS), tmp_path, CONFIG)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    (tmp_path / "notes.txt").rename(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").write_text(json.dumps({"stage": "mine"}))
    with pytest.raises(RunError, match="not a manifest"):
        embed_to_folder(embedder, iter(ROWS), tmp_path, CONFIG)
    with pytest.raises(RunError, match="is a file"):
        embed_to_folder(embedder, iter(ROWS), tmp_path / "manifest.json", CONFIG)


def test_lines() -> None:
    lines = io.BytesIO("cat\r\n\nfünf".encode())
    assert list(read_lines(lines)) == [Passage("1", "", "cat"), Passage("2", "", ""), Passage("3", "", "fünf")]
    with pytest.raises(CorpusError, match="stdin:2: not valid UTF-8 at byte 3"):
        list(read_lines(io.BytesIO(b"cat\nab\xff\n")))


def test_readers_of_parquet_take_the_folder(embedder: Embedder, tmp_path: Path) -> None:
    import datasets
    import pandas as pd
    import pyarrow.dataset as ds

    folder = tmp_path / "out"
    embed_to_folder(embedder, iter(ROWS), folder, CONFIG)
    assert all(path.suffix == ".parquet" for path in folder.iterdir() if path.stat().st_size)
    assert pd.read_parquet(folder).shape == (23, 2)
    assert ds.dataset(folder).count_rows() == 23
    found = datasets.load_dataset("parquet", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert sorted(found["id"]) == sorted(row.id for row in ROWS)
    # Some readers take hidden files, too: the manifest adds no row to them.
    assert sum(pq.read_table(path).num_rows for path in folder.glob("*.parquet")) == 23
    assert pq.read_schema(folder / ".manifest.parquet").equals(pq.read_schema(folder / "part-00000.parquet"))


@pytest.mark.parametrize("kept", [2, 5])
def test_a_folder_of_an_earlier_version_goes_on(embedder: Embedder, tmp_path: Path, kept: int) -> None:
    embed_to_folder(embedder, iter(ROWS), tmp_path / "whole", CONFIG)
    folder = tmp_path / "older"
    folder.mkdir()
    known = json.loads(pq.read_schema(tmp_path / "whole" / ".manifest.parquet").metadata[b"gecko"])
    del known["parts"]["with_text"]
    known |= {"shards": known["shards"][:kept], "done": kept == 5}
    (folder / "manifest.json").write_text(json.dumps(known))
    for shard in known["shards"]:
        (folder / shard["file"]).write_bytes((tmp_path / "whole" / shard["file"]).read_bytes())
    with pytest.raises(RunError, match="another input: part 1"):
        embed_to_folder(embedder, reversed(ROWS), folder, CONFIG)
    embed_to_folder(embedder, iter(ROWS), folder, CONFIG)
    assert contents(folder) == contents(tmp_path / "whole")
    assert not (folder / "manifest.json").exists()


def test_a_damaged_folder_is_named(embedder: Embedder, tmp_path: Path) -> None:
    embed_to_folder(embedder, iter(ROWS), tmp_path, CONFIG)
    (tmp_path / "part-00002.parquet").unlink()
    with pytest.raises(RunError, match=r"part-00002\.parquet is missing"):
        embed_to_folder(embedder, iter(ROWS), tmp_path, CONFIG)
    (tmp_path / ".manifest.parquet").write_bytes(b"PAR")
    with pytest.raises(RunError, match=r"manifest\.parquet is damaged"):
        embed_to_folder(embedder, iter(ROWS), tmp_path, CONFIG)


def test_rows_do_not_wait_for_others(embedder: Embedder) -> None:
    taken: list[str] = []

    def rows():
        for row in ROWS[:7]:
            taken.append(row.id)
            yield row

    pauses = iter([False, True, False, False, True, True, False])
    parts = [
        ([row.id for row in batch], len(taken))
        for batch, _ in embed_rows(embedder, rows(), CONFIG, lambda: next(pauses))
    ]
    assert parts == [(["0", "1"], 2), (["2", "3", "4"], 5), (["5"], 6), (["6"], 7)]

    def breaks():
        yield from ROWS[:3]
        raise CorpusError("line 4")

    done = embed_rows(embedder, breaks(), CONFIG)
    assert [row.id for row in next(done)[0]] == ["0", "1", "2"]
    with pytest.raises(CorpusError, match="line 4"):
        next(done)
