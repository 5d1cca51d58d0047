from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from gecko.config.load import load_config
from gecko.core.errors import ConfigError
from gecko.core.files import read_json
from gecko.core.records import Example, Passage, Text
from gecko.encoder import load_encoder
from gecko.evaluation.bm25 import Bm25, bm25_run
from gecko.run.folder import Run
from gecko.stages.lexical import TEMPERATURE, Agreement, agree, count_sentences, rank_sentences
from gecko.stages.runner import Pipeline, distill

from ..conftest import Listener, write_corpus
from .test_runner import settings


@pytest.fixture(scope="module")
def passages(words: list[str]) -> list[Passage]:
    rng = np.random.default_rng(2)
    return [
        Passage(f"p{n}", "", f"{' '.join(rng.choice(words, 7))}. {' '.join(rng.choice(words, 6))}. No.", "x")
        for n in range(90)
    ]


def test_sentences_find_other_passages_by_words_and_vectors(passages: list[Passage], tiny_model: Path) -> None:
    start = load_encoder(str(tiny_model), bf16=False)
    found = start.passages(passages)
    rows = rank_sentences(passages, found, start, Bm25(passages), 25, 0.3, seed=4)
    assert [count_sentences(passages, most) for most in (0, 25, 9000)] == [0, 25, 180]
    assert len(rows.texts) == 25 and rows.candidates.shape == rows.targets.shape == (25, 64)
    listed = bm25_run(passages, [(str(n), text) for n, text in enumerate(rows.texts)], 33)
    for n, (text, places, targets) in enumerate(zip(rows.texts, rows.candidates, rows.targets, strict=True)):
        [own] = [at for at, passage in enumerate(passages) if text in passage.text]
        assert 5 <= len(text.split()) <= 40 and own not in places and len({*places.tolist()}) == 64
        [vector] = start.queries([text])
        best = max(score for key, score in listed[str(n)].items() if key != passages[own].id)
        top = max(listed[str(n)].values())
        assert best <= top
        words = [listed[str(n)].get(passages[at].id, 0.0) / top for at in places.tolist()]
        expected = [(found[at] @ vector + 0.3 * share) / TEMPERATURE for at, share in zip(places, words, strict=True)]
        assert targets == pytest.approx(np.array(expected), abs=1e-4)
        by_words = [key for key in listed[str(n)] if key != passages[own].id][:32]
        by_vectors = [at for at in np.argsort(-(found @ vector), kind="stable")[:33].tolist() if at != own][:32]
        assert {passages[at].id for at in places.tolist()} >= {*by_words, *(passages[at].id for at in by_vectors)}
    again = rank_sentences(passages, found, start, Bm25(passages), 25, 0.3, seed=4)
    assert again.texts == rows.texts and np.array_equal(again.candidates, rows.candidates)


def test_a_small_corpus_gives_what_it_has(passages: list[Passage], tiny_model: Path) -> None:
    start = load_encoder(str(tiny_model), bf16=False)
    rows = rank_sentences(passages[:10], start.passages(passages[:10]), start, Bm25(passages[:10]), 99, 0.3, seed=0)
    assert rows.candidates.shape == (20, 9)
    short = [Passage("a", "", "Too short.", "x"), Passage("b", "", "So is this.", "x")]
    assert rank_sentences(short, start.passages(short), start, Bm25(short), 9, 0.3, seed=0).texts == []


@pytest.mark.parametrize("by", ["words", "vectors"])
def test_the_weight_is_what_agrees_with_the_teacher(passages: list[Passage], tiny_model: Path, by: str) -> None:
    start = load_encoder(str(tiny_model), bf16=False)
    found = start.passages(passages)
    queries = [" ".join(passage.text.split()[2:6]) for passage in passages[:20]]
    listed = bm25_run(passages, [(str(n), text) for n, text in enumerate(queries)], 90)
    judged = []
    for n, (text, vector) in enumerate(zip(queries, start.queries(queries), strict=True)):
        some = [(key, at) for at, key in enumerate(passage.id for passage in passages) if key in listed[str(n)]][:12]
        scores = {key: listed[str(n)][key] if by == "words" else float(found[at] @ vector) for key, at in some}
        ids = tuple(sorted(scores, key=lambda key: -scores[key]))
        fused = tuple(1 / rank for rank in range(1, len(ids) + 1))
        judged.append(Example("fret", "", text, Text("", "", ""), candidates=ids, fused=fused))
    agreement = agree(passages, found, start, judged, Bm25(passages))
    assert agreement.weight == (pytest.approx(0.4) if by == "words" else 0)
    assert (
        agreement.by_weight[0.0 if by == "vectors" else 0.8]
        > 0.9
        > agreement.by_weight[0.8 if by == "vectors" else 0.0]
    )


def test_nothing_to_agree_with_gives_no_weight(passages: list[Passage], tiny_model: Path) -> None:
    start = load_encoder(str(tiny_model), bf16=False)
    ties = Example("fret", "", "red cat", Text("", "", ""), candidates=("p0", "p1", "p2"), fused=(1.0, 1.0, 1.0))
    strange = Example("fret", "", "red cat", Text("", "", ""), candidates=("a", "b", "c"), fused=(3.0, 2.0, 1.0))
    assert agree(passages, start.passages(passages), start, [ties, strange], Bm25(passages)) == Agreement({})
    assert Agreement({}).weight == 0


def test_a_run_trains_what_the_words_have_taught(words: list[str], tiny_model: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", words)
    weights = {}
    for name, more in {
        "plain": ("lexical.sentences=0",),
        "taught": ("lexical.sentences=50", "lexical.weight=0.4"),
        "worthless": ("lexical.sentences=50", "lexical.weight=0"),
    }.items():
        with Run(tmp_path / name, settings(corpus, tiny_model, *more)) as run:
            distill(run)
            [folder] = [path for path in run.path.glob("train-*") if path.is_dir()][:1]
            weights[name] = load_file(next((folder / "model").rglob("model.safetensors")))
            assert (run.manifest("lexical") is not None) == (name != "plain")
    assert read_json(tmp_path / "taught" / "lexical" / "learned" / "choice.json") == {"agreement": {}, "weight": 0.4}
    assert not (tmp_path / "worthless" / "lexical" / "learned" / "model").exists()

    card = (tmp_path / "taught" / "model" / "README.md").read_text()
    assert "learned BM25's order (weight 0.4 beside the cosine) from at most 50 sentences" in card
    assert "BM25's order" not in (tmp_path / "worthless" / "model" / "README.md").read_text()

    def same(one: str, two: str) -> bool:
        return all((weights[one][name] == value).all() for name, value in weights[two].items())

    assert same("plain", "worthless") and not same("plain", "taught")
    heard = Listener()
    with Run(tmp_path / "taught") as run:
        Pipeline(run, heard).train()
    assert not any("sentences" in text for text in heard.said)


def test_what_excludes_it() -> None:
    for other in ("student=hf:someone/model", "train.freeze=passages", "train.backbone.projection=8"):
        with pytest.raises(ConfigError, match=r"lexical\.sentences = 10 trains the backbone against its own"):
            load_config(None, ["lexical.sentences=10", 'train.formats=["native"]', other])
