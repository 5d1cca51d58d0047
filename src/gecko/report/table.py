"""The numbers of a run as a table: the same ones in the terminal and in the report.

Input is what ``gecko.stages.evaluate.measure_run`` returns, on 0–1; output is on 0–100.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gecko.core.text import difference, points
from gecko.fret.select import ROWS_ASKED, ROWS_FROM
from gecko.report.text import shown
from gecko.run.manifest import Manifest

HEADER = ["set", "model", "nDCG@10", "difference to start (95 %)", "recall@20"]
AGREEMENT = "agreement with the teacher"
AGREEMENT_ASKED = "of it, on queries of a log"
NO_ANSWER = "no difference that this many queries can show"
LEAST_QUERIES = 10  # of a verdict: the bootstrap of fewer draws the same few again and again
_NAMES = {
    "bm25": "BM25",
    "start": "start model",
    "native": "student, native format",
    "unified": "student, unified format",
}


@dataclass(frozen=True)
class ResultRow:
    """One model on one test set.

    Attributes:
        name: the set's.
        queries: how many it has.
        label: the model's, as in the result: ``bm25``, ``start`` or an input format.
        kept: whether it is the model that the run hands over.
        ndcg, recall: nDCG@10 and recall@20, 0–1; recall is missing for agreement.
        delta, low, high: nDCG@10 minus the start model's, paired, with its 95 % interval; missing for the start model.
    """

    name: str
    queries: int
    label: str
    kept: bool
    ndcg: float
    recall: float | None
    delta: float | None
    low: float | None
    high: float | None

    @property
    def model(self) -> str:
        """The model in words, the kept one marked."""
        return _NAMES.get(self.label, self.label) + (" (kept)" if self.kept else "")

    @property
    def word(self) -> str:
        """What the interval says of the difference; of few queries it says nothing."""
        return NO_ANSWER if self.delta is not None and self.queries < LEAST_QUERIES else word(self.low, self.high)

    @property
    def difference(self) -> str:
        """``+1.4 [+0.2, +2.6]`` in points, or nothing."""
        if self.delta is None or self.low is None or self.high is None:
            return ""
        return difference(self.delta, (self.low, self.high))


def word(low: float | None, high: float | None) -> str:
    """``better``, ``worse``, or that the interval holds 0; nothing without an interval."""
    if low is None or high is None:
        return ""
    return "better" if low > 0 else "worse" if high < 0 else NO_ANSWER


def result_rows(result: Mapping[str, Any]) -> list[ResultRow]:
    """Every model on every test set, in the result's order."""
    rows = []
    for name, entry in result["sets"].items():
        recalls = entry["measures"].get("recall@20", {})
        for label, value in entry["measures"]["ndcg@10"].items():
            recall = recalls.get(label, {}).get("mean")
            rows.append(_row(result, name, entry["queries"], label, value, recall))
    return rows


def agreement_rows(result: Mapping[str, Any]) -> list[ResultRow]:
    """Every model's agreement with the teacher, and on what people asked beside others; empty if nothing was held out."""
    entry = result.get("agreement")
    if not entry:
        return []
    named, asked = [(AGREEMENT, entry)], entry.get("asked")
    if asked and asked["queries"] < entry["queries"]:
        named.append((AGREEMENT_ASKED, asked))
    return [
        _row(result, name, part["queries"], label, value, None)
        for name, part in named
        for label, value in part["models"].items()
    ]


def _row(
    result: Mapping[str, Any], name: str, queries: int, label: str, value: Mapping[str, Any], recall: float | None
) -> ResultRow:
    low, high = value["ci95"] or (None, None)
    return ResultRow(name, queries, label, label == result["form"], value["mean"], recall, value["delta"], low, high)


def closing_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """The closing table: a header, then a row for each set and model, then agreement with the teacher."""
    return [
        HEADER,
        *(
            [f"{shown(row.name)} ({row.queries:,})", row.model, points(row.ndcg), row.difference, points(row.recall)]
            for row in (*result_rows(result), *agreement_rows(result))
        ),
    ]


def origins(selected: Manifest) -> tuple[int, dict[str, int]]:
    """How many of the selected rows the run labelled itself, and how many come from which release."""
    released = {
        note.removeprefix(ROWS_FROM): count for note, count in selected.notes.items() if note.startswith(ROWS_FROM)
    }
    return selected.rows - sum(released.values()), released


def asked_rows(selected: Manifest) -> int:
    """How many of the selected rows people asked."""
    return selected.notes[ROWS_ASKED]
