"""What is cut where ``corpus.chunk_tokens`` is ``read``, and what is only counted."""

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gecko.config.stages import CorpusConfig
from gecko.core.counts import Counts
from gecko.core.errors import ConfigError
from gecko.core.formats import render_passage
from gecko.core.records import Passage
from gecko.corpus import Chunking, ingest, split_long
from gecko.corpus.chunk import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

READ = 46
SENTENCE = "the red cat sleeps and the big dog runs. "
# Words of the vocabulary, words in letters, unknown scripts, marks of Markdown.
MARKS = ("the cat ", "zebra ", "猫は寝る。", "\n\n# ", "\n## a b c\n\n", "- ", ". ", "é|", "\n\n", "```\n")
TEXTS = st.lists(st.sampled_from(MARKS), min_size=1).map("".join)


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> "Tokenizer":
    return load_tokenizer(str(tiny_model))


def sentences(count: int) -> str:
    """Prose that never says the same twice, so that no piece is a duplicate."""
    return "".join(
        f"the red {'abcdefghij'[n // 10 % 10] + 'qrstuvwxyz'[n % 10]} sleeps and runs. " for n in range(count)
    )


def length(passage: Passage, tokenizer: "Tokenizer") -> int:
    """The tokens of title and text in the longer of both formats."""
    return max(
        len(tokenizer.encode(render_passage(passage, form), add_special_tokens=False).ids)
        for form in ("native", "unified")
    )


def solid(text: str) -> str:
    return "".join(text.split())


@settings(deadline=None, max_examples=150)
@given(text=TEXTS, title=TEXTS, source=st.sampled_from(["x.md", "x.txt"]), read=st.integers(14, 60))
def test_every_piece_fits_with_its_title_and_no_text_is_lost(tokenizer, text, title, source, read):
    title = " ".join(title.split())
    how = Chunking(read, read, 0, tokenizer, section_titles=True, titled=True)
    whole = Passage("a", title, text, source)
    pieces = split_long(whole, how)
    assert solid("".join(piece.text for piece in pieces)) == solid(text)
    assert all(length(piece, tokenizer) <= read for piece in pieces)
    if length(whole, tokenizer) <= read:
        assert pieces == [whole]


@settings(deadline=None, max_examples=50)
@given(title=TEXTS, room=st.integers(7, 60))
def test_a_title_is_cut_no_shorter_than_it_must(tokenizer, title, room):
    how = Chunking(100, 100, 0, tokenizer, titled=True)
    cut = how.shortened(title, room)
    assert how.beside(cut) <= room
    assert title.startswith(cut.removesuffix("…"))
    if how.beside(title) <= room:
        assert cut == title


def run(tokenizer, spec: object, read: int = READ, **more: object) -> tuple[list[Passage], Counts]:
    counts = Counts()
    config = CorpusConfig(sources=[str(spec)], chunk_tokens="read", **more)
    return list(ingest(config, counts, tokenizer=tokenizer, read=read)), counts


