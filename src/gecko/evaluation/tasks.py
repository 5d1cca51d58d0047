"""Sets that are not retrieval: similarity, classification, clustering, pair classification and reranking.

The protocol, the splits of its experiments and the score are mteb's own, whether the texts come from a local folder or
from an mteb task by name, so a number here is the number that MTEB prints. What mteb leaves on the way (similarities,
predictions, rankings) is kept as evidence, and paired intervals are computed from it.
"""

import contextlib
import json
import logging
import os
import random
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gecko.errors import EvaluationError
from gecko.evaluation.beir import RetrievalSet, is_beir, json_lines, parse_spec
from gecko.evaluation.cache import KeptEmbeddings
from gecko.evaluation.metrics import Array, per_query, resampled_means
from gecko.formats import DEFAULT_TASK, MTEB_TASKS
from gecko.given import spec_of
from gecko.records import Passage, Text

Kind = Literal["sts", "pair classification", "classification", "clustering", "reranking"]

PREFIX = "mteb:"
RANKED_RESAMPLES = 1000  # of a statistic that has to be computed anew each time
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
    """An mteb task with its data.

    Attributes:
        name: the folder's name, or the task's.
        splits: those that are measured.
        task: the mteb task, loaded.
        prompt: what the unified form tells the model.
    """

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


@dataclass(frozen=True)
class Means:
    """Evidence whose score is its mean: (items,) on 0–1."""

    values: Array


@dataclass(frozen=True)
class Pairs:
    """Evidence whose score is a statistic of all pairs: their similarities and what people said of them, both (items,)."""

    values: Array
    truth: Array
    statistic: Literal["spearman", "average precision"]


@dataclass(frozen=True)
class Measured:
    """What one model got on one set.

    Attributes:
        score: mteb's, the mean over splits and subsets.
        evidence: for each split and subset; none where mteb leaves nothing from which the score can be made again.
    """

    score: float
    evidence: list[Means | Pairs] | None


def is_task_folder(spec: str, split: str | None) -> bool:
    """Whether a spec names a folder of jsonl files that is not in the BEIR layout."""
    folder, _ = parse_spec(spec, split)
    return folder.is_dir() and not is_beir(folder) and any(folder.glob("*.jsonl"))


# --- local folders


