"""``gecko inspect RUN``: what the rows of a run are like, in numbers and as a page of samples for human eyes.

It reads the run folder and loads no model. The measures of ``fret/quality.py`` are shown for the generated queries,
whether or not the run selects by them, so that a threshold can be chosen by what it would drop.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gecko.fret.quality import copied, kind, leaked, near_by_words, words
from gecko.records import Candidate, Example
from gecko.report.report import render
from gecko.store import write_bytes

if TYPE_CHECKING:
    from gecko.pipeline import Pipeline

QUANTILES = (5, 25, 50, 75, 95)
KINDS = 15
NEAR = 0.8
COPIED = 0.8
TITLE = 0.9
STAGES = ("ingest", "generate", "mine", "relabel", "select")


def statistics(pipeline: "Pipeline") -> dict[str, Any]:
    """Numbers of a run whose rows are selected; shares are on 0 to 1, quantiles are the 5th, 25th, 50th, 75th and 95th.

    Raises:
        RunError: a stage up to ``select`` is not finished, or a shard is damaged.
    """
    run = pipeline.run
    queries, rows = pipeline.queries, run.read("select", Example)
    mined = run.read("mine", Candidate)
    places: list[int] = []
    for query in queries:
        order = [label.passage_id for label in pipeline.labels.get(query.id, ())]
        if query.seed_id in order:
            places.append(order.index(query.seed_id) + 1)
    first = [ranked[0].rc for ranked in pipeline.labels.values() if ranked]
    texts = [query.text for query in queries]
    seeds = [pipeline.by_id[query.seed_id] for query in queries]
    asked = len({row.query_id for row in mined})
    return {
        "passages": len(pipeline.passages),
        "queries": len(queries),
        "rows": len(rows),
        "passage_chars": _quantiles([len(passage.text) for passage in pipeline.passages]),
        "query_words": _quantiles([len(words(text)) for text in texts]),
        "kinds": dict(Counter(kind(query.task) for query in queries).most_common()),
        "tasks": len({query.task for query in queries}),
        "seeds": len({query.seed_id for query in queries}),
        "seed_retrieved": _share(asked - sum(not row.natural for row in mined), asked),
        "seed_rank": _quantiles(places),
        "p1_is_not_the_seed": _share(sum(place > 1 for place in places), len(places)),
        "rc_of_p1": _quantiles(first),
        "rc_of_p1_above_0": _share(sum(value > 0 for value in first), len(first)),
        "copies_its_passage": _share(
            sum(copied(query.text, seed.content) > COPIED for query, seed in zip(queries, seeds, strict=True)),
            len(queries),
        ),
        "gives_away_the_title": _share(
            sum(leaked(query.text, seed.title) > TITLE for query, seed in zip(queries, seeds, strict=True)),
            len(queries),
        ),
        "near_duplicate": _share(sum(like is not None for like in near_by_words(texts, NEAR)), len(queries)),
        "weight": sum(row.weight for row in rows) / len(rows) if rows else None,
        "drops": {stage: dict(run.finished(stage).drops) for stage in STAGES},
        "made_by": provenance(pipeline),
    }


def provenance(pipeline: "Pipeline") -> dict[str, str]:
    """Where every row comes from, beside its seed passage: prompts and models by hash, and the random seed."""
    made = {}
    for stage in ("generate", "mine", "relabel"):
        parts = pipeline.run.finished(stage).parts
        for name in ("teacher", "model", "prompt generate", "prompt likelihood", "prompt relevance", "seed"):
            if name in parts:
                made[f"{stage}: {name}"] = parts[name]
    return made


def _quantiles(values: Sequence[float]) -> list[float] | None:
    return [round(float(value), 2) for value in np.percentile(values, QUANTILES)] if values else None


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The statistics as (name, value) for people."""

    def quantiles(name: str) -> str:
        values = found[name]
        return "–" if values is None else "  ".join(f"{value:g}" for value in values)

    def share(name: str) -> str:
        return "–" if found[name] is None else f"{100 * found[name]:.1f} %"

    kinds = list(found["kinds"].items())
    return [
        ("passages, queries, rows", f"{found['passages']:,}, {found['queries']:,}, {found['rows']:,}"),
        ("characters of a passage (5, 25, 50, 75, 95 %)", quantiles("passage_chars")),
        ("words of a query", quantiles("query_words")),
        (
            f"kinds of task, of {found['tasks']:,} tasks",
            ", ".join(f"{name} {count:,}" for name, count in kinds[:KINDS]),
        ),
        ("passages that are a seed", f"{found['seeds']:,}"),
        ("seed among the candidates", share("seed_retrieved")),
        ("rank of the seed for the teacher", quantiles("seed_rank")),
        ("p_1 is not the seed", share("p1_is_not_the_seed")),
        ("RC log-odds of p_1", quantiles("rc_of_p1")),
        ("RC log-odds of p_1 above 0", share("rc_of_p1_above_0")),
        (f"more than {100 * COPIED:.0f} % copied from the passage", share("copies_its_passage")),
        (f"more than {100 * TITLE:.0f} % of the title's words", share("gives_away_the_title")),
        (f"near duplicates by words ({NEAR:g})", share("near_duplicate")),
        ("mean weight of a row", "–" if found["weight"] is None else f"{found['weight']:.2f}"),
        *(
            (f"{stage} dropped", ", ".join(f"{count:,} {reason}" for reason, count in drops.items()))
            for stage, drops in found["drops"].items()
            if drops
        ),
        *found["made_by"].items(),
    ]


def write_samples(pipeline: "Pipeline", found: dict[str, Any], path: Path, count: int) -> None:
    """Write the statistics and ``count`` rows, drawn at random by the run's seed, as one HTML file.

    Raises:
        RunError: as :func:`statistics`.
        StorageError: the disk refuses the file.
    """
    rows = pipeline.run.read("select", Example)
    rng = np.random.default_rng(pipeline.config.seed)
    chosen = [rows[place] for place in sorted(rng.choice(len(rows), min(count, len(rows)), replace=False))]
    samples = []
    for row in chosen:
        labels = {label.passage_id: label for label in pipeline.labels.get(row.query_id, ())}
        seed = pipeline.by_id[row.seed_id]
        roles = [("positive" if row.positive.id != seed.id else "positive, the seed", row.positive)]
        roles += [("seed", seed)] if row.positive.id != seed.id else []
        roles += [("hard negative", text) for text in row.negatives]
        samples.append(
            {
                "row": row,
                "copied": copied(row.query, seed.content),
                "passages": [(role, text, labels.get(text.id)) for role, text in roles],
            }
        )
    page = render("inspect.html.j2", {"lines": lines(found), "samples": samples, "rows": len(rows)})
    write_bytes(path, page.encode("utf-8"))