def rows(path: Path, *values: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("long.txt", sentences(30)),  # a paragraph, far below corpus.max_chars
        ("long.md", f"# Cats\n\n{sentences(9)}\n\n## Big cats\n\n{sentences(9)}"),
        ("cjk.txt", "。".join("".join(chr(0x4E00 + 31 * n + m) for m in range(11)) for n in range(40))),
        ("page.html", f"<html><body><main><h1>Cats</h1><p>{sentences(20)}</p></main></body></html>"),
    ],
)
def test_documents_are_cut_to_what_is_read(tokenizer, tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    passages, counts = run(tokenizer, path)
    assert [passage.id for passage in passages][:2] == [f"{name}#1", f"{name}#2"]
    assert all(length(passage, tokenizer) <= READ for passage in passages)
    assert max(length(passage, tokenizer) for passage in passages) > READ // 2
    assert counts.notes["split"] == 1 and not counts.notes["read in part"]


def test_half_is_left_to_the_text_beside_a_long_title(tokenizer, tmp_path):
    (tmp_path / "x.md").write_text(f"# {'red cat ' * 30}\n\n{SENTENCE * 20}", encoding="utf-8")
    passages, _ = run(tokenizer, tmp_path)
    assert all(length(passage, tokenizer) <= READ for passage in passages)
    texts = [len(tokenizer.encode(passage.text, add_special_tokens=False).ids) for passage in passages]
    assert max(texts) > READ // 2 - 10
    assert all(passage.title.startswith("red cat red cat") and passage.title.endswith("…") for passage in passages)


def test_a_title_that_just_fits_stays(tokenizer, tmp_path):
    for words in range(1, 30):
        title = " ".join(["cat"] * words)
        path = rows(tmp_path / "x.jsonl", {"title": title, "text": "dog " * 20})
        passages, _ = run(tokenizer, path)
        whole = Passage("", title, ("dog " * 20).strip())
        assert ("#" not in passages[0].id) == (length(whole, tokenizer) <= READ)
        assert all(length(passage, tokenizer) <= READ for passage in passages)
        if words < READ // 2 - 6:
            assert {passage.title for passage in passages} == {title}


def test_rows_that_have_an_id_stay_whole_and_are_counted(tokenizer, tmp_path):
    beir = tmp_path / "beir"
    beir.mkdir()
    long = SENTENCE * 300  # more than corpus.max_chars, too
    rows(beir / "corpus.jsonl", {"_id": "a", "title": "T", "text": long}, {"_id": "b", "text": SENTENCE})
    (beir / "queries.jsonl").write_text("")
    passages, counts = run(tokenizer, beir)
    assert [(passage.id, passage.text) for passage in passages] == [("a", long.strip()), ("b", SENTENCE.strip())]
    assert counts.notes == {"read in part": 1}
    assert counts.examples["read in part"] == [f"{beir / 'corpus.jsonl'}:1: T"]
    table = tmp_path / "x.csv"
    table.write_text(f"id,text\n7,{long}\n")
    passages, counts = run(tokenizer, table)
    assert [passage.id for passage in passages] == ["7"] and counts.notes == {"read in part": 1}


def test_a_row_of_a_database_is_no_document_whatever_its_name(tokenizer, tmp_path):
    import sqlite3

    with sqlite3.connect(tmp_path / "notes.md") as database:
        database.execute("create table page (id, text)")
        database.execute("insert into page values ('k', ?)", (SENTENCE * 9,))
    passages, counts = run(tokenizer, f"sqlite:///{tmp_path / 'notes.md'}#SELECT id, text FROM page ORDER BY id")
    assert [passage.id for passage in passages] == ["k"] and counts.notes == {"read in part": 1}


def test_rows_without_an_id_are_cut(tokenizer, tmp_path):
    # The id is made before control characters are taken out.
    path = rows(
        tmp_path / "x.jsonl",
        {"text": sentences(9)},
        {"id": "", "text": "a\x0cb " + sentences(99)[-400:]},
        {"text": "cat"},
    )
    passages, counts = run(tokenizer, path)
    ids = list(dict.fromkeys(passage.id.partition("#")[0] for passage in passages))
    assert len(ids) == 3 and len(passages) > 5
    assert all(length(passage, tokenizer) <= READ for passage in passages)
    assert counts.notes == {"split": 2, "control characters removed": 1}


def test_pieces_overlap_in_tokens(tokenizer, tmp_path):
    (tmp_path / "x.txt").write_text(sentences(60).replace(".", ""))
    plain, _ = run(tokenizer, tmp_path)
    passages, _ = run(tokenizer, tmp_path, overlap=8)
    assert len(passages) > len(plain)
    assert all(length(passage, tokenizer) <= READ for passage in passages)
    for one, two in pairwise(passages):
        shared = next(size for size in range(len(two.text), -1, -1) if one.text.endswith(two.text[:size]))
        assert 1 <= len(two.text[:shared].split()) <= 8
    with pytest.raises(ConfigError, match=r"corpus\.overlap = 23 must be less than half of the 46 tokens"):
        run(tokenizer, tmp_path, overlap=23)


def test_longer_chunks_that_are_asked_for_are_counted_and_cut_as_ever(tokenizer, tmp_path):
    path = rows(tmp_path / "x.jsonl", {"id": "a", "text": SENTENCE * 30})
    config = CorpusConfig(sources=[str(path)], chunk_tokens=100)
    counts = Counts()
    passages = list(ingest(config, counts, tokenizer=tokenizer, read=READ))
    assert passages == list(ingest(config, Counts(), tokenizer=tokenizer))
    assert counts.notes == {"split": 1, "read in part": len(passages)}
    plain = CorpusConfig(sources=[str(path)])
    counts = Counts()
    assert list(ingest(plain, counts, tokenizer=tokenizer, read=READ)) == list(ingest(plain, Counts()))
    assert counts.notes == {"read in part": 1}


def test_a_clash_of_ids_is_found_in_what_is_cut(tokenizer, tmp_path):
    from gecko.core.errors import CorpusError

    (tmp_path / "x.txt").write_text(SENTENCE * 9)
    path = rows(tmp_path / "y.jsonl", {"id": "x.txt#2", "text": "mine"})
    with pytest.raises(CorpusError, match=r"'x\.txt#2' names two different passages: .*x\.txt and .*y\.jsonl:1"):
        list(
            ingest(
                CorpusConfig(sources=[str(tmp_path / "x.txt"), str(path)], chunk_tokens="read"),
                Counts(),
                tokenizer=tokenizer,
                read=READ,
            )
        )
