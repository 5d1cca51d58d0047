"""The texts of test sets, which no query of the data set may repeat."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gecko.core.errors import CorpusError
from gecko.core.text import words
from gecko.fret.quality import near_by_words

NEAR = 0.8  # Jaccard similarity of the sets of words
LONGEST = 60  # words; a longer text is a document of a set, and no query
SHIPPED = ("stdlib-questions.jsonl", "probe.jsonl")
NO_TEXT = frozenset({"_id", "id", "label", "qrels", "seed"})


@dataclass(frozen=True)
class TestTexts:
    """The texts of test sets, each once, and what sets they are of."""

    names: tuple[str, ...]
    texts: tuple[str, ...]


def read_tests(folders: Sequence[Path]) -> TestTexts:
    """The shipped questions, and the short texts in all tables (JSONL, parquet) below the folders but ``corpus.*``.

    Raises:
        CorpusError: there is no table below a folder.
    """
    texts: dict[str, None] = {}
    for name in SHIPPED:
        for line in files("gecko.evaluation").joinpath("data", name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            texts |= dict.fromkeys(_strings([row.get("text"), [query["text"] for query in row.get("queries", [])]]))
    names = [name.partition(".")[0] for name in SHIPPED]
    for folder in folders:
        tables = sorted({*folder.rglob("*.jsonl"), *folder.rglob("*.parquet")})
        tables = [path for path in tables if path.name.partition(".")[0] != "corpus"]
        if not tables:
            raise CorpusError(f"--tests {folder}: no table (.jsonl, .parquet) is below it; give a folder of test sets")
        for path in tables:
            texts |= dict.fromkeys(_strings(_rows(path)))
            if path.parent.name not in names:
                names.append(path.parent.name)
    return TestTexts(tuple(names), tuple(texts))


def _rows(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        yield from pq.read_table(path).to_pylist()
        return
    with path.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if 0 < len(words(value)) <= LONGEST:
            yield value
    elif isinstance(value, dict):
        yield from _strings([entry for key, entry in value.items() if key not in NO_TEXT])
    elif value is not None and not isinstance(value, int | float | bytes):
        for entry in value:
            yield from _strings(entry)


def repeated(queries: Sequence[str], tests: TestTexts) -> list[str]:
    """For each query why it is left out: it is nearly one of a test set, or nearly an earlier query; empty: it is not."""
    asked = {word for query in queries for word in words(query)}
    texts = [text for text in tests.texts if _share({*words(text)}, asked) >= NEAR]  # no other can be near a query
    found = near_by_words([*texts, *queries], NEAR)[len(texts) :]
    return ["" if like is None else "near a test set" if like < len(texts) else "near another query" for like in found]


def _share(found: set[str], known: set[str]) -> float:
    """The share of words that are known."""
    return len(found & known) / len(found) if found else 0.0
