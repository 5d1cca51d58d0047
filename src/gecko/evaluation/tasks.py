"""Sets that are not retrieval: similarity, classification, clustering, pair classification and reranking.

Each is a task of mteb, whether its texts come from a local folder or from an mteb task by name; ``task_scores.py`` runs it.
"""

import contextlib
import logging
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gecko.core.arguments import spec_of
from gecko.core.errors import EvaluationError
from gecko.core.formats import DEFAULT_TASK, MTEB_TASKS
from gecko.core.records import Passage
from gecko.evaluation.beir import RetrievalSet, is_beir, json_lines, judged_set, parse_spec

Kind = Literal["sts", "pair classification", "classification", "clustering", "reranking"]

PREFIX = "mteb:"
CLUSTERED = 16_384  # documents, at most, of a local clustering set

_FIELDS: dict[Kind, tuple[str, ...]] = {
    "sts": ("sentence1", "sentence2", "score"),
    "pair classification": ("sentence1", "sentence2", "label"),
    "reranking": ("query", "positive", "negative"),
    "classification": ("text", "label"),
    "clustering": ("text", "label"),
}
_TYPES: dict[Kind, tuple[str, str]] = {  # mteb's type, and the score that it is known by
    "sts": ("STS", "cosine_spearman"),
    "pair classification": ("PairClassification", "cosine_ap"),
    "classification": ("Classification", "accuracy"),
    "clustering": ("Clustering", "v_measure"),
    "reranking": ("Reranking", "map_at_1000"),
}


@dataclass(frozen=True)
class TaskSet:
    """An mteb task with its data, loaded; ``prompt`` is what the unified form tells the model."""

    name: str
    splits: tuple[str, ...]
    task: Any
    prompt: str

    @property
    def kind(self) -> str:
        """The kind of task, as mteb calls it."""
        return str(self.task.metadata.type)

    @property
    def metric(self) -> str:
        """The score, as mteb calls it."""
        return str(self.task.metadata.main_score)


@dataclass(frozen=True)
class Skipped:
    """A set that cannot be measured here, and why."""

    name: str
    reason: str


def is_task_folder(spec: str, split: str | None) -> bool:
    """Whether a spec names a folder of jsonl files that is not in the BEIR layout."""
    folder, _ = parse_spec(spec, split)
    return folder.is_dir() and not is_beir(folder) and any(folder.glob("*.jsonl"))


# --- local folders


def load_folder(spec: str | os.PathLike[str], split: str | None = None) -> TaskSet:
    """Read ``DIR/SPLIT.jsonl``, from ``DIR`` or ``DIR@SPLIT``; the fields of its rows say which kind of set it is.

    =====================================  =====================================================
    ``sentence1``, ``sentence2``, ``score``  similarity (a ``label`` beside the score is not read)
    ``sentence1``, ``sentence2``, ``label``  pair classification; the label is 0 or 1
    ``query``, ``positive``, ``negative``    reranking; two lists of texts
    ``text``, ``label``                      classification where there is a ``train.jsonl``, else clustering
    =====================================  =====================================================

    Raises EvaluationError: the split (none: ``test``) or mteb is missing, or a row cannot be used (file and line are
    given).
    """
    folder, split = parse_spec(spec_of(spec, "test set"), split)
    file = folder / f"{split}.jsonl"
    if not file.is_file():
        present = ", ".join(sorted(path.stem for path in folder.glob("*.jsonl"))) or "none"
        raise EvaluationError(f"test set {folder} has no split {split!r}; it has: {present}")
    rows = _rows(file)
    kind = _kind(rows[0], folder, file)
    columns = _columns(kind, rows, file)
    name = folder.resolve().name
    with library():
        train = None
        if kind == "classification":
            known = folder / "train.jsonl"
            train = _columns(kind, _rows(known), known)
            numbers = {label: place for place, label in enumerate(sorted({*train["label"], *columns["label"]}))}
            for one in (train, columns):  # mteb takes the larger of two labels for the positive one
                one["label"] = [numbers[label] for label in one["label"]]
        task = _local_task(kind, name, split, columns, train)
    return TaskSet(name, (split,), task, MTEB_TASKS.get(_TYPES[kind][0], DEFAULT_TASK))


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = []
    for number, row in json_lines(file):
        if not isinstance(row, dict):
            raise EvaluationError(f"{file}:{number}: needs an object, not {row!r}")
        rows.append(row | {"": number})
    if not rows:
        raise EvaluationError(f"{file} holds no rows")
    return rows


