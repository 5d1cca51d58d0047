"""What makes a generated query a poor lesson: a copy, the title given away, a near duplicate, a word on the passage itself.

All of it is measured on stored queries after the teacher was paid, and ``gecko inspect`` shows it; ``select`` drops by the
title and by the last. That is looked for when a query is written, too, since nobody needs to judge such a one.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from gecko.core.text import words

NGRAM = 3
TITLE_WORDS = 2  # a title of one word is often the only name that a thing has
OF_ITSELF = "speaks of its passage"  # why such a query is dropped

# "the study of" something is a subject, and "the text" may be any; "the study" and "this text" are what was just read.
_ITSELF = re.compile(
    r"\b(?:the|this|that)\s+(?:given\s+|present\s+|above\s+|following\s+)?(?:passage|study|article|excerpt)\b(?!\s+of\b)"
    r"|\bthis\s+(?:text|paper|document|report|abstract|section|research)\b(?!\s+of\b)"
    r"|\b(?:mentioned|discussed|described|presented|given)\s+in\s+the\s+(?:text|paper|document|report|abstract|section)\b",
    re.IGNORECASE,
)
_KIND = re.compile(r"given\s+(?:an?\s+|the\s+|some\s+)?([^,.;:]{3,60})", re.IGNORECASE)


def copied(query: str, passage: str) -> float:
    """The share of the query's words that lie in word triples which the passage has, too; 0 to 1."""
    asked, known = words(query), words(passage)
    if len(asked) < NGRAM:
        return 0.0
    triples = {tuple(known[at : at + NGRAM]) for at in range(len(known) - NGRAM + 1)}
    covered = set[int]()
    for at in range(len(asked) - NGRAM + 1):
        if tuple(asked[at : at + NGRAM]) in triples:
            covered.update(range(at, at + NGRAM))
    return len(covered) / len(asked)


def leaked(query: str, title: str) -> float:
    """The share of the title's words that the query has; 0 for a title of a single word."""
    named = set(words(title.partition("(")[0]))
    return len(named & set(words(query))) / len(named) if len(named) >= TITLE_WORDS else 0.0


def speaks_of_itself(query: str) -> bool:
    """Whether the query speaks of the text that it was written for, as in "the main topic of the passage"; in English.

    Nobody who has yet to find a passage asks so, and nearly every passage answers it.
    """
    return bool(_ITSELF.search(query))


def kind(task: str) -> str:
    """The kind of a task: ``question`` for "Given a question, find …"; ``other`` where it does not say so."""
    match = _KIND.match(task.strip())
    return " ".join(match[1].lower().split()[:4]) if match else "other"


def near_by_words(texts: Sequence[str], threshold: float) -> list[int | None]:
    """For each text the first kept one before it whose set of words has at least this Jaccard similarity; else none.

    Exact: two sets that are so similar share one of their first few words when words are ordered from rare to frequent.
    """
    sets = [frozenset(words(text)) for text in texts]
    frequency = Counter(word for found in sets for word in found)
    index: dict[str, list[int]] = {}
    result: list[int | None] = []
    for number, found in enumerate(sets):
        ordered = sorted(found, key=lambda word: (frequency[word], word))
        prefix = ordered[: len(ordered) - math.ceil(threshold * len(ordered)) + 1]
        proposed = sorted({other for word in prefix for other in index.get(word, ())})
        like = next((o for o in proposed if len(found & sets[o]) >= threshold * len(found | sets[o])), None)
        result.append(like)
        if like is None:
            for word in prefix:
                index.setdefault(word, []).append(number)
    return result
