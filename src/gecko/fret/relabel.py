"""Step 3 of FRet: the same LLM scores each (query, candidate) by query likelihood and by relevance classification.

``QL(q, p) = log LLM(q | p, P_QL)`` is kept as a sum and a number of tokens; ``RC(q, p)`` as the log-odds of the relevant
label against the other. Pairs are grouped by passage, so that a passage is read once a prompt for all of its queries.

By default one prompt serves both: QL is read on the query's tokens, RC on the label after them, so the passage and the
query are read once and not twice. Two prompts, as in the paper, are two names in ``[prompts]``.
"""

import math
from collections.abc import Iterator, Sequence

from gecko.llm.base import Group, Judgement, LanguageModel
from gecko.prompts import Prompt
from gecko.records import Passage, Query, Score
from gecko.store import Counts, digest


def prompt_hash(likelihood: Prompt, relevance: Prompt) -> str:
    """One hash for the two prompts that made a score."""
    return digest(likelihood.hash, relevance.hash)


def relabel(
    pairs: Sequence[tuple[Passage, Sequence[Query]]],
    teacher: LanguageModel,
    likelihood: Prompt,
    relevance: Prompt,
    counts: Counts,
) -> Iterator[Score]:
    """Score one shard.

    Args:
        pairs: passages, each with the queries that retrieved it.
        teacher: scores.
        likelihood: P_QL.
        relevance: P_RC; its first label is the relevant one.
        counts: tokens, and the passages that were cut.
    """
    tokens, cut = teacher.usage.tokens, teacher.usage.truncated
    groups = [Group(passage.content, tuple(query.text for query in queries)) for passage, queries in pairs]
    judgements = judge(groups, teacher, likelihood, relevance)
    counts.tokens += teacher.usage.tokens - tokens
    passes = 1 if likelihood.hash == relevance.hash else 2
    counts.notes["passages read in part"] += (teacher.usage.truncated - cut) // passes
    used = prompt_hash(likelihood, relevance)
    for (passage, queries), row in zip(pairs, judgements, strict=True):
        for query, found in zip(queries, row, strict=True):
            yield Score(
                query_id=query.id,
                passage_id=passage.id,
                teacher=teacher.identity,
                prompt_hash=used,
                ql_sum=found.ql_sum,
                ql_tokens=found.ql_tokens,
                rc=found.labels[0] - _logsumexp(found.labels[1:]),
            )


def judge(
    groups: Sequence[Group], teacher: LanguageModel, likelihood: Prompt, relevance: Prompt
) -> list[list[Judgement]]:
    """Both scores of every pair; in one pass where one prompt serves both."""
    if likelihood.hash == relevance.hash:
        return teacher.judge(relevance, groups)
    scores, labels = teacher.score(likelihood, groups), teacher.label_logprobs(relevance, groups)
    return [
        [Judgement(total, count, values) for (total, count), values in zip(row, answers, strict=True)]
        for row, answers in zip(scores, labels, strict=True)
    ]


def _logsumexp(values: Sequence[float]) -> float:
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))
