"""What ``gecko eval`` measures: retrieval sets and task sets of all sources, side by side."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gecko.core.arguments import in_order, spec_of
from gecko.core.errors import EvaluationError
from gecko.core.progress import Silent, Ui
from gecko.core.text import difference, points
from gecko.evaluation import task_scores, tasks
from gecko.evaluation.beir import RetrievalSet, gaps, load_beir
from gecko.evaluation.builtin import STDLIB_QUESTIONS, stdlib_questions
from gecko.evaluation.cache import KeptEmbeddings
from gecko.evaluation.evaluate import eval_json, evaluate_retrieval, refuse_equal_names
from gecko.evaluation.rerank import Reranker
from gecko.evaluation.task_scores import Measured
from gecko.evaluation.tasks import Skipped, TaskSet
from gecko.search.index import BM25_WEIGHT

MODEL, BASELINE = "model", "baseline"


@dataclass(frozen=True)
class Sets:
    """Loaded sets, by how they are measured."""

    retrieval: list[RetrievalSet]
    tasks: list[TaskSet]
    skipped: list[Skipped]


def load_sets(specs: Sequence[str | os.PathLike[str]], split: str | None = None, prompts: Sequence[str] = ()) -> Sets:
    """Load BEIR folders and folders of task sets (``DIR`` or ``DIR@SPLIT``), ``mteb:NAME`` and ``stdlib-questions``.

    ``split`` is for specs that name none. ``prompts`` are texts ``SET=TASK``: what the unified form tells the model
    instead of the default. Raises EvaluationError: a set cannot be read, two have one name, or a prompt is for no set.
    """
    found: list[RetrievalSet | TaskSet | Skipped] = []
    for given in in_order(specs, "test set"):
        spec = spec_of(given, "test set")
        if spec.startswith(tasks.PREFIX):
            found += tasks.load_named(spec, split)
        elif tasks.is_task_folder(spec, split):
            found.append(tasks.load_folder(spec, split))
        else:
            found.append(load_set(spec, split))
    names = [data.name for data in found]
    refuse_equal_names(names)
    told = _prompts(prompts, names)
    return Sets(
        [replace(data, task=told.get(data.name, data.task)) for data in found if isinstance(data, RetrievalSet)],
        [replace(data, prompt=told.get(data.name, data.prompt)) for data in found if isinstance(data, TaskSet)],
        [data for data in found if isinstance(data, Skipped)],
    )


def _prompts(texts: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    told = {}
    for text in texts:
        name, equals, prompt = text.partition("=")
        if not equals or name not in names:
            raise EvaluationError(f"--task {text!r}: write it as SET=TASK; the sets are: {', '.join(names)}")
        told[name] = prompt
    return told


def evaluate_sets(
    sets: Sets,
    models: Mapping[str, KeptEmbeddings],
    ui: Ui | None = None,
    *,
    resamples: int = 10_000,
    rerank: Reranker | None = None,
    hybrid: bool = False,
    bm25_weight: float = BM25_WEIGHT,
) -> dict[str, Any]:
    """Measure ``model`` and, if there is one, ``baseline`` on all sets; retrieval sets behind a reranker or BM25, too.

    Returns what ``gecko eval --json`` prints: ``sets`` and ``macro`` as :func:`gecko.evaluation.eval_json` has them for
    the retrieval sets; ``tasks``, if there are any, as :func:`gecko.evaluation.task_scores.task_json`; ``skipped``, if
    any are: the reason by name. A task set that mteb cannot run is among them, so that what was measured is not lost.
    Raises EvaluationError: mteb cannot run the only set.
    """
    ui = ui or Silent()
    baseline = BASELINE if BASELINE in models else None
    result: dict[str, Any] = {"sets": {}}
    if sets.retrieval:
        scores = evaluate_retrieval(
            sets.retrieval, models, progress=True, rerank=rerank, hybrid=hybrid, bm25_weight=bm25_weight
        )
        result = eval_json(scores, MODEL, baseline, resamples=resamples)
    skipped = list(sets.skipped)
    measured: dict[str, dict[str, Measured]] = {}
    if sets.tasks:
        with ui.bar("measuring", len(sets.tasks), "task sets") as advance:
            for data in sets.tasks:
                try:
                    measured[data.name] = {label: task_scores.measure(data, model) for label, model in models.items()}
                except EvaluationError as error:
                    if len(sets.tasks) + len(sets.retrieval) == 1:
                        raise
                    skipped.append(Skipped(data.name, str(error)))
                advance(1)
    if measured:
        done = [data for data in sets.tasks if data.name in measured]
        result["tasks"] = task_scores.task_json(done, measured, resamples=resamples)
    if skipped:
        result["skipped"] = {data.name: data.reason for data in skipped}
    return result


def eval_notes(result: Mapping[str, Any]) -> list[str]:
    """What stands below the table: what the sets lack, and why others were skipped."""
    lacks = {
        name: gaps(row.get("unknown_documents", 0), row.get("unknown_queries", 0))
        for name, row in result["sets"].items()
    }
    changed = [
        (f"{name}: {what} changes", row[key]["gain"].items())
        for name, row in _retrieval(result)
        for key, what in (("rerank", "reranking"), ("hybrid", "BM25 beside it"))
        if key in row
    ]
    return [
        *(f"{what} {', '.join(f'the {one} by {_change(gain)}' for one, gain in gains)}" for what, gains in changed),
        *(f"{name}: {what}" for name, what in lacks.items() if what),
        *(f"{name} was skipped: {reason}" for name, reason in result.get("skipped", {}).items()),
    ]


def eval_table(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The same as rows of text, the header first; every measure in points of 100."""
    header = (
        "set",
        "measure",
        "items",
        "score",
        "baseline",
        "difference, 95 % interval",
        "BM25",
        "recall@100",
        "MRR@10",
    )
    rows: list[tuple[str, ...]] = [header]
    for name, row in _retrieval(result):
        cells = (name, "nDCG@10", f"{row['queries']:,}", points(row["ndcg@10"]), *_against(row))
        bm25 = "" if row["bm25"] is None else points(row["bm25"])
        rows.append((*cells, bm25, points(row["recall@100"]), points(row["mrr@10"])))
        for key, what in (("rerank", "reranked"), ("hybrid", "with BM25")):
            if behind := row.get(key):
                measure = points(behind["ndcg@10"])
                cells = (f"{name}, {what}", "nDCG@10", f"{row['queries']:,}", measure, *_against(behind))
                rows.append((*cells, "", points(behind["recall@100"]), points(behind["mrr@10"])))
    for name, row in result.get("tasks", {}).items():
        items = "" if row["items"] is None else f"{row['items']:,}"
        rows.append((name, row["metric"], items, points(row["score"]), *_against(row), "", "", ""))
    return rows


def _retrieval(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The rows of retrieval sets by name, and their mean where there is one."""
    return [*result["sets"].items(), *([("macro mean", result["macro"])] if "macro" in result else [])]


def _change(row: Mapping[str, Any]) -> str:
    return difference(row["delta"], row["ci95"])


def _against(row: Mapping[str, Any]) -> tuple[str, str]:
    if row["delta"] is None:
        return "", ""
    return points(row["baseline"]), _change(row)


def load_set(spec: str | os.PathLike[str], split: str | None = None) -> RetrievalSet:
    """A test set: ``stdlib-questions``, or a BEIR folder as ``DIR`` or ``DIR@SPLIT``.

    Raises EvaluationError: it cannot be read, or has no such split.
    """
    spec = spec_of(spec, "test set")
    return stdlib_questions() if spec == STDLIB_QUESTIONS else load_beir(spec, split)
