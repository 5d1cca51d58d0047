"""Judgements in words for a check of a teacher: asked for, and as the numbers in which they are kept.

A grade is kept as ``(0, 0, grade)``, a place as ``(first, second, relevant)``, where ``relevant`` is -1 for a passage that
was not asked for by itself. What has no answer is NaN.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from gecko.core.counts import Counts
from gecko.core.files import digest
from gecko.core.records import Grade, Passage, Place, Query
from gecko.fret.answered import grade_pairs, order_lists
from gecko.fret.judging import answers_hash
from gecko.llm.base import LanguageModel
from gecko.prompts import Prompt

Kept = tuple[float, int, float]
NO_ANSWER: Kept = (math.nan, 0, math.nan)


def pair_key(query: str, passage: Passage) -> str:
    """A pair by its texts."""
    return digest(query, passage.content)


def list_key(query: str, passage: Passage, shown: Sequence[Passage]) -> str:
    """A pair by its texts, and by the passages among which it was put in order."""
    return digest(pair_key(query, passage), *(one.content for one in shown))


def _as_query(text: str) -> Query:
    return Query(text, "", text, "", "")


def ask_grades(
    teacher: LanguageModel, prompt: Prompt, batch: Iterable[tuple[Passage, Sequence[str]]]
) -> dict[str, Kept]:
    """Grades of passages, each with its queries, by :func:`pair_key`."""
    pairs = [(passage, [_as_query(text) for text in queries]) for passage, queries in batch]
    found = {(one.query_id, one.passage_id): one.grade for one in grade_pairs(pairs, teacher, prompt, Counts())}
    return {
        pair_key(query.text, passage): (0.0, 0, float(found[query.id, passage.id]))
        if (query.id, passage.id) in found
        else NO_ANSWER
        for passage, queries in pairs
        for query in queries
    }


def ask_orders(
    teacher: LanguageModel,
    prompt: Prompt,
    relevance: Prompt,
    window: int,
    lists: Sequence[tuple[str, Sequence[Passage]]],
) -> dict[str, Kept]:
    """Places of the passages of queries, by :func:`list_key`."""
    asked = [(_as_query(text), shown) for text, shown in lists]
    places = order_lists(asked, teacher, prompt, relevance, window, Counts())
    found = {(one.query_id, one.passage_id): one for one in places}
    kept: dict[str, Kept] = {}
    for query, shown in asked:
        for passage in shown:
            place = found.get((query.id, passage.id))
            kept[list_key(query.text, passage, shown)] = _as_kept(place) if place else NO_ANSWER
    return kept


def _as_kept(place: Place) -> Kept:
    return float(place.first), place.second, -1.0 if place.relevant is None else float(place.relevant)


def as_grade(of: Mapping[str, str], kept: Kept, prompt: Prompt) -> Grade:
    """The record of a grade; ``of`` names query, passage and teacher."""
    return Grade(**of, prompt_hash=answers_hash(prompt), grade=int(kept[2]))


def as_place(of: Mapping[str, str], kept: Kept, prompt: Prompt, relevance: Prompt) -> Place:
    """The record of a place; ``of`` names query, passage and teacher."""
    relevant = None if kept[2] < 0 else bool(kept[2])
    used = answers_hash(prompt, relevance)
    return Place(**of, prompt_hash=used, first=int(kept[0]), second=kept[1], relevant=relevant)
