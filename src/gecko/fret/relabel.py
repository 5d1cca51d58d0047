"""Step 3 of FRet: the same LLM scores each (query, candidate) by query likelihood and by relevance classification.

``QL(q, p) = log LLM(q | p, P_QL)`` is kept as a sum and a number of tokens; ``RC(q, p)`` as the log-odds of the relevant
label against the other. Pairs are grouped by passage, so that a passage is read once a prompt for all of its queries.
"""

import math
from collections.abc import Iterator, Sequence

from gecko.llm.base import Group, LanguageModel
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
    likelihoods = teacher.score(likelihood, groups)
    labels = teacher.label_logprobs(relevance, groups)
    counts.tokens += teacher.usage.tokens - tokens
    counts.notes["passages read in part"] += (teacher.usage.truncated - cut) // 2  # each is read under both prompts
    used = prompt_hash(likelihood, relevance)
    for (passage, queries), ql_row, rc_row in zip(pairs, likelihoods, labels, strict=True):
        for query, (ql_sum, ql_tokens), label in zip(queries, ql_row, rc_row, strict=True):
            yield Score(
                query_id=query.id,
                passage_id=passage.id,
                teacher=teacher.identity,
                prompt_hash=used,
                ql_sum=ql_sum,
                ql_tokens=ql_tokens,
                rc=label[0] - _logsumexp(label[1:]),
            )


def _logsumexp(values: Sequence[float]) -> float:
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))
