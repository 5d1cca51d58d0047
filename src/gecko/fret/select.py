"""Step 4 of FRet: the better positive ``p+ = argmax R`` and a hard negative, from scores that are already paid for.

Queries that teach little (they speak of their passage or give away its title, or there are more of their kind of task than
of others) are dropped, each by a setting of its own.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import assert_never

import numpy as np

from gecko.config.stages import SelectConfig
from gecko.core.counts import Counts
from gecko.core.files import digest
from gecko.core.records import Candidate, Example, Judged, Passage, Query, Text, by_query
from gecko.fret.fuse import Label, fuse, standardized
from gecko.fret.quality import OF_ITSELF, kind, leaked, speaks_of_itself

DATASET = "fret"
ROWS_FROM = "rows from "  # before a release's name, in what select counts
ROWS_ASKED = "rows that people asked"


def group_labels(
    queries: Sequence[Query], candidates: Sequence[Candidate], scores: Sequence[Judged], config: SelectConfig
) -> dict[str, list[Label]]:
    """For each query that is scored in full, by every teacher that there is: its candidates in fused order."""
    retrieved = by_query(candidates)
    scored: dict[str, dict[str, dict[str, Judged]]] = {}  # by teacher, query and passage
    for score in scores:
        scored.setdefault(score.teacher, {}).setdefault(score.query_id, {})[score.passage_id] = score
    tables = list(scored.values())
    labels = {}
    for query in queries:
        wanted = {candidate.passage_id for candidate in retrieved.get(query.id, ())}
        if tables and wanted and all(wanted <= table.get(query.id, {}).keys() for table in tables):
            first, *others = (table[query.id] for table in tables)
            labels[query.id] = fuse(retrieved[query.id], first, config.fusion, config.rrf_constant, others)
    return labels


def select(
    queries: Sequence[Query],
    labels: dict[str, list[Label]],
    passages: Mapping[str, Passage],
    config: SelectConfig,
    seed: int,
    counts: Counts,
) -> Iterator[Example]:
    """One training row a query, in the order of ``queries``.

    ``labels`` has their candidates in fused order. A row whose positive the teacher does not find relevant
    (``config.min_rc``) is dropped and counted, as is a held-out query, one without labels, and one that fails the
    settings on quality; then those of a kind of task of which there are too many.
    """
    rows = []
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
        if config.min_rc is not None and not rc > config.min_rc:  # where it is not known, too
            text = f"{rc:+.1f}: {query.text} ← {passages[row.positive.id].content}"
            counts.drop(f"positive not relevant (RC <= {config.min_rc:g})", text)
            continue
        if flaw := _flaw(query, passages, config):
            counts.drop(*flaw)
            continue
        rows.append(row)
    for row in _evened(rows, seed, counts) if config.task_rows == "uniform" else rows:
        counts.notes["positive is not the seed"] += row.seed_id not in ("", row.positive.id)
        yield row


def _evened(rows: list[Example], seed: int, counts: Counts) -> list[Example]:
    """As many rows of each kind of task as there are of a kind on average; which ones go is decided by their ids."""
    kinds = [kind(row.task) for row in rows]
    most = math.ceil(len(rows) / max(1, len(set(kinds))))
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


def _flaw(query: Query, passages: Mapping[str, Passage], config: SelectConfig) -> tuple[str, str] | None:
    """What is wrong with a query, and how that shows; nothing is with one that somebody asked."""
    if query.asked:
        return None
    passage = passages[query.seed_id]
    if config.self_contained and speaks_of_itself(query.text):
        return OF_ITSELF, f"{query.text} ← {passage.content}"
    if config.max_title is not None and leaked(query.text, passage.title) > config.max_title:
        return "gives away the title", f"{query.text} ← {passage.title}"
    return None


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
    chosen = [passages[identifier] for identifier in (positive, *negatives)]
    texts = [Text(passage.id, passage.title, passage.text) for passage in chosen]
    return Example(
        dataset=DATASET,
        task=query.task,
        query=query.text,
        positive=texts[0],
        negatives=tuple(texts[1:]),
        group=positive,
        query_id=query.id,
        seed_id=query.seed_id,
        candidates=tuple(label.passage_id for label in ranked),
        fused=tuple(standardized(ranked) if config.targets == "standardized" else (label.fused for label in ranked)),
    )
