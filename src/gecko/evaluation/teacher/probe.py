"""Is this language model fit to teach? A bad teacher makes an embedder worse, so a run stops before it is paid for.

A bad teacher also writes bad queries, and then agrees with itself, so its own queries alone cannot judge it. Three
questions are asked: do its generations parse, does the start model find their seeds again, and, on a small reranking
probe that ships with the package, is the teacher's order worse than the start model's?
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gecko.config.stages import CheckConfig
from gecko.core.counts import drop_words
from gecko.core.errors import TeacherError, TeacherRefused
from gecko.core.progress import Silent, Ui
from gecko.core.text import difference, points
from gecko.encoder import Encoder
from gecko.evaluation.beir import RetrievalSet
from gecko.evaluation.builtin import probe
from gecko.evaluation.evaluate import dense_run
from gecko.evaluation.metrics import bootstrap_ci
from gecko.evaluation.teacher.answers import Form, Judge, orders
from gecko.fret.judging import FormName
from gecko.llm.base import LanguageModel
from gecko.prompts import Prompt

TOLD_BY = 10  # fewer texts than these tell no share
INSTEAD = (
    "Take a stronger teacher with --llm (in a stage's own command --set llm=SPEC), or go on all the same with "
    "--accept-teacher"
)


@dataclass(frozen=True)
class ProbeResult:
    """What the probe found; nDCG@10 on 0–1.

    Attributes:
        queries: how many.
        start: the start model's order.
        ql, rc, rrf: the teacher's orders; it may have RC alone.
        delta, low, high: RRF (or RC, where it is alone) minus start, paired, with its 95 % interval.
        seconds, tokens: what asking took; ``cached``: every answer of the teacher was known from an earlier run.
    """

    queries: int
    start: float
    ql: float | None
    rc: float
    rrf: float | None
    delta: float
    low: float
    high: float
    seconds: float
    tokens: int
    cached: bool


def run_probe(
    teacher: LanguageModel,
    likelihood: Prompt,
    relevance: Prompt,
    start: "Encoder",
    *,
    passage_tokens: int,
    precision: str = "auto",
    resamples: int,
    seed: int,
    ui: Ui | None = None,
    judging: FormName = "logprobs",
    window: int = 20,
) -> ProbeResult:
    """Rerank the probe's passages with the teacher, which is asked only what it was not asked before.

    ``judging`` is how; in words, ``likelihood`` is the prompt that asks for grades or an order. Raises TeacherError: it
    refused a pair, or gave a score that is no number. ConfigError: there is no cache for its answers.
    """
    topics, form = probe(), Form("probe", likelihood, relevance, judging)
    judge = Judge(teacher.identity, lambda: teacher, passage_tokens, ui or Silent(), precision, window)
    began, before = time.perf_counter(), judge.teacher.usage.tokens  # and what this very teacher can do is noted
    with judge.alone(wait=True):
        asked = _ask(topics, form, judge)
    seconds, tokens = time.perf_counter() - began, teacher.usage.tokens - before
    found = [orders(topic, dense_run(topic, start, len(topic.passages)), form, judge) for topic in topics]
    joined = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
    delta, low, high = bootstrap_ci(joined["rrf" if "rrf" in joined else "rc"] - joined["retriever"], resamples, seed)
    means = {name: float(values.mean()) for name, values in joined.items()}
    return ProbeResult(
        queries=len(joined["retriever"]),
        start=means["retriever"],
        ql=means.get("ql"),
        rc=means["rc"],
        rrf=means.get("rrf"),
        delta=delta,
        low=low,
        high=high,
        seconds=seconds if asked else 0.0,
        tokens=tokens,
        cached=not asked,
    )


def _ask(topics: Sequence[RetrievalSet], form: Form, judge: Judge) -> int:
    """Have every pair of the probe answered, and say how many answers were not known."""
    groups = [(passage, [text for _, text in topic.queries]) for topic in topics for passage in topic.passages]
    lists = {text: topic.passages for topic in topics for _, text in topic.queries}
    asked = judge.ask(form, groups, "reranking probe", lists)
    pairs = [(text, passage) for passage, texts in groups for text in texts]
    if refused := sum(judge.refused(form, text, passage) for text, passage in pairs):
        raise TeacherError(
            f"{judge.known['name']} refused {refused:,} of {len(pairs):,} pairs of the reranking probe, texts on everyday "
            "subjects; take another teacher, or leave the check out with --set check.enabled=false"
        )
    return asked


def refuse_by_probe(result: ProbeResult, teacher: str) -> None:
    """Stop if the teacher orders the probe worse than the start model.

    Raises TeacherRefused: the upper end of the interval is below 0.
    """
    if result.high < 0:
        raise TeacherRefused(
            f"{teacher} would make the embedder worse: on the reranking probe its order has nDCG@10 "
            f"{points(result.start + result.delta)} against {points(result.start)} for the start model "
            f"({difference(result.delta, (result.low, result.high))}). {INSTEAD}"
        )


def refuse_by_parsing(parsed: int, asked: int, drops: dict[str, int], config: CheckConfig, teacher: str) -> None:
    """Stop if too few generations parse, whether or not a query that does is of use.

    Raises TeacherRefused: the share is below ``config.min_parsed``, of enough to tell.
    """
    if asked >= TOLD_BY and parsed / asked < config.min_parsed:
        reasons = drop_words(dict(Counter(drops).most_common()))
        raise TeacherRefused(
            f"only {parsed} of {asked} generations of {teacher} parse ({reasons}), fewer than "
            f"{config.min_parsed:.0%}. {INSTEAD}"
        )


def refuse_by_seeds(found: int, asked: int, n: int, config: CheckConfig, teacher: str) -> None:
    """Stop if the start model does not find the passages that the queries were written for.

    Raises TeacherRefused: the share is below ``config.min_seed_found``, of enough to tell.
    """
    if asked >= TOLD_BY and found / asked < config.min_seed_found:
        raise TeacherRefused(
            f"only {found} of {asked} queries by {teacher} find their own passage among the start model's first {n}, fewer "
            f"than {config.min_seed_found:.0%}: they say too little about it. {INSTEAD}"
        )
