import itertools
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import gecko
from gecko.core.errors import ConfigError, CorpusError, RunError
from gecko.core.records import Passage
from gecko.encoder import Embedder
from gecko.encoder.nearest import top_k
from gecko.search import BulkConfig, IndexConfig, build_index, open_index
from gecko.search import build as room
from gecko.search.index import query_words, sources_key, weighted_sum


@pytest.fixture(scope="module")
def passages(words: list[str]) -> list[Passage]:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 8)) for _ in range(300)]
    return [Passage(f"p{n}", words[n % 7], text, "here") for n, text in enumerate(texts)]


QUERIES = ["river stone bread", "thunder meadow", "violin harbour pepper saddle"]


def places(hits) -> list[list[int]]:
    return [[int(hit.passage.id[1:]) for hit in row] for row in hits]


@pytest.mark.parametrize("store", ["float32", "int8", "binary"])
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_finds_what_the_exact_search_finds(
    embedder: Embedder, passages: list[Passage], tmp_path: Path, kind, store
) -> None:
    config = IndexConfig(kind=kind, store=store, shard_rows=64)
    with build_index(embedder, iter(passages), tmp_path / "index", config) as index:
        assert (index.manifest.kind, index.manifest.store, len(index)) == (kind, store, 300)
        hits = index.search(QUERIES, 10, method="dense")
    vectors = embedder.passages(passages)
    exact, cosines = top_k(embedder.queries(QUERIES), vectors, 10)
    for row, expected, line in zip(hits, exact, cosines, strict=True):
        found = [int(hit.passage.id[1:]) for hit in row]
        assert [hit.passage for hit in row] == [passages[place] for place in found]
        assert [hit.rank for hit in row] == list(range(1, 11))
        if store == "binary":  # a random model's bits say little; what is found is scored exactly
            assert len(set(found) & set(expected.tolist())) >= 3
        else:
            assert found == expected.tolist()
            np.testing.assert_allclose([hit.score for hit in row], line, atol=1e-5)


def test_bm25_and_hybrid(embedder: Embedder, passages: list[Passage], tmp_path: Path) -> None:
    words = [*passages, Passage("p300", "a title", 'The "quick" foxes were JUMPING over it')]
    with build_index(embedder, iter(words), tmp_path / "index", IndexConfig()) as index:
        for query in ("Jump, fox!", 'the "fox" OR', "title"):
            hits = index.search([query], 5, method="bm25")[0]
            assert [hit.passage.id for hit in hits] == ["p300"]
            assert hits[0].score > 0
        assert index.search(["zzz", "!?", ""], method="bm25") == [[], [], []]
        near, both = (index.search(QUERIES, 100, method=how) for how in ("dense", "hybrid"))
        every, by_words = (index.search(QUERIES, 301, method=how) for how in ("dense", "bm25"))
        for one, two, cosines, fused in zip(near, by_words, every, both, strict=True):
            listed, words_of = {hit.passage.id for hit in [*one, *two]}, {hit.passage.id: hit.score for hit in two}
            score = {
                hit.passage.id: hit.score + 0.3 * words_of.get(hit.passage.id, 0) / max(words_of.values())
                for hit in cosines
                if hit.passage.id in listed
            }
            assert [hit.passage.id for hit in fused] == sorted(score, key=lambda key: -score[key])[:100]
            assert [hit.score for hit in fused] == pytest.approx(sorted(score.values(), reverse=True)[:100], abs=1e-5)
            assert not words_of.keys() <= {hit.passage.id for hit in one} and fused != one
        assert places(index.search(QUERIES, 5, bm25_weight=0)) == [row[:5] for row in places(near)]
        assert index.search([], 5) == []
        assert len(index.search(QUERIES[:1], 3)[0]) == 3
        with pytest.raises(ConfigError, match="k = 0"):
            index.search(QUERIES, 0)
        for weight in (-0.1, float("nan"), float("inf")):
            with pytest.raises(ConfigError, match="bm25_weight = .*: give a number from 0"):
                index.search(QUERIES, 3, bm25_weight=weight)