def load_folder(spec: str | os.PathLike[str], split: str | None = None) -> TaskSet:
    """Read ``DIR/SPLIT.jsonl``; the fields of its rows say which kind of set it is.

    =====================================  =====================================================
    ``sentence1``, ``sentence2``, ``score``  similarity (a ``label`` beside the score is not read)
    ``sentence1``, ``sentence2``, ``label``  pair classification; the label is 0 or 1
    ``query``, ``positive``, ``negative``    reranking; two lists of texts
    ``text``, ``label``                      classification where there is a ``train.jsonl``, else clustering
    =====================================  =====================================================

    Args:
        spec: ``DIR`` or ``DIR@SPLIT``.
        split: the split where ``spec`` names none; none: ``test``.

    Raises:
        EvaluationError: the split or mteb is missing, or a row cannot be used (its file and line are given).
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
    with _library():
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
    match field:
        case "score":
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
            raise EvaluationError(f'{place}: "score" must be a number, not {value!r}')
        case "label" if kind == "pair classification":
            if str(value) in ("0", "1"):
                return int(value)
            raise EvaluationError(f'{place}: "label" must be 0 or 1, not {value!r}')
        case "label":
            if isinstance(value, str | int):
                return str(value)
            raise EvaluationError(f'{place}: "label" must be a string or a whole number, not {value!r}')
        case "positive" | "negative":
            if (
                isinstance(value, list)
                and all(isinstance(text, str) for text in value)
                and (value or field != "positive")
            ):
                return value
            raise EvaluationError(f'{place}: "{field}" must be a list of texts, not {value!r}')
        case _:
            if isinstance(value, str):
                return value
            raise EvaluationError(f'{place}: "{field}" must be a string, not {value!r}')


def _local_task(
    kind: Kind, name: str, split: str, columns: dict[str, list[Any]], train: dict[str, list[Any]] | None
) -> Any:
    """A task of mteb's own class for that kind, around these columns."""
    from datasets import Dataset, DatasetDict
    from mteb import abstasks
    from mteb.abstasks.task_metadata import TaskMetadata

    settings: dict[str, Any] = {}
    data: Any
    match kind:
        case "sts":
            base, data = abstasks.AbsTaskSTS, DatasetDict({split: Dataset.from_dict(columns)})
        case "pair classification":
            base, settings = abstasks.AbsTaskPairClassification, {"label_column_name": "label"}
            data = DatasetDict({split: Dataset.from_dict(columns)})
        case "classification":
            assert train is not None
            base, data = abstasks.AbsTaskClassification, DatasetDict({split: Dataset.from_dict(columns)})
            data["train"] = Dataset.from_dict(train)
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

    A plain retrieval task becomes a set as a BEIR folder does, so that BM25 and the intervals stand beside it.

    Raises:
        EvaluationError: mteb is not installed, or knows no such task or benchmark.
    """
    name, _, named = spec.removeprefix(PREFIX).partition("@")
    split = named or split
    with _library():
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
    from gecko.evaluation.beir import SYMMETRIC, TASKS

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
    known = {passage.id for passage in passages}
    return RetrievalSet(
        name=f"{name} ({', '.join(dict.fromkeys((subset, split)))})" if several else name,
        split=split,
        passages=passages,
        queries=queries,
        qrels={key: judged[key] for key, _ in queries},
        task=TASKS.get(name.lower(), DEFAULT_TASK),
        unknown_documents=sum(document not in known for key, _ in queries for document in judged[key]),
        unknown_queries=len(judged) - len(queries),
        symmetric=name.lower() in SYMMETRIC,
        exclude_own=bool(task.ignore_identical_ids),
    )


# --- measuring


def measure(data: TaskSet, embeddings: KeptEmbeddings) -> Measured:
    """Run a set's task on a model, as mteb does, with the same random draws for every model.

    Raises:
        EvaluationError: mteb cannot run the task.
    """
    task = data.task
    scores: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    with _library(), tempfile.TemporaryDirectory() as folder:
        task.rng_state, task.np_rng = random.Random(task.seed), np.random.default_rng(task.seed)
        model = _model(embeddings, data.prompt)
        try:
            for split in data.splits:
                scores[split] = task.evaluate(model, split, encode_kwargs={}, prediction_folder=Path(folder))
        except Exception as error:  # the libraries below raise many kinds
            raise EvaluationError(f"mteb cannot measure {data.name}: {error}") from error
        file = Path(folder) / task.prediction_file_name
        predictions = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    found = [(split, subset, row) for split, rows in scores.items() for subset, row in rows.items()]
    evidence: list[Means | Pairs] = []
    for split, subset, row in found:
        part = _evidence(task, split, subset, row, predictions.get(subset, {}).get(split))
        if part is not None:
            evidence.append(part)
    score = float(np.mean([row["main_score"] for _, _, row in found]))
    return Measured(score, evidence if len(evidence) == len(found) else None)


def _model(embeddings: KeptEmbeddings, prompt: str) -> Any:
    """The model as mteb calls one."""
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.types import PromptType

    class Model(AbsEncoder):  # type: ignore[misc]
        mteb_model_meta = ModelMeta.create_empty()

        def __init__(self) -> None:
            pass

        def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **_: Any) -> Any:
            batches = list(inputs)
            texts = [text for batch in batches for text in batch["text"]]
            if prompt_type == PromptType.query:
                return np.asarray(embeddings.queries(texts, prompt))
            if prompt_type == PromptType.document:
                items = [Text("", "", text) for text in texts]  # mteb has put the title in front
                if embeddings.form == "unified":
                    items = [text for batch in batches for text in _titled(batch)]
                return np.asarray(embeddings.passages(items))
            # mteb's own order of looking for a prompt
            return np.asarray(embeddings.symmetric(texts, prompt, (task_metadata.name, task_metadata.type)))

    return Model()


def _titled(batch: Mapping[str, Any]) -> list[Text]:
    bodies = batch.get("body", batch["text"])
    return [Text("", title, body) for title, body in zip(batch.get("title", [""] * len(bodies)), bodies, strict=True)]


def _evidence(task: Any, split: str, subset: str, scores: Mapping[str, Any], kept: Any) -> Means | Pairs | None:
    from mteb import abstasks

    score = str(task.metadata.main_score)
    if isinstance(task, abstasks.AbsTaskClustering) and score == "v_measure":
        return Means(np.mean(list(scores["v_measures"].values()), axis=0))
    if kept is None:
        return None
    data = task.dataset.get(subset, task.dataset)
    if isinstance(task, abstasks.AbsTaskSTS) and score in ("cosine_spearman", "spearman"):
        return Pairs(np.array(kept["cosine_scores"]), np.array(data[split]["score"], dtype=float), "spearman")
    if isinstance(task, abstasks.AbsTaskPairClassification) and score in ("cosine_ap", "similarity_ap", "max_ap"):
        labels = data[split][task.label_column_name]
        truth = np.array(labels[0] if len(labels) == 1 else labels, dtype=float)
        return Pairs(np.array(kept["cosine_scores"]), truth, "average precision")
    if isinstance(task, abstasks.AbsTaskClassification) and score == "accuracy":
        truth = np.array(data[split][task.label_column_name])
        predicted = np.array(kept)  # (experiments, items)
        return Means((predicted == truth).mean(axis=0)) if predicted.shape[1:] == truth.shape else None
    if isinstance(task, abstasks.AbsTaskRetrieval):
        name, _, depth = score.partition("_at_")
        if name in ("ndcg", "map") and depth and not task.skip_first_result:
            own = bool(task.ignore_identical_ids)
            run = {key: {one: s for one, s in row.items() if not (own and one == key)} for key, row in kept.items()}
            return Means(per_query(run, data[split]["relevant_docs"], (f"{name}@{depth}",))[f"{name}@{depth}"])
    return None


def items(measured: Measured) -> int | None:
    """How many items an interval rests on: pairs, texts, queries, or clusterings."""
    return None if measured.evidence is None else sum(len(part.values) for part in measured.evidence)


def interval(model: Measured, baseline: Measured, resamples: int = 10_000, seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile interval of model minus baseline, both resampled in the same items.

    Splits and subsets weigh the same. A mean is resampled ``resamples`` times, a statistic of pairs at most 1,000 times.

    Returns:
        lower and upper end, on 0–1; none where there is no evidence.
    """
    if model.evidence is None or baseline.evidence is None:
        return None
    if any(isinstance(part, Pairs) for part in model.evidence):
        resamples = min(resamples, RANKED_RESAMPLES)
    generator = np.random.default_rng(seed)
    parts = [
        _resampled(ours, theirs, resamples, generator)
        for ours, theirs in zip(model.evidence, baseline.evidence, strict=True)
    ]
    low, high = np.nanpercentile(np.mean(parts, axis=0), [2.5, 97.5])
    return float(low), float(high)


