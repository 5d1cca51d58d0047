"""What the rows of a run are like, in numbers: printed by ``gecko inspect RUN``, and a part of the report.

It reads the run folder and loads no model. What was asked of a query (``generate.variables``) is drawn again from its id.
The measures of ``fret/quality.py`` are shown for the generated queries, whether or not the run selects by them.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from gecko.core.counts import drop_words
from gecko.core.errors import CorpusError
from gecko.core.records import Candidate, Example, Query
from gecko.core.text import words
from gecko.corpus.language import likeliest_of
from gecko.fret.quality import copied, kind, leaked, near_by_words, speaks_of_itself
from gecko.fret.variables import LANGUAGE, SAME, draw
from gecko.fret.view import ASKED, RunView

ENGLISH = "en"
QUANTILES = (5, 25, 50, 75, 95)
KINDS = 15
NEAR = 0.8
COPIED = 0.8
TITLE = 0.9
STAGES = ("ingest", ASKED, "generate", "mine", "relabel", "select")
SPREADS = {
    "passage_chars": "characters of a passage",
    "query_words": "words of a query",
    "seed_rank": "rank of the seed for the teacher",
    "rc_of_p1": "RC log-odds of p_1",
}
SHARES = {
    "seed_retrieved": "seed among the candidates",
    "p1_is_not_the_seed": "p_1 is not the seed",
    "rc_of_p1_above_0": "RC log-odds of p_1 above 0",
    "speaks_of_its_passage": "speak of the passage itself",
    "copies_its_passage": f"more than {100 * COPIED:.0f} % copied from the passage",
    "gives_away_the_title": f"more than {100 * TITLE:.0f} % of the title's words",
    "in_the_language": "written in the language that was asked for",
    "near_duplicate": f"near duplicates by words ({NEAR:g})",
}


def statistics(view: RunView) -> dict[str, Any]:
    """Numbers of a run whose rows are selected; shares are on 0 to 1, quantiles are the 5th, 25th, 50th, 75th and 95th.

    Raises RunError: a stage up to ``select`` is not finished, or a shard is damaged.
    """
    run = view.run
    stages = [stage for stage in STAGES if stage != ASKED or run.config.asked.sources]
    queries, rows = view.queries, run.read("select", Example)
    mined = run.read("mine", Candidate)
    places, first = relabelled(view)
    texts = [query.text for query in queries]
    written = [query for query in queries if not query.asked]
    seeds = [view.by_id[query.seed_id] for query in written]
    own = len({row.query_id for row in mined} & {query.id for query in written})
    return {
        "passages": len(view.passages),
        "queries": len(queries),
        "rows": len(rows),
        "passage_chars": _quantiles([len(passage.text) for passage in view.passages]),
        "query_words": _quantiles([len(words(text)) for text in texts]),
        "kinds": dict(Counter(kind(query.task) for query in queries).most_common()),
        "tasks": len({query.task for query in queries}),
        "variables": variable_counts(view, rows),
        "asked": len(queries) - len(written),
        "seeds": len({query.seed_id for query in written}),
        "seed_retrieved": _share(own - sum(not row.natural for row in mined), own),
        "seed_rank": _quantiles(places),
        "p1_is_not_the_seed": _share(sum(place > 1 for place in places), len(places)),
        "rc_of_p1": _quantiles(first),
        "rc_of_p1_above_0": _share(sum(value > 0 for value in first), len(first)),
        "speaks_of_its_passage": _share(sum(speaks_of_itself(query.text) for query in written), len(written)),
        "copies_its_passage": _share(
            sum(copied(query.text, seed.content) > COPIED for query, seed in zip(written, seeds, strict=True)),
            len(written),
        ),
        "gives_away_the_title": _share(
            sum(leaked(query.text, seed.title) > TITLE for query, seed in zip(written, seeds, strict=True)),
            len(written),
        ),
        "in_the_language": _in_the_language(view),
        "near_duplicate": _share(sum(like is not None for like in near_by_words(texts, NEAR)), len(queries)),
        "drops": {stage: dict(run.finished(stage).drops.most_common()) for stage in stages},
        "made_by": provenance(view),
    }


def relabelled(view: RunView) -> tuple[list[int], list[float]]:
    """The places (from 1) that the teacher gave the seeds of queries, and the RC of its first passages that have one."""
    places: list[int] = []
    for query in view.queries:
        order = [label.passage_id for label in view.labels.get(query.id, ())]
        if query.seed_id in order:
            places.append(order.index(query.seed_id) + 1)
    return places, [ranked[0].rc for ranked in view.labels.values() if ranked and math.isfinite(ranked[0].rc)]


def _in_the_language(view: RunView) -> float | None:
    """The share of the queries that were asked for in a language by name that are written in it, as far as can be told.

    A query is in the likeliest of those languages and English, in which a teacher writes that does not obey.
    """
    asked = {value for value in view.config.generate.variables.get(LANGUAGE, {}) if value != SAME}
    if not asked - {ENGLISH}:
        return None
    prompt, obeyed = view.prompts["generate"], []
    for query in view.run.read("generate", Query):
        if (wanted := draw(prompt, query.id)[LANGUAGE]) != SAME:
            try:
                obeyed.append(likeliest_of(asked | {ENGLISH}, query.text, "") == wanted)
            except CorpusError:
                return None  # the package that tells is not installed
    return _share(sum(obeyed), len(obeyed))


def provenance(view: RunView) -> dict[str, str]:
    """Where every row comes from, beside its seed passage: prompts and models by hash, and the random seed."""
    made = {}
    for stage in ("generate", "mine", "relabel"):
        parts = view.run.finished(stage).parts
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
    kinds = list(found["kinds"].items())
    return [
        ("passages, queries, rows", f"{found['passages']:,}, {found['queries']:,}, {found['rows']:,}"),
        ("passages that are a seed", f"{found['seeds']:,}"),
        *([("queries that people asked", f"{found['asked']:,}")] if found["asked"] else []),
        (
            f"kinds of task, of {found['tasks']:,} tasks",
            ", ".join(f"{name} {count:,}" for name, count in kinds[:KINDS]),
        ),
        *(
            (f"asked for: {name}", ", ".join(f"{value} {count['queries']:,}" for value, count in values.items()))
            for name, values in found["variables"].items()
        ),
        *(
            (f"{label} (5, 25, 50, 75, 95 %)", "  ".join(f"{value:g}" for value in values))
            for label, values in spreads(found)
        ),
        *shares(found),
        *((f"{stage} dropped", drop_words(drops)) for stage, drops in found["drops"].items() if drops),
        *found["made_by"].items(),
    ]


def spreads(found: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """The quantiles among the statistics, at ``QUANTILES`` per cent."""
    return [(label, found[name]) for name, label in SPREADS.items() if found[name] is not None]


def shares(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The shares among the statistics, in per cent."""
    return [(label, f"{100 * found[name]:.1f} %") for name, label in SHARES.items() if found[name] is not None]


def variable_counts(view: RunView, rows: Sequence[Example]) -> dict[str, dict[str, dict[str, int]]]:
    """By variable and value how many queries were asked to be so, and how many of them became a row."""
    prompt, kept = view.prompts["generate"], {row.query_id for row in rows}
    counted: dict[str, dict[str, dict[str, int]]] = {
        one.name: {value: {"queries": 0, "rows": 0} for value, _ in one.weights}
        for one in prompt.variables
        if one.weights
    }
    for query in view.run.read("generate", Query):
        for name, value in draw(prompt, query.id).items():
            counted[name][value]["queries"] += 1
            counted[name][value]["rows"] += query.id in kept
    return counted