def _kind(row: dict[str, Any], folder: Path, file: Path) -> Kind:
    for kind, fields in _FIELDS.items():
        if all(field in row for field in fields):
            if kind == "classification" and not (folder / "train.jsonl").exists():
                return "clustering"
            return kind
    known = "; ".join(f"{', '.join(fields)}: {kind}" for kind, fields in _FIELDS.items())
    raise EvaluationError(
        f"{file}: rows with {', '.join(key for key in row if key)} are of no known kind; known: {known}"
    )


def _columns(kind: Kind, rows: Sequence[dict[str, Any]], file: Path) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {field: [] for field in _FIELDS[kind]}
    for row in rows:
        for field, values in columns.items():
            values.append(_value(kind, field, row.get(field), f"{file}:{row['']}"))
    return columns


def _value(kind: Kind, field: str, value: Any, place: str) -> Any:
    fits = isinstance(value, str)
    needed = "a string"
    if field == "score":
        needed, fits = "a number", isinstance(value, int | float) and not isinstance(value, bool)
    elif field == "label" and kind == "pair classification":
        needed, fits = "0 or 1", str(value) in ("0", "1")
    elif field == "label":
        needed, fits = "a string or a whole number", isinstance(value, str | int)
    elif field in ("positive", "negative"):
        listed = isinstance(value, list) and all(isinstance(text, str) for text in value)
        needed, fits = "a list of texts", listed and bool(value or field != "positive")
    if not fits:
        raise EvaluationError(f'{place}: "{field}" must be {needed}, not {value!r}')
    if field == "label":
        return int(value) if kind == "pair classification" else str(value)
    return float(value) if field == "score" else value


def _local_task(
    kind: Kind, name: str, split: str, columns: dict[str, list[Any]], train: dict[str, list[Any]] | None
) -> Any:
    """A task of mteb's own class for that kind, around these columns."""
    from datasets import Dataset, DatasetDict
    from mteb import abstasks
    from mteb.abstasks.task_metadata import TaskMetadata

    settings: dict[str, Any] = {}
    data: Any = DatasetDict({split: Dataset.from_dict(columns)})
    match kind:
        case "sts":
            base = abstasks.AbsTaskSTS
        case "pair classification":
            base, settings = abstasks.AbsTaskPairClassification, {"label_column_name": "label"}
        case "classification":
            base, data["train"] = abstasks.AbsTaskClassification, Dataset.from_dict(train)
        case "clustering":
            base = abstasks.AbsTaskClustering
            settings = {"max_fraction_of_documents_to_embed": None, "max_document_to_embed": CLUSTERED}
            renamed = {"sentences": columns["text"], "labels": columns["label"]}
            data = DatasetDict({split: Dataset.from_dict(renamed)})
        case "reranking":
            base, data = abstasks.AbsTaskRetrieval, {"default": {split: _reranking(columns)}}
    kind_name, score = _TYPES[kind]
    metadata = TaskMetadata(
        dataset={"path": "local", "revision": "local"},
        name=name,
        description="texts from a local folder",
        type=kind_name,
        category="t2t",
        eval_splits=[split],
        eval_langs=["und-Zyyy"],
        main_score=score,
    )
    task = type("LocalTask", (base,), {"metadata": metadata, **settings})()
    task.dataset, task.data_loaded = data, True
    return task


def _reranking(columns: dict[str, list[Any]]) -> dict[str, Any]:
    from datasets import Dataset

    ids: dict[str, str] = {}
    relevant: dict[str, dict[str, int]] = {}
    listed: dict[str, list[str]] = {}
    for number, (positive, negative) in enumerate(zip(columns["positive"], columns["negative"], strict=True)):
        for text in (*positive, *negative):
            ids.setdefault(text, f"d{len(ids)}")
        relevant[f"q{number}"] = {ids[text]: 1 for text in positive}
        listed[f"q{number}"] = list(dict.fromkeys(ids[text] for text in (*positive, *negative)))
    return {
        "corpus": Dataset.from_list([{"id": key, "title": "", "text": text} for text, key in ids.items()]),
        "queries": Dataset.from_list([{"id": f"q{n}", "text": text} for n, text in enumerate(columns["query"])]),
        "relevant_docs": relevant,
        "top_ranked": listed,
    }