def _resampled(ours: Means | Pairs, theirs: Means | Pairs, resamples: int, generator: np.random.Generator) -> Array:
    if isinstance(ours, Means):
        return resampled_means(ours.values - theirs.values, resamples, generator)
    count = len(ours.truth)
    differences = np.empty(resamples)
    for number in range(resamples):
        drawn = generator.integers(0, count, size=count)
        truth = ours.truth[drawn]
        # A resample in which all pairs are alike has no such statistic; it is left out of the percentiles.
        alike = bool((truth == truth[0]).all())
        differences[number] = (
            np.nan
            if alike
            else statistic(ours, ours.values[drawn], truth) - statistic(ours, theirs.values[drawn], truth)
        )
    return differences


def statistic(kind: Pairs, values: Array, truth: Array) -> float:
    """Spearman's rank correlation, or the average precision, of similarities."""
    if kind.statistic == "spearman":
        from scipy.stats import spearmanr

        return float(spearmanr(values, truth).statistic)
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, values))


def task_json(
    sets: Sequence[TaskSet], measured: Mapping[str, Mapping[str, Measured]], *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """The result as ``gecko eval --json`` prints it below ``tasks``; numbers on 0–1.

    Args:
        sets: what was measured.
        measured: by set name, then ``model`` and, if there is one, ``baseline``.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    result = {}
    for data in sets:
        model, baseline = measured[data.name]["model"], measured[data.name].get("baseline")
        ends = interval(model, baseline, resamples, seed) if baseline else None
        result[data.name] = {
            "kind": data.kind,
            "splits": list(data.splits),
            "metric": data.metric,
            "items": items(model),
            "score": model.score,
            "baseline": baseline.score if baseline else None,
            "delta": model.score - baseline.score if baseline else None,
            "ci95": list(ends) if ends else None,
        }
    return result


@contextlib.contextmanager
def _library() -> Iterator[None]:
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
