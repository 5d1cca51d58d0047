"""What a run came to: a summary for programs (``summary.json``), and the lines that say the same to people.

Values are on 0–1 in the summary and on 0–100 in the lines.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from gecko.core.text import difference, duration, points
from gecko.report.spending import Spent, money, spent_of, spent_words
from gecko.report.table import AGREEMENT, ResultRow, agreement_rows, asked_rows, origins, result_rows
from gecko.report.text import shown
from gecko.run.folder import Run

FILE = "summary.json"
YES, UNPROVEN, WORSE, UNMEASURED = "yes", "unproven", "worse", "unmeasured"
SIZES = (1_000, 5_000, 20_000)  # rows whose cost is given
_SAID = {"better": YES, "worse": WORSE}


class Line(NamedTuple):
    """One closing line: what it is about, the verdict (empty where there is none), and the numbers."""

    label: str
    verdict: str
    text: str


def run_summary(run: Run, result: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`summary` of a run whose rows are selected, with the places of its model and its report in the folder."""
    made = [run.manifest(stage) for stage in ("generate", "relabel")]
    selected = run.finished("select")
    own, released = origins(selected)
    seconds = sum(manifest.seconds for manifest in made if manifest)
    spent = spent_of(made)
    found = summary(result, own, seconds, released, asked_rows(selected))
    if spent.requests:
        found["spent"] = asdict(spent) | {"money": money(run.config.price, spent.read, spent.written)}
    return found | {"model": "model", "report": "report.html"}


def summary(
    result: Mapping[str, Any], rows: int, seconds: float, released: Mapping[str, int] | None = None, asked: int = 0
) -> dict[str, Any]:
    """What the run showed.

    Args:
        result: of ``evaluate``.
        rows: training rows that the run labelled itself and kept.
        seconds: teacher time they took.
        released: training rows that came from elsewhere, by release.
        asked: those of ``rows`` whose query came from the user's log.

    Returns:
        ``learned``: agreement with the teacher on held-out queries; ``better``: a verdict over all test sets (``worse`` if it
        is worse on one, else ``yes`` if it is better on one) and the ``sets``. Each measure has ``queries``, ``start`` and
        ``model`` (0–1), ``delta`` with its 95 % interval ``ci95``, and a ``verdict``: ``yes`` where the interval lies above
        0, ``worse`` where it lies below, else ``unproven``; ``unmeasured`` where nothing was measured. ``rows``: how many
        were made here and by which release others came. ``next``: what to try, or None.
    """
    sets = [_measure(row) for row in result_rows(result) if row.kept]
    agreed = [_measure(row) for row in agreement_rows(result) if row.kept and row.name == AGREEMENT]
    said = {one["verdict"] for one in sets}
    verdict = next((word for word in (WORSE, YES, UNPROVEN) if word in said), UNMEASURED)
    return {
        "learned": agreed[0] if agreed else {"verdict": UNMEASURED},
        "better": {"verdict": verdict, "sets": sets},
        "rows": {"made": rows, "from_log": asked, "released": dict(released or {}), "teacher_seconds": seconds},
        "next": _next(verdict, rows, seconds),
    }


def _measure(row: ResultRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "verdict": _SAID.get(row.word, UNPROVEN),
        "queries": row.queries,
        "start": row.ndcg - (row.delta or 0.0),
        "model": row.ndcg,
        "delta": row.delta,
        "ci95": None if row.low is None else [row.low, row.high],
    }


def _next(verdict: str, rows: int, seconds: float) -> str | None:
    if verdict == YES:
        return None
    if verdict == UNMEASURED:
        return "give a labelled set with --eval DIR: agreement with the teacher is not relevance"
    if verdict == WORSE:
        return "do not use this model; measure the teacher with gecko check-teacher, or take a stronger one with --llm"
    if rows < 1 or seconds <= 0:
        return "more rows (a longer --budget), or more questions to measure on"
    more = next((size for size in SIZES[1:] if size > rows), 4 * rows)
    need = seconds / rows * more
    return f"{more:,} rows would take {duration(need)} of the teacher (--budget {math.ceil(need / 60)}m)"


def closing_lines(found: Mapping[str, Any]) -> list[Line]:
    """The summary in lines: learned, better (a line a set), rows, and what to try next where there is such."""
    learned, better = found["learned"], found["better"]
    measured = learned["verdict"] != UNMEASURED
    said = (
        f"agreement {_change(learned)} on {learned['queries']:,} held-out queries"
        if measured
        else "no query was held out"
    )
    lines = [Line("Learned from the teacher", learned["verdict"], said)]
    several = len(better["sets"]) > 1
    for one in better["sets"]:
        gain = difference(one["delta"] or 0.0, one["ci95"] or (math.nan, math.nan))
        text = f"nDCG@10 {_change(one)}, {gain} on {one['queries']:,} questions"
        lines.append(Line("Better search", one["verdict"], text + (f" of {shown(one['name'])}" if several else "")))
    if not better["sets"]:
        lines.append(Line("Better search", UNMEASURED, "no test set was given"))
    lines.append(Line("Rows", "", _rows(found["rows"])))
    if "spent" in found:
        amount = found["spent"]["money"]
        spent = Spent(**{name: value for name, value in found["spent"].items() if name != "money"})
        lines.append(Line("Teacher", "", spent_words(spent, amount)))
    if found["next"]:
        lines.append(Line("Next", "", found["next"]))
    return lines


def _change(one: Mapping[str, Any]) -> str:
    return f"{points(one['start'])} → {points(one['model'])}"


def _rows(rows: Mapping[str, Any]) -> str:
    parts = [f"{count:,} shipped ({shown(name)})" for name, count in rows["released"].items()]
    made = f"{rows['made']:,} made here in {duration(rows['teacher_seconds'])}"
    if rows["from_log"]:
        which = "all" if rows["from_log"] == rows["made"] else f"{rows['from_log']:,}"
        made += f", {which} of them from your query log"
    return ", ".join([*parts, made])
