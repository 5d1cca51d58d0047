"""``report.html``: what a run did and what came of it, in one file that needs nothing else.

It is made from the run folder alone, so no model is loaded, and equal runs give equal bytes but for the seconds. The page
forbids itself scripts and outside resources; ``text.py`` sees to it that foreign text on it is text.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gecko.core.files import read_json, write_bytes
from gecko.core.records import Candidate, Example, Passage, Query
from gecko.fret.fuse import Label
from gecko.fret.quality import copied
from gecko.fret.variables import draw
from gecko.fret.view import RunView, asked_queries
from gecko.report import plots
from gecko.report.closing import SIZES, closing_lines, summary
from gecko.report.inspect import KINDS, QUANTILES, relabelled, shares, spreads, statistics
from gecko.report.table import (
    AGREEMENT,
    AGREEMENT_ASKED,
    ResultRow,
    agreement_rows,
    asked_rows,
    origins,
    result_rows,
    word,
)
from gecko.report.text import render
from gecko.run.folder import Run
from gecko.run.manifest import Manifest

EXAMPLES = 50
TASKS = 15
EXCERPT = 300
PLOT = "_plot"  # what a plot's name ends with in the page's content


@dataclass(frozen=True)
class History:
    """What the stages of a run have done.

    Attributes:
        made: the manifests that exist, by folder, in the order of the work.
        of_records: the folders that hold records.
        of_teacher: the folders that the teacher's time was spent on.
        stale: in words, which stages were made from what has been made anew since.
    """

    made: dict[str, Manifest]
    of_records: Sequence[str]
    of_teacher: Sequence[str]
    stale: Sequence[str]


@dataclass(frozen=True)
class Shown:
    """A passage of an example: what it is there, and its places. Ranks are missing for a passage that was not scored."""

    role: str
    passage: Passage
    label: "Label | None"


def write_report(view: RunView, history: History, path: Path, figures: Path | None = None) -> None:
    """Write the report of a run whose rows are selected; what is not measured yet is left out.

    ``figures`` is a folder for the plots, an SVG file each. Raises RunError: a stage up to ``select`` is not finished, or
    a file is damaged. StorageError: the disk refuses a file.
    """
    content = _content(view, history)
    write_bytes(path, render("report.html.j2", content).encode("utf-8"))
    if figures is None:
        return
    for name, plot in (content | content["labels"]).items():
        if name.endswith(PLOT) and plot is not None:
            alone = plots.standalone(str(plot["svg"]))
            write_bytes(figures / f"{name.removesuffix(PLOT)}.svg", alone.encode("utf-8"))


def _content(view: RunView, history: History) -> dict[str, Any]:
    run, config, stages = view.run, view.config, history.made
    rows = run.read("select", Example)
    result = _file(run, "evaluate", "results.json")
    seconds = sum(stages[stage].seconds for stage in history.of_teacher if stage in stages)
    own, released = origins(stages["select"])
    sets = result["sets"].items() if result else ()
    widths = (plots.widths(name, entry.get("widths", []), result["form"]) for name, entry in sets)
    found, tasks = statistics(view), Counter(row.task for row in rows)
    return {
        "config": config,
        "passages": len(view.passages),
        "rows": len(rows),
        "result": result,
        "closing": closing_lines(summary(result, own, seconds, released, asked_rows(stages["select"])))
        if result
        else [],
        "own": own,
        "released": released,
        "sets": _sets(result) if result else [],
        "agreement": _agreement(result) if result else [],
        "gain_plot": _placed(plots.gains(result_rows(result))) if result else None,
        "width_plot": _placed(next(filter(None, widths), None)),  # of the first set that was measured in several
        "growth_plot": _placed(_growth_plot(run, result)) if result else None,
        "check": _check(run, stages),
        "stages": stages,
        "record_stages": history.of_records,
        "stale": history.stale,
        "loss_plot": _placed(plots.losses(_losses(run, stages, config.train.formats))),
        "time_plot": _placed(plots.times({stage: manifest.seconds for stage, manifest in stages.items()})),
        "labels": _labels(view, rows),
        "tasks": {
            "different": len(tasks),
            "first": sorted(tasks.items(), key=lambda item: (-item[1], item[0]))[:TASKS],
        },
        "found": found,
        "spreads": spreads(found),
        "quantiles": QUANTILES,
        "shares": shares(found),
        "kinds": list(found["kinds"].items())[:KINDS],
        "examples": _examples(view, rows),
        "seconds": seconds,
        "cost": [(size, seconds / own * size) for size in SIZES] if own else [],
        "excerpt": EXCERPT,
        "heldout": len(view.heldout),
    }


def _placed(plot: plots.Plot | None) -> dict[str, Any] | None:
    from markupsafe import Markup

    if plot is None:
        return None
    return {"caption": plot.caption, "alt": plot.alt, "svg": Markup(plot.svg)}  # noqa: S704 - made by plots.py


def _file(run: Run, stage: str, name: str) -> Any:
    """A stage's JSON file, or none while the stage is not finished."""
    manifest, path = run.manifest(stage), run.path / stage / name
    return read_json(path) if manifest is not None and manifest.done and path.exists() else None


# --- results


