"""What a model gets on task sets, with paired intervals.

The protocol, the splits of its experiments and the score are mteb's own, so a number here is the number that MTEB prints.
What mteb leaves on the way (similarities, predictions, rankings) is kept as evidence, from which the intervals are computed.
"""

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gecko.core.errors import EvaluationError
from gecko.core.records import Text
from gecko.evaluation.cache import KeptEmbeddings
from gecko.evaluation.metrics import Array, per_query, resampled_means
from gecko.evaluation.tasks import TaskSet, library

RANKED_RESAMPLES = 1000  # of a statistic that has to be computed anew each time


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
    """What one model got on one set: mteb's score, the mean over splits and subsets, and the evidence for each of them.

    There is no evidence where mteb leaves nothing from which the score can be made again.
    """

    score: float
    evidence: list[Means | Pairs] | None


def measure(data: TaskSet, embeddings: KeptEmbeddings) -> Measured:
    """Run a set's task on a model, as mteb does, with the same random draws for every model.

    Raises EvaluationError: mteb cannot run the task.
    """
    task = data.task
    scores: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    with library(), tempfile.TemporaryDirectory() as folder:
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
                    items = []
                    for batch in batches:
                        bodies = batch.get("body", batch["text"])
                        titles = batch.get("title", [""] * len(bodies))
                        items += [Text("", title, body) for title, body in zip(titles, bodies, strict=True)]
                return np.asarray(embeddings.passages(items))
            # mteb's own order of looking for a prompt
            return np.asarray(embeddings.symmetric(texts, prompt, (task_metadata.name, task_metadata.type)))

    return Model()


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
    """95 % percentile interval (ends on 0–1) of model minus baseline, both resampled in the same items; none: no evidence.

    Splits and subsets weigh the same. A mean is resampled ``resamples`` times, a statistic of pairs at most 1,000 times.
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

    ``measured`` is by set name, then ``model`` and, if there is one, ``baseline``.
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
