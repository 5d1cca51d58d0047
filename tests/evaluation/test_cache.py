import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from gecko.core.records import Passage
from gecko.encoder import Encoder, load_encoder, nearest
from gecko.evaluation.cache import KeptEmbeddings

TEXTS = ["red cat", "a big dog runs", "blue fish in the river"]


@pytest.fixture
def encoder(tiny_model: Path) -> Encoder:
    return load_encoder(str(tiny_model), bf16=False)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("the model was asked")


def all_sides(kept: KeptEmbeddings) -> list[np.ndarray]:
    passages = [Passage(str(place), "old house", text) for place, text in enumerate(TEXTS)]
    return [kept.queries(TEXTS, "fact checking"), kept.passages(passages), kept.symmetric(TEXTS, "search result")]


def test_the_second_time_embeds_nothing(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = all_sides(KeptEmbeddings(encoder, None))
    assert not list(tmp_path.iterdir())
    first = all_sides(KeptEmbeddings(encoder, tmp_path))
    for side in ("queries", "passages", "symmetric"):
        monkeypatch.setattr(Encoder, side, refuse)
    for one, two, three in zip(plain, first, all_sides(KeptEmbeddings(encoder, tmp_path)), strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)
    narrow = KeptEmbeddings(encoder.truncated(8), tmp_path).queries(TEXTS, "fact checking")
    assert narrow.shape == (3, 8)


def test_passages_of_two_towers_are_those_of_their_start(
    encoder: Encoder, towers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = [Passage(str(place), "old house", text) for place, text in enumerate(TEXTS)]
    two = load_encoder(str(towers), bf16=False)
    asked = KeptEmbeddings(encoder, tmp_path).queries(TEXTS)
    found = KeptEmbeddings(encoder, tmp_path).passages(passages)
    np.testing.assert_allclose(KeptEmbeddings(two, None).passages(passages), found, atol=1e-6)
    assert not np.allclose(KeptEmbeddings(two, tmp_path).queries(TEXTS), asked, atol=1e-3)
    monkeypatch.setattr(Encoder, "passages", refuse)
    np.testing.assert_array_equal(KeptEmbeddings(two, tmp_path).passages(passages), found)


def test_a_narrower_width_is_the_encoders_own(encoder: Encoder, tmp_path: Path) -> None:
    got = KeptEmbeddings(encoder.truncated(8), tmp_path).queries(TEXTS)
    np.testing.assert_allclose(got, encoder.truncated(8).queries(TEXTS), atol=1e-6)


def test_other_content_is_another_file(encoder: Encoder, tiny_model: Path, tmp_path: Path) -> None:
    kept = KeptEmbeddings(encoder, tmp_path)
    kept.queries(TEXTS, "a")
    unified = KeptEmbeddings(load_encoder(str(tiny_model), form="unified", bf16=False), tmp_path)
    for number, ask in enumerate(
        (
            lambda: kept.queries(TEXTS, "b"),
            lambda: kept.queries(TEXTS[:2], "a"),
            lambda: kept.queries(["red cata", " big dog runs", TEXTS[2]], "a"),
            lambda: kept.passages([Passage("x", "", text) for text in TEXTS]),
            lambda: unified.queries(TEXTS, "a"),
        ),
        start=2,
    ):
        ask()
        assert len(list(tmp_path.glob("*.npy"))) == number
    assert not np.allclose(unified.queries(TEXTS, "a"), kept.queries(TEXTS, "a"))


def test_the_folder_is_bounded_and_the_oldest_goes(encoder: Encoder, tmp_path: Path) -> None:
    one = 3 * encoder.dim * 4 + 128
    kept = KeptEmbeddings(encoder, tmp_path, limit=3 * one)
    for number in range(6):
        kept.queries(TEXTS, "first")  # used again and again, so it stays
        kept.queries(TEXTS, str(number))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 3 * one
    assert len(list(tmp_path.iterdir())) > 1
    KeptEmbeddings(encoder, tmp_path / "none", limit=one).queries(TEXTS)
    assert not (tmp_path / "none").exists()


def test_a_damaged_file_is_made_again(encoder: Encoder, tmp_path: Path) -> None:
    kept = KeptEmbeddings(encoder, tmp_path)
    good = kept.queries(TEXTS).copy()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:40], whole[:-9], b"x" * 200):
        file.unlink()
        file.write_bytes(damaged)
        np.testing.assert_array_equal(kept.queries(TEXTS), good)
        assert file.read_bytes() == whole


def test_the_memory_of_the_search_does_not_grow_with_the_corpus() -> None:
    generator = np.random.default_rng(0)
    queries = generator.normal(size=(2 * nearest.QUERY_BLOCK, 16)).astype(np.float32)
    peaks = []
    for rows in (4, 16):
        passages = generator.normal(size=(rows * nearest.PASSAGE_BLOCK, 16)).astype(np.float32)
        tracemalloc.start()
        try:
            nearest.top_k(queries, passages, 100)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    block = nearest.QUERY_BLOCK * nearest.PASSAGE_BLOCK
    assert block * 4 < peaks[0] < block * 64
    assert peaks[1] < 1.05 * peaks[0]
