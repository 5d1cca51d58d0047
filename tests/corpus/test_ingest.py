import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest

from gecko.config.stages import CorpusConfig
from gecko.core.counts import Counts
from gecko.core.errors import CorpusError
from gecko.corpus import ingest, ingest_shards


@pytest.fixture
def source(tmp_path):
    """Write rows as a JSONL file and give its path."""

    def make(*rows: dict, name: str = "x.jsonl") -> str:
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return str(path)

    return make


def run(*sources: str, **settings: object):
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


# --- near duplicates, languages, pieces with titles, shards


def sentence(number: int) -> str:
    return " ".join(f"word{(number * 7 + step * step) % 211}" for step in range(60))


def test_near_duplicates_are_found_and_named(source):
    rows = [{"id": f"p{number}", "text": sentence(number)} for number in range(40)]
    near = {"id": "near", "text": sentence(3).replace("word", "word", 1) + " one more"}
    passages, counts = run(source(*rows, near, {"id": "short", "text": "two words"}), near_duplicates=0.8)
    assert [passage.id for passage in passages] == [*(row["id"] for row in rows), "short"]
    assert counts.drops == {"near duplicate": 1}
    assert "like p3: " in counts.examples["near duplicate"][0]
    passages, _ = run(source(*rows, near))
    assert len(passages) == 41


def test_near_duplicates_of_a_script_without_spaces(source):
    one = "".join(chr(0x4E00 + (7 * step * step) % 997) for step in range(60))
    other = "".join(chr(0x4E00 + (11 * step * step + 5) % 991) for step in range(60))
    rows = [{"id": "a", "text": one}, {"id": "b", "text": other}, {"id": "c", "text": one[:-2] + other[:2]}]
    passages, counts = run(source(*rows), near_duplicates=0.8)
    assert [passage.id for passage in passages] == ["a", "b"]
    assert counts.drops == {"near duplicate": 1}


def test_minhash_agrees_with_jaccard():
    from gecko.corpus.duplicates import Seen

    words = [f"w{number}" for number in range(400)]

    def triples(text: list[str]) -> set[tuple[str, ...]]:
        return {tuple(text[at : at + 3]) for at in range(len(text) - 2)}

    for cut in (4, 12, 40):
        other = words[cut:] + [f"x{number}" for number in range(cut)]
        one, two = triples(words), triples(other)
        exact = len(one & two) / len(one | two)
        seen = Seen(0.5)
        assert seen.near("a", " ".join(words)) is None
        found = seen.near("b", " ".join(other))
        seen.close()
        assert found is not None and found[0] == "a"
        assert abs(found[1] - exact) < 0.12


def test_other_languages_are_dropped(source):
    spec = source(
        {"id": "en", "text": "The weather in the mountains changes quickly, so take a warm coat with you."},
        {"id": "de", "text": "Das Wetter in den Bergen ändert sich schnell, also nimm einen warmen Mantel mit."},
        {"id": "fr", "text": "Le temps change vite en montagne, alors prenez un manteau chaud avec vous."},
    )
    passages, counts = run(spec, languages=["en", "de"])
    assert [passage.id for passage in passages] == ["en", "de"]
    assert counts.drops == {"language fr": 1}
    assert counts.examples == {
        "language fr": [f"{spec}:3: Le temps change vite en montagne, alors prenez un manteau chaud avec vous."]
    }


def test_few_examples_of_many_drops(source):
    _, counts = run(source({"text": "kept, being long"}, *({"text": f"n{number}"} for number in range(9))), min_chars=5)
    assert counts.drops == {"too short": 9}
    assert len(counts.examples["too short"]) == 3


def test_pieces_are_titled_by_their_headings(tmp_path):
    body = "A line of text that fills the section. " * 8
    parts = ["# Manual", body, "## Cleaning", body, "```\n# no heading\n```", "### Filters", body, "## Repair", body]
    text = "\n\n".join(parts)
    (tmp_path / "x.md").write_text(text)
    passages, _ = run(str(tmp_path), max_chars=400, chunk_chars=400)
    assert list(dict.fromkeys(passage.title for passage in passages)) == [
        "Manual",
        "Manual › Cleaning",
        "Manual › Cleaning › Filters",
        "Manual › Repair",
    ]
    plain, _ = run(str(tmp_path), max_chars=400, chunk_chars=400, section_titles=False)
    assert {passage.title for passage in plain} == {"Manual"}


def test_pieces_overlap(source):
    long = " ".join(f"Sentence number {n}." for n in range(60))
    spec = source({"id": "a", "text": long})
    plain, _ = run(spec, max_chars=400, chunk_chars=200)
    passages, _ = run(spec, max_chars=400, chunk_chars=200, overlap=60)
    assert len(passages) > len(plain)
    for one, two in pairwise(passages):
        shared = next(size for size in range(len(two.text), -1, -1) if one.text.endswith(two.text[:size]))
        assert 20 <= shared <= 60
        assert len(two.text) <= 200


def test_pieces_are_counted_in_tokens(source, tiny_model):
    from gecko.corpus.chunk import load_tokenizer

    tokenizer = load_tokenizer(str(tiny_model))
    long = "the red cat sleeps and the big dog runs. " * 40
    spec = source({"id": "a", "text": long}, {"id": "b", "text": "the cat sleeps"})
    config = CorpusConfig(sources=[spec], chunk_tokens=32, max_chars=10_000)
    passages = list(ingest(config, Counts(), tokenizer=tokenizer))
    counts = [len(tokenizer.encode(passage.text, add_special_tokens=False).ids) for passage in passages]
    assert passages[-1].id == "b" and len(passages) > 3
    assert max(counts) <= 32
    assert max(counts) > 20


def test_shards_hold_the_passages_and_move_little_when_the_corpus_grows(source):
    rows = [{"id": f"p{number}", "text": f"passage {number}"} for number in range(1000)]
    config = CorpusConfig(sources=[source(*rows)], shard_passages=40)
    shards = list(ingest_shards(config))
    assert [passage for shard, _ in shards for passage in shard] == list(ingest(config, Counts()))
    assert all(40 <= len(shard) <= 80 for shard, _ in shards[:-1])
    assert len(shards) > 10
    grown = [*rows[:300], {"id": "new", "text": "a new one"}, *rows[300:]]
    config = CorpusConfig(sources=[source(*grown, name="grown.jsonl")], shard_passages=40)

    def texts(found) -> list[tuple[str, ...]]:
        return [tuple(passage.text for passage in shard) for shard, _ in found]

    changed = set(texts(ingest_shards(config))) - set(texts(shards))
    assert 1 <= len(changed) <= 3


def test_counts_are_those_of_their_shard(source):
    rows = [{"id": f"p{number}", "text": f"passage {number}"} for number in range(100)]
    spec = source(rows[0], {"text": ""}, *rows[1:], {"text": ""}, {"text": " "})
    shards = list(ingest_shards(CorpusConfig(sources=[spec], shard_passages=10)))
    assert shards[0][1].drops == {"empty": 1} and shards[-1][1].drops == {"empty": 2}
    assert sum((counts.drops for _, counts in shards), Counter()) == {"empty": 3}
