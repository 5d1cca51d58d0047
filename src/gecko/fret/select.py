"""Step 4 of FRet: the better positive ``p+ = argmax R`` and a hard negative, from scores that are already paid for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import assert_never

import numpy as np

from gecko.config import SelectConfig
from gecko.fret.fuse import Label, fuse
from gecko.records import Candidate, Example, Passage, Query, Score, Text
from gecko.store import Counts

DATASET = "fret"
ROWS_FROM = "rows from "  # before a release's name, in what select counts


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
        if tables and all(query.id in table for table in tables):
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
) -> Iterator[Example]:
    """One training row a query, in the order of ``queries``.

    A row whose positive the teacher does not find relevant (``config.min_rc``) is dropped and counted, as is a held-out
    query and one without labels.
    """
    for query in queries:
        if query.split != "train":
            counts.drops["held out"] += 1
            continue
        ranked = labels.get(query.id)
        if not ranked:
            counts.drops["beyond the budget"] += 1
            continue
        row = make_row(query, ranked, passages, config, seed)
        rc = next(label.rc for label in ranked if label.passage_id == row.positive.id)
        if config.min_rc is not None and rc <= config.min_rc:
            counts.drops[f"positive not relevant (RC <= {config.min_rc:g})"] += 1
            continue
        counts.notes["positive is not the seed"] += row.positive.id != query.seed_id
        yield row


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
