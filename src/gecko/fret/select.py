"""Step 4 of FRet: the better positive ``p+ = argmax R`` and a hard negative, from scores that are already paid for.

Queries that teach little (copies of their passage, give-aways of its title, near duplicates, more of a kind of task than
is wanted) are dropped or count less, each by a setting of its own.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import assert_never

import numpy as np

from gecko.config import SelectConfig
from gecko.fret.fuse import Label, fuse
from gecko.fret.quality import OF_ITSELF, copied, kind, leaked, near_by_vectors, near_by_words, speaks_of_itself
from gecko.records import Candidate, Example, Passage, Query, Score, Text
from gecko.store import digest, drawn_by
from gecko.work import Counts

Embed = Callable[[Sequence[str], Sequence[str]], np.ndarray]

DATASET = "fret"
ROWS_FROM = "rows from "  # before a release's name, in what select counts
ROWS_ASKED = "rows that people asked"


def group_labels(
    queries: Sequence[Query], candidates: Sequence[Candidate], scores: Sequence[Score], config: SelectConfig
) -> dict[str, list[Label]]:
    """For each query that is scored in full, by every teacher that there is: its candidates in fused order."""
    by_query: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_query.setdefault(candidate.query_id, []).append(candidate)
    scored: dict[str, dict[str, dict[str, Score]]] = {}  # by teacher, query and passage
    for score in scores:
        scored.setdefault(score.teacher, {}).setdefault(score.query_id, {})[score.passage_id] = score
    tables = list(scored.values())
    labels = {}
    for query in queries:
        wanted = {candidate.passage_id for candidate in by_query.get(query.id, ())}
        if tables and wanted and all(wanted <= table.get(query.id, {}).keys() for table in tables):
            first, *others = (table[query.id] for table in tables)
            labels[query.id] = fuse(by_query[query.id], first, config.fusion, config.rrf_constant, others)
    return labels


def select(
    queries: Sequence[Query],
    labels: dict[str, list[Label]],
    passages: Mapping[str, Passage],
    config: SelectConfig,
    seed: int,
    counts: Counts,
    embed: Embed | None = None,
    ratings: Mapping[str, float] | None = None,
) -> Iterator[Example]:
    """One training row a query, in the order of ``queries``.

    A row whose positive the teacher does not find relevant (``config.min_rc``) is dropped and counted, as is a held-out
    query and one without labels; then those that fail the settings on quality; then those of a kind of task of which there
    are too many.

    Args:
        queries: all that were generated or asked.
        labels: their candidates in fused order.
        passages: the corpus by id.
        config: what is selected.
        seed: of the run.
        counts: gets drops and notes.
        embed: unit vectors of queries with these texts and tasks, for ``config.near_cosine``.
        ratings: of queries by id, for ``config.min_rating``; one that has none is kept.
    """
    rows = [
        (query, row)
        for query, row in _rows(queries, labels, passages, config, seed, counts)
        if _is_kept(query, config, seed, counts)
    ]
    flaws = _flaws([query for query, _ in rows], passages, config, embed, ratings or {})
    left = []
    for (_, row), flaw in zip(rows, flaws, strict=True):
        if flaw and config.flawed_weight == 0:
            counts.drop(flaw[0], flaw[1])
            continue
        if flaw:
            counts.notes[f"counts {config.flawed_weight:g}: {flaw[0]}"] += 1
        left.append(replace(row, weight=row.weight * config.flawed_weight) if flaw else row)
    for row in _evened(left, config, seed, counts):
        counts.notes["positive is not the seed"] += row.seed_id not in ("", row.positive.id)
        yield row


def _evened(rows: list[Example], config: SelectConfig, seed: int, counts: Counts) -> list[Example]:
    """The rows without those of a kind of task that has more than it may; which ones go is decided by their ids."""
    if config.task_rows is None or not rows:
        return rows
    kinds = [kind(row.task) for row in rows]
    most = config.task_rows if config.task_rows != "uniform" else math.ceil(len(rows) / len(set(kinds)))
    order = sorted(range(len(rows)), key=lambda place: digest(str(seed), rows[place].query_id))
    taken, kept = Counter[str](), set[int]()
    for place in order:
        taken[kinds[place]] += 1
        if taken[kinds[place]] <= most:
            kept.add(place)
    for place, row in enumerate(rows):
        if place not in kept:
            counts.drop(f"more than {most:,} of a kind of task: {kinds[place]}", row.query)
    return [row for place, row in enumerate(rows) if place in kept]


def _is_kept(query: Query, config: SelectConfig, seed: int, counts: Counts) -> bool:
    """Whether the query is in the share that is wanted of its kind of task; decided by its id, for good."""
    found = kind(query.task)
    share = config.task_shares.get(found, 1.0)
    if share < 1 and drawn_by(str(seed), query.id) >= share:
        counts.drop(f"kind of task: {found}", query.text)
        return False
    return True


def _flaws(
    queries: Sequence[Query],
    passages: Mapping[str, Passage],
    config: SelectConfig,
    embed: Embed | None,
    ratings: Mapping[str, float],
) -> list[tuple[str, str] | None]:
    """What is wrong with each query, and how that shows. A near duplicate is one of a query that nothing is wrong with.

    A query that somebody asked can be a near duplicate only.
    """
    found: list[tuple[str, str] | None] = []
    for query in queries:
        if query.asked:
            found.append(None)
            continue
        passage, rating = passages[query.seed_id], ratings.get(query.id)
        if config.min_rating is not None and rating is not None and rating < config.min_rating:
            found.append((f"rated below {config.min_rating:g}", f"{rating:+.1f}: {query.text} ← {passage.content}"))
        elif config.self_contained and speaks_of_itself(query.text):
            found.append((OF_ITSELF, f"{query.text} ← {passage.content}"))
        elif config.max_copied is not None and copied(query.text, passage.content) > config.max_copied:
            found.append(("copies its passage", f"{query.text} ← {passage.text}"))
        elif config.max_title is not None and leaked(query.text, passage.title) > config.max_title:
            found.append(("gives away the title", f"{query.text} ← {passage.title}"))
        else:
            found.append(None)

    def mark(reason: str, near: Callable[[list[Query]], list[int | None]]) -> None:
        places = [place for place, flaw in enumerate(found) if flaw is None]
        left = [queries[place] for place in places]
        for place, like in zip(places, near(left) if left else [], strict=True):
            if like is not None:
                found[place] = (reason, f"{queries[place].text} ← {left[like].text}")

    if (words := config.near_jaccard) is not None:
        mark("near duplicate by words", lambda left: near_by_words([query.text for query in left], words))
    if (cosine := config.near_cosine) is not None:
        if embed is None:
            raise ValueError("select.near_cosine needs the vectors of the queries")

        def by_meaning(left: list[Query]) -> list[int | None]:
            return near_by_vectors(embed([query.text for query in left], [query.task for query in left]), cosine)

        mark("near duplicate by meaning", by_meaning)
    return found


def _rows(
    queries: Sequence[Query],
    labels: dict[str, list[Label]],
    passages: Mapping[str, Passage],
    config: SelectConfig,
    seed: int,
    counts: Counts,
) -> Iterator[tuple[Query, Example]]:
    for query in queries:
        if query.split != "train":
            counts.drop("held out", query.text)
            continue
        ranked = labels.get(query.id)
        if not ranked:
            counts.drop("not judged in full", query.text)
            continue
        if query.asked and config.positive == "seed":
            counts.drop("no seed, since somebody asked it", query.text)
            continue
        row = make_row(query, ranked, passages, config, seed)
        rc = next(label.rc for label in ranked if label.passage_id == row.positive.id)
        if config.min_rc is not None and rc <= config.min_rc:
            text = f"{rc:+.1f}: {query.text} ← {passages[row.positive.id].content}"
            counts.drop(f"positive not relevant (RC <= {config.min_rc:g})", text)
            continue
        yield query, row


def make_row(
    query: Query, ranked: Sequence[Label], passages: Mapping[str, Passage], config: SelectConfig, seed: int
) -> Example:
    """The training row of one query, whatever its scores."""
    positive = query.seed_id if config.positive == "seed" else ranked[0].passage_id
    others = [label.passage_id for label in ranked if label.passage_id != positive]
    match config.negative:
        case "last":
            negatives = others[::-1][: config.negatives]
        case "random":
            rng = np.random.default_rng([seed, *query.id.encode()])
            left = list(others)
            # One after the other, so that more of them begin with fewer.
            negatives = [left.pop(int(rng.integers(len(left)))) for _ in range(min(config.negatives, len(others)))]
        case "none":
            negatives = []
        case _:
            assert_never(config.negative)
    return Example(
        dataset=DATASET,
        task=query.task,
        query=query.text,
        positive=_text(passages[positive]),
        negatives=tuple(_text(passages[identifier]) for identifier in negatives),
        group=positive,
        query_id=query.id,
        seed_id=query.seed_id,
        candidates=tuple(label.passage_id for label in ranked),
        fused=tuple(label.fused for label in ranked),
    )


def _text(passage: Passage) -> Text:
    return Text(passage.id, passage.title, passage.text)
