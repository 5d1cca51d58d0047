"""Step 3 of FRet: the same LLM scores each (query, candidate) by query likelihood and by relevance classification.

``QL(q, p) = log LLM(q | p, P_QL)`` is kept as a sum and a number of tokens; ``RC(q, p)`` as the log-odds of the relevant
label against the other, or of the expected grade where the prompt's labels are grades. Pairs are grouped by passage, so
that a passage is read once a prompt for all of its queries. A prompt may name a neutral query: a passage to which a teacher
says Yes whatever is asked then gains nothing by it.

By default one prompt serves both: QL is read on the query's tokens, RC on the label after them, so the passage and the
query are read once and not twice. Two prompts, as in the paper, are two names in ``[prompts]``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from gecko.core.counts import Counts
from gecko.core.errors import TeacherError
from gecko.core.files import digest
from gecko.core.records import Passage, Query, Score
from gecko.llm.base import Group, Judgement, LanguageModel
from gecko.prompts import Prompt, shielded

REFUSED = "pairs that the teacher refused"  # in what relabel counts


def prompt_hash(likelihood: Prompt, relevance: Prompt) -> str:
    """One hash for the two prompts that made a score."""
    return digest(likelihood.hash, relevance.hash)


def relabel(
    pairs: Sequence[tuple[Passage, Sequence[Query]]],
    teacher: LanguageModel,
    likelihood: Prompt,
    relevance: Prompt,
    counts: Counts,
    known: Mapping[tuple[str, str], Score] | None = None,
) -> Iterator[Score]:
    """Score one shard: passages, each with the queries that retrieved it, by P_QL and P_RC.

    ``known`` has scores by query id and passage id that were paid for before; the teacher is not asked for them.
    ``counts`` gets tokens, and the passages that were cut. Yields one score a pair, but for those that the teacher
    refused, which are counted by reason. Raises TeacherError: a score is no number, though nothing was refused.
    """
    known = known or {}
    tokens, cut, refused = teacher.usage.tokens, teacher.usage.truncated, teacher.usage.refused
    told = len(teacher.usage.refusals)
    asked = [
        (passage, fresh)
        for passage, queries in pairs
        if (fresh := [query for query in queries if (query.id, passage.id) not in known])
    ]
    groups = [Group(passage.content, tuple(query.text for query in queries)) for passage, queries in asked]
    judgements = judge(groups, teacher, likelihood, relevance) if groups else []
    counts.tokens += teacher.usage.tokens - tokens
    passes = 1 if likelihood.hash == relevance.hash or not teacher.can_score else 2
    counts.notes["passages read in part"] += (teacher.usage.truncated - cut) // passes
    used = prompt_hash(likelihood, relevance)
    scores = {
        (query.id, passage.id): Score(
            query_id=query.id,
            passage_id=passage.id,
            teacher=teacher.identity,
            prompt_hash=used,
            ql_sum=found.ql_sum,
            ql_tokens=found.ql_tokens,
            rc=relevance_logit(relevance, found.labels),
        )
        for (passage, queries), row in zip(asked, judgements, strict=True)
        for query, found in zip(queries, row, strict=True)
    }
    missing = {pair for pair, score in scores.items() if math.isnan(score.ql_sum) or math.isnan(score.rc)}
    if missing:
        if teacher.usage.refused == refused:
            query_id, passage_id = min(missing)
            raise TeacherError(
                f"{teacher.name} gave a score that is no number for query {query_id} and passage {passage_id}; its weights "
                "or the precision that it runs in are at fault (relabel.precision)"
            )
        counts.notes[REFUSED] += len(missing)
        why = {asked[refusal.place][0].id: refusal for refusal in teacher.usage.refusals[told:]}
        for query_id, passage_id in sorted(missing):
            if passage_id in why:
                counts.drop(why[passage_id].reason, f"query {query_id}, passage {passage_id}: {why[passage_id].said}")
    for passage, queries in pairs:
        for query in queries:
            pair = (query.id, passage.id)
            if pair not in missing:
                yield scores[pair] if pair in scores else known[pair]


def judge(
    groups: Sequence[Group], teacher: LanguageModel, likelihood: Prompt, relevance: Prompt
) -> list[list[Judgement]]:
    """Both scores of every pair, in one pass where one prompt serves both; no QL (of 0 tokens) if the teacher has none."""
    if not teacher.can_score:
        return [[Judgement(0.0, 0, labels) for labels in row] for row in read_labels(groups, teacher, relevance)]
    if likelihood.hash == relevance.hash:
        return read_both(groups, teacher, relevance)
    scores = teacher.score(likelihood, shielded_groups(likelihood, groups))
    labels = read_labels(groups, teacher, relevance)
    return [
        [Judgement(total, count, values) for (total, count), values in zip(row, answers, strict=True)]
        for row, answers in zip(scores, labels, strict=True)
    ]


def read_both(groups: Sequence[Group], teacher: LanguageModel, prompt: Prompt) -> list[list[Judgement]]:
    """Likelihood and labels of every pair under one prompt, the labels calibrated if the prompt has a neutral query."""
    rows = teacher.judge(prompt, with_neutral(prompt, shielded_groups(prompt, groups)))
    if not prompt.neutral:
        return rows
    labels = [calibrated([found.labels for found in row]) for row in rows]
    return [
        [replace(found, labels=values) for found, values in zip(row[:-1], answers, strict=True)]
        for row, answers in zip(rows, labels, strict=True)
    ]


def read_labels(groups: Sequence[Group], teacher: LanguageModel, prompt: Prompt) -> list[list[tuple[float, ...]]]:
    """Log-probabilities of the labels of every pair, calibrated if the prompt has a neutral query."""
    rows = teacher.label_logprobs(prompt, with_neutral(prompt, shielded_groups(prompt, groups)))
    return [calibrated(row) for row in rows] if prompt.neutral else rows


def with_neutral(prompt: Prompt, groups: Sequence[Group]) -> list[Group]:
    """The groups with the prompt's neutral query, if it has one, as the last of each: one more short tail a passage."""
    if not prompt.neutral:
        return list(groups)
    return [Group(group.passage, (*group.queries, prompt.neutral)) for group in groups]


