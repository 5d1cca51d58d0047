import json
from collections.abc import Iterator

import pytest

from gecko.config import CorpusConfig
from gecko.corpus import ingest
from gecko.errors import CorpusError
from gecko.store import Counts


@pytest.fixture
def source(tmp_path):
    """Write rows as a JSONL file and give its path."""

    def make(*rows: dict, name: str = "x.jsonl") -> str:
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return str(path)

    return make


def run(*sources: str, **settings: int):
    counts = Counts()
    return list(ingest(CorpusConfig(sources=list(sources), **settings), counts)), counts


def error(*sources: str, **settings: int) -> str:
    with pytest.raises(CorpusError) as caught:
        run(*sources, **settings)
    return str(caught.value)


def test_sources_in_order(source):
    first = source({"id": "b", "text": "B"}, {"id": "a", "text": "A"}, name="1.jsonl")
    second = source({"id": "0", "text": "C"}, name="0.jsonl")
    passages, counts = run(first, second)
    assert [(passage.id, passage.source) for passage in passages] == [
        ("b", "1.jsonl"),
        ("a", "1.jsonl"),
        ("0", "0.jsonl"),
    ]
    assert not counts.drops and not counts.notes


def test_drops_are_counted_by_reason(source):
    passages, counts = run(
        source(
            {"id": "a", "title": "T", "text": "the same text"},
            {"id": "b", "text": " \n\t"},
            {"id": "c", "text": "short"},
            {"id": "d", "title": "T ", "text": " the  same\ntext "},
            {"id": "e", "title": "U", "text": "the same text"},
            {"id": "a", "title": "T", "text": "the same text"},
            {"text": "without an id"},
            {"text": "without  an id"},
        ),
        min_chars=10,
    )
    assert [passage.id for passage in passages[:2]] == ["a", "e"]
    assert len(passages) == 3
    assert counts.drops == {"empty": 1, "too short": 1, "duplicate text": 2, "duplicate id": 1}


def test_text_is_kept_but_for_outer_white_space_and_control_characters(source):
    passages, counts = run(source({"id": "a", "title": " T\x01 ", "text": "\x00 one\t two\r\n\x1b[0m  three \x0c\n"}))
    assert (passages[0].title, passages[0].text) == ("T", "one\t two\r\n[0m  three")
    assert counts.notes == {"control characters removed": 4}


def test_long_passages_are_split_and_counted(source):
    long = " ".join(f"Sentence number {n}." for n in range(60))
    passages, counts = run(source({"id": "a", "title": "T", "text": long}, {"id": "b", "text": "b"}), max_chars=400)
    assert [passage.id for passage in passages][:2] == ["a#1", "a#2"]
    assert passages[-1].id == "b"
    assert all(len(passage.text) <= 400 for passage in passages)
    assert counts.notes == {"split": 1}


def test_equal_pieces_are_kept_once(source):
    passages, counts = run(source({"id": "a", "text": "x" * 1000}), max_chars=200, chunk_chars=200)
    assert [passage.id for passage in passages] == ["a#1"]
    assert counts.drops == {"duplicate text": 4}


def test_a_long_duplicate_is_one_drop(source):
    long = " ".join(f"Sentence number {n}." for n in range(60))
    _, counts = run(source({"id": "a", "text": long}, {"id": "b", "text": long}), max_chars=400)
    assert counts.drops == {"duplicate text": 1}
    assert counts.notes == {"split": 1}


def test_an_id_with_two_texts_is_an_error(source):
    one = source({"id": "z", "text": "other"}, {"id": "a", "text": "one"}, name="1.jsonl")
    two = source({"id": "a", "text": "two"}, name="2.jsonl")
    message = error(one, two)
    assert "id 'a' names two different passages" in message
    assert f"{one}:2 and {two}:1" in message
    assert "one source at a time" in message


def test_an_id_whose_text_was_a_duplicate_is_taken(source):
    spec = source({"id": "a", "text": "same"}, {"id": "b", "text": "same"}, {"id": "b", "text": "other"})
    assert f"{spec}:2 and {spec}:3" in error(spec)


def test_a_piece_and_a_passage_of_one_id(source):
    spec = source(
        {"id": "y", "text": "y"},
        {"id": "a", "text": " ".join(f"Sentence number {n}." for n in range(60))},
        {"id": "a#2", "text": "mine"},
    )
    message = error(spec, max_chars=400)
    assert "'a#2'" in message
    assert f"{spec}:2 and {spec}:3" in message


def test_ids_stay_when_the_corpus_grows(source):
    def ids(*texts: str) -> dict[str, str]:
        return {passage.text: passage.id for passage in run(source(*({"text": text} for text in texts)))[0]}

    small = ids("one", "two")
    assert small.items() <= ids("zero", "two", "three", "one").items()


def test_no_passage(source):
    spec = source({"text": ""}, {"text": "short"})
    message = error(spec, min_chars=10)
    assert f"no passage in {spec}" in message
    assert "1 empty, 1 too short" in message
    assert "no passage in an empty list of sources" in error()


def test_reader_errors_come_through(source):
    spec = source({"text": "a"}, {"passage": "b"})
    assert f"{spec}:2: " in error(spec)


def test_skipped_files_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / ".b.txt").write_text("text")
    _, counts = run(str(tmp_path))
    assert counts.notes == {"files skipped: hidden": 1}


def test_passages_come_one_at_a_time(source):
    spec = source({"id": "a", "text": "a"}, {"broken": 1})
    stream = ingest(CorpusConfig(sources=[spec]), Counts())
    assert isinstance(stream, Iterator)
    assert next(stream).id == "a"