def test_a_stopped_build_goes_on(
    embedder: Embedder, passages: list[Passage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = IndexConfig(shard_rows=50)
    with build_index(embedder, iter(passages), tmp_path / "whole", config) as index:
        expected = [index.search(QUERIES, 10, method=how) for how in ("hybrid", "dense", "bm25")]
    write, calls = room.write_json, itertools.count()

    def killed(path: Path, value: object) -> None:
        if next(calls) == 3:  # the third shard is on disk, but not in the manifest
            raise KeyboardInterrupt
        write(path, value)

    monkeypatch.setattr(room, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        build_index(embedder, iter(passages), tmp_path / "cut", config)
    with pytest.raises(RunError, match="no finished index"):
        open_index(embedder, tmp_path / "cut")
    with pytest.raises(RunError, match="begun with other passages"):
        build_index(embedder, reversed(passages), tmp_path / "cut", config)
    embed, made = embedder.embed, []
    monkeypatch.setattr(embedder, "embed", lambda texts, **kwargs: made.append(len(texts)) or embed(texts, **kwargs))
    with build_index(embedder, iter(passages), tmp_path / "cut", config) as index:
        assert sum(made) == 200
        got = [index.search(QUERIES, 10, method=how) for how in ("hybrid", "dense", "bm25")]
    assert got == expected
    assert (tmp_path / "cut" / "vectors.f32").read_bytes() == (tmp_path / "whole" / "vectors.f32").read_bytes()


def test_a_finished_index_does_not_read_the_corpus(embedder: Embedder, passages: list[Passage], tmp_path: Path) -> None:
    build_index(embedder, iter(passages[:20]), tmp_path / "index", IndexConfig()).close()

    def never():
        raise AssertionError
        yield

    build_index(embedder, never(), tmp_path / "index", IndexConfig()).close()
    with pytest.raises(RunError, match="store auto there, int8 now"):
        build_index(embedder, never(), tmp_path / "index", IndexConfig(store="int8"))


def test_another_model_is_refused(
    embedder: Embedder, passages: list[Passage], tiny_model: Path, tmp_path: Path
) -> None:
    build_index(embedder, iter(passages[:20]), tmp_path / "index", IndexConfig()).close()
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(bytes(weights))
    with pytest.raises(RunError, match="another model"):
        open_index(gecko.load(str(other), precision="float32"), tmp_path / "index")
    with pytest.raises(RunError, match="form native there, unified now"):
        build_index(
            gecko.load(str(tiny_model), form="unified", precision="float32"),
            iter([]),
            tmp_path / "index",
            IndexConfig(),
        )


def test_what_cannot_be_built(embedder: Embedder, passages: list[Passage], tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no passage"):
        build_index(embedder, iter([]), tmp_path / "empty", IndexConfig())
    with pytest.raises(ConfigError, match="multiple of 8"):
        build_index(embedder, iter(passages), tmp_path / "bits", IndexConfig(dim=9, store="binary"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(RunError, match="holds other files"):
        build_index(embedder, iter(passages), tmp_path / "full", IndexConfig())
    build_index(embedder, iter(passages[:20]), tmp_path / "index", IndexConfig()).close()
    (tmp_path / "index" / "vectors.f32").write_bytes(b"")
    with pytest.raises(RunError, match="damaged"):
        open_index(embedder, tmp_path / "index")


def test_large_corpora_take_a_graph(
    embedder: Embedder, passages: list[Passage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "FLAT_MAX", 100)
    with build_index(embedder, iter(passages), tmp_path / "index", IndexConfig()) as index:
        assert (index.manifest.kind, index.manifest.store) == ("hnsw", "int8")


def test_pieces() -> None:
    assert query_words("THE cat, a cat_house?") == ["cat", "house"]
    assert query_words("to be or") == ["to", "be", "or"]
    assert weighted_sum({7: 0.9, 3: 0.5}, {3: 5.0}, 0.5) == [(3, 1.0), (7, 0.9)]
    assert weighted_sum({7: 0.5, 3: 0.5}, {}) == [(3, 0.5), (7, 0.5)]


def test_an_index_of_other_sources_is_refused(embedder: Embedder, passages: list[Passage], tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text("{}\n")
    two.write_text("{}\n")
    folder, key = tmp_path / "index", sources_key([str(one)])
    build_index(embedder, iter(passages[:20]), folder, IndexConfig(), sources=key).close()
    one.write_text("{}\n{}\n")
    assert sources_key([str(one)]) == key
    build_index(embedder, iter([]), folder, IndexConfig(), sources=key).close()
    with pytest.raises(RunError, match=r"of other passages.*--index"):
        build_index(embedder, iter([]), folder, IndexConfig(), sources=sources_key([str(two)]))


def test_values_that_no_index_has(embedder: Embedder, passages: list[Passage], tmp_path: Path) -> None:
    for wrong, said in (
        ({"kind": "ivf"}, "kind ivf: give one of auto, flat, hnsw"),
        ({"store": "int4"}, "store int4: give one of auto, float32, int8, binary"),
        ({"dim": 8.0}, "dim = 8.0: give a whole number"),
        ({"shard_rows": 0}, "shard_rows = 0: give at least 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            IndexConfig(**wrong)  # type: ignore[arg-type]
    for wrong, said in (
        ({"output": "uint8"}, "output uint8: give one of float32, int8, binary"),
        ({"task": "SWIMMING"}, "'SWIMMING' is not known"),
        ({"shard_rows": 2.5}, "shard_rows = 2.5: give a whole number"),
    ):
        with pytest.raises(ConfigError, match=said):
            BulkConfig(**wrong)  # type: ignore[arg-type]
    folder = str(tmp_path / "index")
    build_index(embedder, passages, folder, IndexConfig()).close()
    with open_index(embedder, folder) as index:
        with pytest.raises(ConfigError, match="method sparse: give one of hybrid, dense, bm25"):
            index.search(QUERIES, method="sparse")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="one string is given"):
            index.search("river stone bread")
        with pytest.raises(ConfigError, match="k = 2.5: give a whole number"):
            index.search(QUERIES, k=2.5)  # type: ignore[arg-type]
        series = pd.Series(QUERIES, index=[2, 0, 1])
        for method in ("dense", "bm25", "hybrid"):
            assert index.search(series, method=method) == index.search(QUERIES, method=method)
