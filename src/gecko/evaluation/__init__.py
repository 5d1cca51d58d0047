"""Ranking quality on labelled sets: BEIR folders, exact search, BM25, measures and paired intervals."""

from gecko.evaluation.beir import RetrievalSet, load_beir
from gecko.evaluation.evaluate import SetScores, eval_json, evaluate_retrieval
from gecko.evaluation.metrics import METRICS, bootstrap_ci, per_query

__all__ = [
    "METRICS",
    "RetrievalSet",
    "SetScores",
    "bootstrap_ci",
    "eval_json",
    "evaluate_retrieval",
    "load_beir",
    "per_query",
]