def _sets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each test set with its table rows and what its folder lacks."""
    rows = result_rows(result)
    return [
        {
            "name": name,
            "queries": entry["queries"],
            "passages": entry.get("passages"),
            "unknown_documents": entry.get("unknown_documents", 0),
            "unknown_queries": entry.get("unknown_queries", 0),
            "trained_on": entry.get("trained_on", 0),
            "rows": [row for row in rows if row.name == name],
        }
        for name, entry in result["sets"].items()
    ]


def _agreement(result: dict[str, Any]) -> list[tuple[str, list[ResultRow]]]:
    """Tables of agreement with the teacher: a caption and rows."""
    of = {AGREEMENT: "held-out queries", AGREEMENT_ASKED: "of them that people asked"}
    rows = agreement_rows(result)
    tables = [(words, [row for row in rows if row.name == name]) for name, words in of.items()]
    return [(f"{table[0].queries:,} {words}", table) for words, table in tables if table]


def _growth_plot(run: Run, result: dict[str, Any]) -> plots.Plot | None:
    """Of the first set that was measured with several numbers of rows and the same recipe."""
    earlier = (folder / "results.json" for folder, manifest in run.archived("evaluate") if manifest.done)
    results = [result, *(read_json(path) for path in earlier if path.exists())]
    same = [one for one in results if "recipe" in result and one.get("recipe") == result["recipe"]]
    for name in result["sets"]:
        points: dict[int, tuple[int, float, float, float]] = {}
        for one in same:
            if name in one["sets"]:
                value = one["sets"][name]["measures"]["ndcg@10"][one["form"]]
                points.setdefault(one["rows"], (one["rows"], value["delta"], *value["ci95"]))
        if plot := plots.growth(name, list(points.values())):
            return plot
    return None


def _check(run: Run, stages: dict[str, Manifest]) -> dict[str, Any]:
    """What is known of the teacher's fitness."""
    probe = _file(run, "check", "probe.json")
    generated, mined = stages["generate"], run.read("mine", Candidate)
    queries = len({candidate.query_id for candidate in mined} - {query.id for query in asked_queries(run)})
    seeds = _file(run, "seeds", "found.json")  # of another model's candidates, or of earlier ones
    counted = run.manifest("seeds")
    if counted is None or counted.parts["candidates"] != stages["mine"].identity:
        seeds = None
    by_start = not run.config.mine.warmup_epochs and not run.config.mine.model
    natural = queries - sum(not candidate.natural for candidate in mined)
    return {
        "probe": probe,
        "probe_word": word(probe["low"], probe["high"]) if probe else "",
        "parsed": generated.rows,
        "asked": generated.rows + sum(generated.drops.values()),
        "queries": queries,
        "n": run.config.mine.n,
        "found": seeds["found"] if seeds else natural if by_start else None,
    }


def _losses(run: Run, stages: dict[str, Manifest], forms: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    curves = {}
    for form in forms:
        path = run.path / f"train-{form}" / "training.json"
        if f"train-{form}" in stages and path.exists():
            curves[form] = [(int(step), float(loss)) for step, loss in read_json(path)["losses"]]
    return curves


# --- what the teacher said


def _labels(view: RunView, rows: Sequence[Example]) -> dict[str, Any]:
    """Where the teacher differs from the seeds, over every query that it judged in full."""
    labels = view.labels
    places, relevance = relabelled(view)
    pairs = sum(map(len, labels.values()))
    read = len({label.passage_id for ranked in labels.values() for label in ranked})
    return {
        "queries": len(places),
        "moved": sum(place > 1 for place in places),
        "seeded": sum(row.seed_id != "" for row in rows),
        "rows_moved": sum(
            labels[row.query_id][0].passage_id != row.seed_id for row in rows if row.seed_id and row.query_id in labels
        ),
        "pairs": pairs,
        "read": read,
        "shared": pairs / read if read else 0.0,
        "seed_plot": _placed(plots.seed_ranks(places)),
        "rc_plot": _placed(plots.relevance(relevance)),
    }


def _examples(view: RunView, rows: Sequence[Example]) -> list[dict[str, Any]]:
    """Rows drawn at random by the run's seed, in their order."""
    places = np.random.default_rng(view.config.seed).permutation(len(rows))[:EXAMPLES]
    own = {query.id for query in view.run.read("generate", Query)} if view.prompts["generate"].varies else ()
    return [
        {
            "row": row,
            "asked": draw(view.prompts["generate"], row.query_id) if row.query_id in own else {},
            "copied": copied(row.query, view.by_id[row.seed_id].content) if row.seed_id in view.by_id else None,
            "passages": _roles(view, row),
        }
        for row in (rows[place] for place in sorted(places.tolist()))
    ]


def _roles(view: RunView, row: Example) -> list[Shown]:
    """The passages of a row, each once, with all that it is there."""
    ranked = view.labels.get(row.query_id, [])
    named = [(row.seed_id, "seed"), *((label.passage_id, "p_1") for label in ranked[:1])]
    named += [(label.passage_id, "p_N") for label in ranked[-1:]]
    named += [(row.positive.id, "positive"), *((text.id, "hard negative") for text in row.negatives)]
    roles: dict[str, list[str]] = {}
    for identifier, role in named:
        roles.setdefault(identifier, []).append(role)
    places = {label.passage_id: label for label in ranked}
    return [
        Shown(", ".join(names), view.by_id[identifier], places.get(identifier))
        for identifier, names in roles.items()
        if identifier in view.by_id
    ]
