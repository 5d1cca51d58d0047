"""Step 3 of FRet for a teacher that can only answer: grades of pairs, or an order of a query's candidates.

- **Grades**: one request gives the grades of all queries of a passage.
- **Orders** are those of RankGPT (Sun et al. 2023): one request puts the candidates in order, or a window of them that slides
  from the last to the first by half of its width. Each query is asked twice, the second time with its candidates the other
  way round, so that a preference for what stands first cancels out: a teacher that repeats what it is shown gives all
  candidates the same mean place. The first by mean place is then asked for alone, since an order has a first even where
  nothing is relevant.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from gecko.core.counts import Counts
from gecko.core.records import Grade, Passage, Place, Query, by_query
from gecko.fret.judging import answers_hash
from gecko.fret.relabel import REFUSED
from gecko.llm.answers import Answer, Question
from gecko.llm.base import LanguageModel
from gecko.prompts import Prompt, shielded

QUERIES_A_REQUEST = 20

Pairs = Sequence[tuple[Passage, Sequence[Query]]]
Lists = Sequence[tuple[Query, Sequence[Passage]]]


def grade_questions(prompt: Prompt, passage: str, queries: Sequence[str]) -> list[Question]:
    """What is asked to have the queries of one passage graded."""
    text = shielded(prompt, passage)
    return [
        Question("grades", (text,), tuple(shielded(prompt, query) for query in queries[start:][:QUERIES_A_REQUEST]))
        for start in range(0, len(queries), QUERIES_A_REQUEST)
    ]


def grade_pairs(
    pairs: Pairs,
    teacher: LanguageModel,
    prompt: Prompt,
    counts: Counts,
    known: Mapping[tuple[str, str], Grade] | None = None,
) -> Iterator[Grade]:
    """Grade one shard; the arguments are those of :func:`gecko.fret.relabel.relabel`.

    Yields one grade a pair, but for those that have no answer, which are counted by reason.
    """
    known = known or {}
    fresh = [(passage, [one for one in queries if (one.id, passage.id) not in known]) for passage, queries in pairs]
    questions: list[Question] = []
    owners: list[tuple[Passage, Sequence[Query]]] = []
    for passage, left in fresh:
        asked = grade_questions(prompt, passage.content, [query.text for query in left])
        questions += asked
        owners += [
            (passage, left[number * QUERIES_A_REQUEST :][: question.size]) for number, question in enumerate(asked)
        ]
    found: dict[tuple[str, str], int | None] = {}
    for (passage, queries), answer in zip(owners, _asked(teacher, prompt, questions, counts, owners), strict=True):
        found |= {(query.id, passage.id): grade for query, grade in zip(queries, answer, strict=True)}
    counts.notes[REFUSED] += sum(grade is None for grade in found.values())
    used = answers_hash(prompt)
    for passage, queries in pairs:
        for query in queries:
            pair = (query.id, passage.id)
            if pair in known:
                yield known[pair]
            elif (grade := found[pair]) is not None:
                yield Grade(query.id, passage.id, teacher.identity, used, grade)


def _asked(
    teacher: LanguageModel,
    prompt: Prompt,
    questions: Sequence[Question],
    counts: Counts,
    owners: Sequence[tuple[Passage, Sequence[Query]]] | Sequence[Query],
) -> list[Answer]:
    """The answers; tokens, passages that were cut and refusals are counted."""
    usage = teacher.usage
    tokens, cut, told = usage.tokens, usage.truncated, len(usage.refusals)
    answers = teacher.answer(prompt, questions) if questions else []
    counts.tokens += usage.tokens - tokens
    counts.notes["passages read in part"] += usage.truncated - cut
    for refusal in usage.refusals[told:]:
        owner = owners[refusal.place]
        of = f"query {owner.id}" if isinstance(owner, Query) else f"passage {owner[0].id}"
        counts.drop(refusal.reason, f"{of}: {refusal.said}")
    return answers


# --- orders


def windows(count: int, width: int) -> list[tuple[int, int]]:
    """Begin and end of each window over so many candidates, the last first; one where all of them fit."""
    step, end = max(1, width // 2), count
    found = [(max(0, end - width), end)]
    while found[-1][0] > 0:
        end -= step
        found.append((max(0, end - width), end))
    return found


def _ordered(
    lists: Lists, teacher: LanguageModel, prompt: Prompt, width: int, counts: Counts
) -> list[tuple[list[int], list[int]] | None]:
    """For each list the places of its passages, best first, asked twice; none where an answer is missing."""
    orders = [list(range(len(shown))) for _, shown in lists] + [list(range(len(shown)))[::-1] for _, shown in lists]
    asked = [*lists, *lists]
    spans = [windows(len(order), width) for order in orders]
    missing: set[int] = set()
    for number in range(max(map(len, spans), default=0)):
        at_work = [
            place
            for place, some in enumerate(spans)
            if number < len(some) and place % len(lists) not in missing and len(orders[place]) > 1
        ]
        questions = [_window(prompt, *asked[place], orders[place], spans[place][number]) for place in at_work]
        owners = [asked[place][0] for place in at_work]
        for place, answer in zip(at_work, _asked(teacher, prompt, questions, counts, owners), strict=True):
            start, end = spans[place][number]
            numbers = [one for one in answer if one is not None]
            if len(numbers) < end - start:
                missing.add(place % len(lists))
                continue
            orders[place][start:end] = [orders[place][start:end][one] for one in numbers]
    count = len(lists)
    return [None if place in missing else (orders[place], orders[count + place]) for place in range(count)]


def _window(
    prompt: Prompt, query: Query, shown: Sequence[Passage], order: Sequence[int], span: tuple[int, int]
) -> Question:
    texts = tuple(shielded(prompt, shown[one].content) for one in order[span[0] : span[1]])
    return Question("order", texts, (shielded(prompt, query.text),))


def order_lists(
    lists: Lists,
    teacher: LanguageModel,
    prompt: Prompt,
    relevance: Prompt,
    width: int,
    counts: Counts,
    known: Mapping[tuple[str, str], Place] | None = None,
) -> Iterator[Place]:
    """Put the candidates of each query of one shard, the retriever's first one first, in order.

    ``relevance`` asks whether one passage is relevant; its first label, or one of a value above the middle, is yes.
    ``known`` has places by query id and passage id that were paid for before; a query is asked anew if one is missing.
    Yields one place a candidate, query by query, but for queries that have no answer, which are counted by reason.
    """
    known = known or {}

    def paid(query: Query, shown: Sequence[Passage]) -> list[Place]:
        places = [known[query.id, passage.id] for passage in shown if (query.id, passage.id) in known]
        whole = len(places) == len(shown) and {one.first for one in places} == set(range(1, len(shown) + 1))
        return places if whole else []

    fresh = [(query, shown) for query, shown in lists if not paid(query, shown)]
    found = iter(_fresh(fresh, teacher, prompt, relevance, width, counts))
    for query, shown in lists:
        yield from paid(query, shown) or next(found)


def _fresh(
    lists: Lists, teacher: LanguageModel, prompt: Prompt, relevance: Prompt, width: int, counts: Counts
) -> list[list[Place]]:
    orders = _ordered(lists, teacher, prompt, width, counts)
    firsts: dict[int, int] = {}
    for number, both in enumerate(orders):
        if both is not None:
            one, other = both
            firsts[number] = min(one, key=lambda place: (one.index(place) + other.index(place), place))
    chosen = [(lists[number][0], lists[number][1][place]) for number, place in firsts.items()]
    questions = [
        Question("label", (shielded(relevance, passage.content),), (shielded(relevance, query.text),))
        for query, passage in chosen
    ]
    answers = _asked(teacher, relevance, questions, counts, [query for query, _ in chosen])
    said = dict(zip(firsts, (answer[0] for answer in answers), strict=True))
    counts.notes[REFUSED] += sum(len(shown) for number, (_, shown) in enumerate(lists) if number not in firsts)
    used = answers_hash(prompt, relevance)
    places: list[list[Place]] = []
    for number, ((query, shown), both) in enumerate(zip(lists, orders, strict=True)):
        places.append([])
        if both is None:
            continue
        one, other = both
        for place, passage in enumerate(shown):
            is_first = place == firsts[number]
            relevant = _is_yes(relevance, said[number]) if is_first else None
            where = (one.index(place) + 1, other.index(place) + 1)
            places[-1].append(Place(query.id, passage.id, teacher.identity, used, *where, relevant))
    return places


def _is_yes(prompt: Prompt, label: int | None) -> bool | None:
    if label is None:
        return None
    if not prompt.values:
        return label == 0
    return prompt.values[label] > (min(prompt.values) + max(prompt.values)) / 2


def order_agreement(places: Sequence[Place]) -> tuple[float, int]:
    """Kendall's rank correlation of the two orders of a query, the mean over queries, and how many these are."""
    from scipy.stats import kendalltau

    found = [
        float(kendalltau([one.first for one in some], [one.second for one in some]).statistic)
        for some in by_query(places).values()
        if len(some) > 1
    ]
    return (sum(found) / len(found) if found else math.nan), len(found)
