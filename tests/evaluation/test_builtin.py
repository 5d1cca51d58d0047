"""The test data that ships with the package is what its description says."""

import json
import re
from importlib.resources import files

import snowballstemmer

from gecko.evaluation.builtin import data_hash, probe, stdlib_questions
from gecko.prompts import load_prompt

STOPWORDS = frozenset(
    [
        "a",
        "about",
        "after",
        "again",
        "all",
        "also",
        "am",
        "an",
        "and",
        "another",
        "any",
        "are",
        "as",
        "at",
        "be",
        "been",
        "before",
        "being",
        "between",
        "both",
        "but",
        "by",
        "can",
        "could",
        "did",
        "do",
        "does",
        "doing",
        "done",
        "don",
        "down",
        "during",
        "each",
        "else",
        "ever",
        "every",
        "few",
        "for",
        "from",
        "get",
        "gets",
        "getting",
        "give",
        "given",
        "go",
        "had",
        "has",
        "have",
        "having",
        "here",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "itself",
        "just",
        "let",
        "like",
        "make",
        "makes",
        "making",
        "me",
        "more",
        "most",
        "much",
        "must",
        "my",
        "myself",
        "need",
        "no",
        "nor",
        "not",
        "now",
        "of",
        "off",
        "on",
        "once",
        "one",
        "only",
        "or",
        "other",
        "our",
        "out",
        "over",
        "own",
        "python",
        "s",
        "same",
        "should",
        "so",
        "some",
        "somehow",
        "someone",
        "something",
        "still",
        "such",
        "t",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "thing",
        "things",
        "this",
        "those",
        "through",
        "to",
        "too",
        "under",
        "until",
        "up",
        "us",
        "use",
        "used",
        "using",
        "very",
        "via",
        "was",
        "way",
        "ways",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "whose",
        "why",
        "will",
        "with",
        "within",
        "without",
        "would",
        "you",
        "your",
        "want",
    ]
)


def content_stems(text: str) -> set[str]:
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", text)
    spaced = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1 \2", spaced)
    kept = {word for word in re.findall(r"[a-z]+", spaced.lower()) if word not in STOPWORDS and len(word) > 1}
    return set(snowballstemmer.stemmer("english").stemWords(sorted(kept)))


def rows(name: str) -> list[dict]:
    with files("gecko.evaluation").joinpath("data", name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_questions_are_many_and_judged() -> None:
    data = stdlib_questions()
    assert len(data.queries) >= 400
    assert len({text for _, text in data.queries}) == len(data.queries)
    known = {passage.id for passage in data.passages}
    for grades in data.qrels.values():
        assert set(grades) <= known
        assert set(grades.values()) <= {1, 2}
        assert 2 in grades.values()
    assert data.unknown_queries <= 0.05 * len(data.queries)  # another Python lacks some passages, not many


def test_half_of_the_questions_share_no_content_word_with_their_title() -> None:
    titles = {passage.id: passage.title for passage in stdlib_questions().passages}
    asked = [row for row in rows("stdlib-questions.jsonl") if row["seed"] in titles]
    apart = sum(not content_stems(row["text"]) & content_stems(titles[row["seed"]]) for row in asked)
    assert apart >= len(asked) / 2


def test_the_probe_is_complete_and_apart_from_prompts_and_questions() -> None:
    topics = probe()
    assert sum(len(topic.queries) for topic in topics) >= 60
    assert all(len(topic.passages) == 20 for topic in topics)
    for topic in topics:
        ids = {passage.id for passage in topic.passages}
        for identifier, _ in topic.queries:
            assert set(topic.qrels[identifier]) <= ids
            assert 2 in topic.qrels[identifier].values()
    texts = {text for topic in topics for _, text in topic.queries}
    shown = {example["query"] for name in ("generate", "query_likelihood") for example in load_prompt(name).examples}
    assert len(texts) == sum(len(topic.queries) for topic in topics)
    assert not texts & shown
    assert not texts & {row["text"] for row in rows("stdlib-questions.jsonl")}


def test_the_hash_follows_the_file() -> None:
    assert data_hash("probe.jsonl") == data_hash("probe.jsonl") != data_hash("stdlib-questions.jsonl")
