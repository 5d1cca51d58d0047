"""Models side by side on labelled sets, and the JSON that ``gecko eval`` prints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gecko.core.errors import EvaluationError
from gecko.encoder.nearest import top_k
from gecko.encoder.vectors import Vectors
from gecko.evaluation.beir import RetrievalSet
from gecko.evaluation.bm25 import bm25_run
from gecko.evaluation.cache import SupportsEmbedding
from gecko.evaluation.metrics import METRICS, Array, paired, per_query
from gecko.search.index import BM25_WEIGHT, BY_WORDS, weighted_sum

if TYPE_CHECKING:
    from gecko.evaluation.rerank import Reranker

BM25 = "bm25"
DEPTH = 100  # of every ranking: the deepest measure's
HEADLINE = "ndcg@10"
RERANKED = "+rerank"  # after the label of a model whose first passages a cross-encoder has put in order
HYBRID = "+bm25"  # after that of a model whose ranking is fused with BM25's, as hybrid search does
BEHIND = {"rerank": RERANKED, "hybrid": HYBRID}  # what the JSON calls each


@dataclass(frozen=True)
class SetScores:
    """What was measured on one set, with the evidence.

    ``per_query`` has for each label (a model's, or ``bm25``) and measure (queries,) on 0–1 in the set's query order.
    """

    data: RetrievalSet
    per_query: dict[str, dict[str, Array]]

    def mean(self, label: str, metric: str = HEADLINE) -> float:
        """A measure's mean over the queries, on 0–1."""
        return float(self.per_query[label][metric].mean())


def refuse_equal_names(names: Sequence[str]) -> None:
    """Results are known by their set's name. Raises EvaluationError: two sets have one name."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise EvaluationError(f"several test sets are named {', '.join(twice)}; rename a folder, or measure them apart")


def evaluate_retrieval(
    sets: Sequence[RetrievalSet],
    models: Mapping[str, SupportsEmbedding],
    *,
    bm25: bool = True,
    progress: bool = False,
    rerank: "Reranker | None" = None,
    hybrid: bool = False,
    bm25_weight: float = BM25_WEIGHT,
) -> dict[str, SetScores]:
    """Rank every set's passages for its queries with every model.

    Each model embeds a set's passages and queries once. A query whose id is also a passage's may find that passage, unless
    the set says otherwise.

    Args:
        sets: test sets, with different names.
        models: encoders by label.
        bm25: rank with BM25 too, under the label ``bm25``.
        progress: show a bar when embedding takes long.
        rerank: measure each model's ranking in this order, too, under its label and :data:`RERANKED`.
        hybrid: measure each model's ranking fused with BM25's, too, under its label and :data:`HYBRID`.
        bm25_weight: of BM25 there, as of :func:`gecko.search.index.weighted_sum`.

    Returns:
        scores by set name.

    Raises:
        EvaluationError: two sets have one name, or a model is labelled ``bm25``.
    """
    refuse_equal_names([data.name for data in sets])
    if BM25 in models:
        raise EvaluationError(f"a model cannot be labelled {BM25!r}, which is taken; choose another label")
    scores = {}
    for data in sets:
        measured = {}
        by_words: dict[str, dict[str, float]] = {}
        if bm25 or hybrid:
            depth = BY_WORDS if hybrid else DEPTH
            by_words = _without_own(data, bm25_run(data.passages, data.queries, depth + data.exclude_own), depth)
        for label, encoder in models.items():
            queries, passages = _vectors(data, encoder, progress)
            found = _nearest(data, queries, passages, DEPTH)
            measured[label] = per_query(found, data.qrels)
            if rerank is not None:
                measured[label + RERANKED] = per_query(rerank(data, found), data.qrels)
            if hybrid:
                fused = _fused(data, queries, passages, found, by_words, bm25_weight)
                measured[label + HYBRID] = per_query(fused, data.qrels)
        if bm25:
            measured[BM25] = per_query(by_words, data.qrels)
        scores[data.name] = SetScores(data, measured)
    return scores


def dense_run(
    data: RetrievalSet, encoder: SupportsEmbedding, k: int = DEPTH, *, progress: bool = False
) -> dict[str, dict[str, float]]:
    """Cosine by query id and passage id of the best k passages, best first."""
    return _nearest(data, *_vectors(data, encoder, progress), k)


def _vectors(data: RetrievalSet, encoder: SupportsEmbedding, progress: bool) -> tuple[Vectors, Vectors]:
    """(queries, D) and (passages, D)."""
    if data.symmetric and encoder.form == "unified":
        passages = encoder.queries([passage.text for passage in data.passages], data.task, progress=progress)
    else:
        passages = encoder.passages(data.passages, progress=progress)
    return encoder.queries([text for _, text in data.queries], data.task, progress=progress), passages


def _nearest(data: RetrievalSet, queries: Vectors, passages: Vectors, k: int) -> dict[str, dict[str, float]]:
    places, cosines = top_k(queries, passages, k + data.exclude_own)
    found = {
        key: {data.passages[place].id: score for place, score in zip(row, line, strict=True)}
        for (key, _), row, line in zip(data.queries, places.tolist(), cosines.tolist(), strict=True)
    }
    return _without_own(data, found, k)


def _fused(
    data: RetrievalSet,
    queries: Vectors,
    passages: Vectors,
    found: Mapping[str, Mapping[str, float]],
    by_words: Mapping[str, Mapping[str, float]],
    weight: float,
) -> dict[str, dict[str, float]]:
    """The first ``DEPTH`` of each query by cosine and BM25, as :meth:`gecko.search.Index.search` fuses them."""
    place = {passage.id: row for row, passage in enumerate(data.passages)}
    fused = {}
    for (key, _), vector in zip(data.queries, queries, strict=True):
        others = [one for one in by_words[key] if one not in found[key]]
        cosines = zip(others, (passages[[place[one] for one in others]] @ vector).tolist(), strict=True)
        fused[key] = dict(weighted_sum({**found[key], **dict(cosines)}, by_words[key], weight)[:DEPTH])
    return fused


def _without_own(data: RetrievalSet, run: dict[str, dict[str, float]], k: int) -> dict[str, dict[str, float]]:
    if not data.exclude_own:
        return run
    return {
        key: dict([(passage, score) for passage, score in row.items() if passage != key][:k])
        for key, row in run.items()
    }


def eval_json(
    scores: Mapping[str, SetScores], model: str, baseline: str | None = None, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """The result of :func:`evaluate_retrieval` as ``gecko eval --json`` prints it; numbers on 0–1.

    ``delta`` is model minus baseline (their labels) in nDCG@10 and ``ci95`` its paired interval; both are null without a
    baseline, as is ``bm25`` where it was not run. With several sets, ``macro`` is their unweighted mean. Where the
    rankings were reranked, ``rerank`` has the same numbers of both behind the reranker, and in ``gain`` what it changes
    of each with its interval; where they were fused with BM25's, ``hybrid`` has them likewise. Raises EvaluationError: a
    label was not measured.
    """
    for name, score in scores.items():
        for label in (model, baseline):
            if label is not None and label not in score.per_query:
                raise EvaluationError(f"{name}: {label!r} was not measured; there are {', '.join(score.per_query)}")
    rows = {name: _with_behind([score], model, baseline, resamples, seed) for name, score in scores.items()}
    result: dict[str, Any] = {"sets": rows}
    for name, row in rows.items():
        if unknown := scores[name].data.unknown_documents:
            row["unknown_documents"] = unknown
        if unknown := scores[name].data.unknown_queries:
            row["unknown_queries"] = unknown
    if len(scores) > 1:
        result["macro"] = _with_behind(list(scores.values()), model, baseline, resamples, seed)
    return result


def _with_behind(
    scores: Sequence[SetScores], model: str, baseline: str | None, resamples: int, seed: int
) -> dict[str, Any]:
    row = _row(scores, model, baseline, resamples, seed)
    for key, mark in BEHIND.items():
        if any(model + mark not in score.per_query for score in scores):
            continue
        behind = _row(scores, model + mark, baseline and baseline + mark, resamples, seed)
        gain = {}
        for name, label in (("model", model), ("baseline", baseline)):
            if label is not None:
                own = _row(scores, label + mark, label, resamples, seed)
                gain[name] = {"delta": own["delta"], "ci95": own["ci95"]}
        row[key] = behind | {"gain": gain}
    return row


def _row(scores: Sequence[SetScores], model: str, baseline: str | None, resamples: int, seed: int) -> dict[str, Any]:
    def mean(label: str, metric: str = HEADLINE) -> float:
        return sum(score.mean(label, metric) for score in scores) / len(scores)

    row: dict[str, Any] = {
        "queries": sum(len(score.data.queries) for score in scores),
        HEADLINE: mean(model),
        "baseline": None,
        "delta": None,
        "ci95": None,
        "bm25": mean(BM25) if all(BM25 in score.per_query for score in scores) else None,
    }
    if baseline is not None:
        differences = [score.per_query[model][HEADLINE] - score.per_query[baseline][HEADLINE] for score in scores]
        row |= {"baseline": mean(baseline), **paired(differences, resamples, seed)}
    return row | {metric: mean(model, metric) for metric in METRICS if metric != HEADLINE}