# --- by name


def load_named(spec: str, split: str | None = None) -> "list[RetrievalSet | TaskSet | Skipped]":
    """The mteb task, or all tasks of the mteb benchmark, of a spec ``mteb:NAME`` or ``mteb:NAME@SPLIT``.

    A plain retrieval task becomes a set as a BEIR folder does, so that BM25 and the intervals stand beside it. Raises
    EvaluationError: mteb is not installed, or knows no such task or benchmark.
    """
    name, _, named = spec.removeprefix(PREFIX).partition("@")
    split = named or split
    with library():
        import mteb

        try:
            tasks = [mteb.get_task(name)]
        except KeyError as error:
            try:
                tasks = list(mteb.get_benchmark(name).tasks)
            except KeyError:
                hint = str(error.args[0]).removeprefix("KeyError: ")
                raise EvaluationError(
                    f"{spec}: mteb knows neither a task nor a benchmark of this name; {hint}"
                ) from None
        return [part for task in tasks for part in _loaded(task, split)]


def _loaded(task: Any, split: str | None) -> "list[RetrievalSet | TaskSet | Skipped]":
    from mteb.abstasks import AbsTaskRetrieval

    name = str(task.metadata.name)
    if getattr(task, "is_aggregate", False) or list(task.metadata.modalities) != ["text"]:
        return [Skipped(name, "it is not one task on texts")]
    splits = (split,) if split else tuple(task.eval_splits)
    try:
        if split and split not in task.eval_splits:
            task.filter_eval_splits([split])
        task.load_data()
    except Exception as error:  # the libraries below raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        return [Skipped(name, f"its data cannot be loaded: {reason[:200]}")]
    prompt = MTEB_TASKS.get(str(task.metadata.type), DEFAULT_TASK)
    if isinstance(task, AbsTaskRetrieval):
        task.convert_v1_dataset_format_to_v2(num_proc=None)
        parts = [
            (subset, one, rows) for subset, of in task.dataset.items() for one, rows in of.items() if one in splits
        ]
        plain = not task.skip_first_result and not any(
            rows["top_ranked"] or "instruction" in rows["queries"].column_names for _, _, rows in parts
        )
        if plain and str(task.metadata.main_score) == "ndcg_at_10":
            return [_retrieval(task, subset, one, rows, len(parts) > 1) for subset, one, rows in parts]
    return [TaskSet(name, splits, task, prompt)]


def _retrieval(task: Any, subset: str, split: str, rows: Mapping[str, Any], several: bool) -> RetrievalSet:
    name = str(task.metadata.name)
    judged = {key: dict(grades) for key, grades in rows["relevant_docs"].items() if grades}
    texts = dict(zip(rows["queries"]["id"], rows["queries"]["text"], strict=True))
    corpus = rows["corpus"]
    titles = corpus["title"] if "title" in corpus.column_names else [""] * len(corpus)
    passages = [
        Passage(key, title or "", text, name)
        for key, title, text in zip(corpus["id"], titles, corpus["text"], strict=True)
    ]
    queries = [(key, text) for key, text in texts.items() if key in judged]
    found = judged_set(name, split, passages, queries, judged, exclude_own=bool(task.ignore_identical_ids))
    return replace(found, name=f"{name} ({', '.join(dict.fromkeys((subset, split)))})") if several else found


@contextlib.contextmanager
def library() -> Iterator[None]:
    """mteb, if it is installed, without its log and bars; the global random states, which it seeds, are put back."""
    state, numpy_state = random.getstate(), np.random.get_state()
    import torch

    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _quiet():
                yield
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "mteb":
                raise
            raise EvaluationError(
                "task sets are measured with mteb, which is not installed; install it with: pip install 'gecko-embed[mteb]'"
            ) from error
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    import datasets

    loggers = [logging.getLogger(name) for name in ("mteb", "datasets")]
    levels = [logger.level for logger in loggers]
    bars = datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