def calibrated(row: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """The rows but the last, which is the neutral query's, less the last: ``log p(label | q, p) / p(label | neutral, p)``."""
    *found, neutral = row
    return [tuple(value - base for value, base in zip(labels, neutral, strict=True)) for labels in found]


def shielded_groups(prompt: Prompt, groups: Sequence[Group]) -> list[Group]:
    """Groups whose texts cannot pass for lines of the prompt."""
    return [
        Group(shielded(prompt, group.passage), tuple(shielded(prompt, query) for query in group.queries))
        for group in groups
    ]


def relevance_logit(prompt: Prompt, labels: Sequence[float]) -> float:
    """``RC(q, p)`` from the log-probabilities of the prompt's labels: the log-odds of the expected relevance.

    With grades ``v`` the expectation ``E = sum p v / sum p`` is brought to [0, 1] by the smallest and the largest grade,
    and ``log(E / (1 - E))`` is returned: 0 is the middle of the scale. Without grades the first label counts 1 and the
    others 0, and this is the log-odds of the first label against the others.
    """
    grades = prompt.values or (1.0, *[0.0] * (len(labels) - 1))
    low, high = min(grades), max(grades)
    above = [value + math.log(grade - low) for value, grade in zip(labels, grades, strict=True) if grade > low]
    below = [value + math.log(high - grade) for value, grade in zip(labels, grades, strict=True) if grade < high]
    return _logsumexp(above) - _logsumexp(below)


def _logsumexp(values: Sequence[float]) -> float:
    most = max(values)
    if most == -math.inf:
        return most
    return most + math.log(sum(math.exp(value - most) for value in values))
