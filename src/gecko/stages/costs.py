"""What a run costs the teacher: tokens that it reads of passages, queries and prompts."""

import math
from collections.abc import Sequence

import numpy as np

from gecko.core.files import digest
from gecko.encoder.nearest import top_k
from gecko.fret.judging import FormName
from gecko.fret.seeds import Reading
from gecko.llm import registry
from gecko.run.shards import build_json
from gecko.stages.context import Context
from gecko.stages.embed import vectors

WRITTEN_A_PAIR: dict[FormName, int] = {"logprobs": 1, "graded": 6, "listwise": 8}  # tokens
PAIRS_A_REQUEST = 5  # about, where candidates are put in order
CHARACTERS_A_TOKEN = 4  # of English
TOKENISED = 1024  # texts at a time


def reads_per_passage(context: Context) -> int:
    """How often a passage is read for judging it: once if one prompt gives both scores, or grades are answered.

    Each of the two orders of a query reads it, twice where windows overlap.
    """
    if context.form.name == "graded":
        return 1
    if context.form.name == "listwise":
        return 2 if context.config.mine.n <= context.config.relabel.window else 4
    return 1 if context.prompts["likelihood"].hash == context.prompts["relevance"].hash else 2


def prompt_overhead(context: Context) -> tuple[int, int] | None:
    """About the tokens of the prompts that write and that judge, for a teacher that reads each call in full."""
    if registry.known(context.config.llm).reads_once:
        return None

    def tokens(role: str) -> int:
        prompt = context.prompts[role]
        return (len(prompt.text) + sum(len(content) for _, content in prompt.messages)) // CHARACTERS_A_TOKEN

    judging = sum({context.prompts[role].hash: tokens(role) for role in context.form.roles}.values())
    return tokens("generate"), math.ceil(judging / PAIRS_A_REQUEST) if context.form.name == "listwise" else judging


def shares_requests(context: Context) -> bool:
    """Whether a teacher that reads each call in full gets all queries of a passage in one."""
    return context.form.name == "graded" and not registry.known(context.config.llm).reads_once


def answered_tokens(context: Context, queries: int) -> int:
    """About the tokens that judging so many queries writes; thinking, which nobody knows before, is not among them."""
    return queries * context.config.mine.n * WRITTEN_A_PAIR[context.form.name]


def new_reading(context: Context) -> Reading:
    """The count of what judging reads, at its beginning."""
    overhead = prompt_overhead(context)
    return Reading(reads_per_passage(context), overhead and overhead[1], shares_requests(context))


def token_counts(context: Context, texts: Sequence[str]) -> list[int]:
    """Tokens that are read of each text; counted a block at a time, since a tokenizer holds much."""
    limit = context.config.relabel.passage_tokens
    most = 16 * limit  # characters; what is behind them is not read
    return [
        min(count, limit)
        for start in range(0, len(texts), TOKENISED)
        for count in context.models.teacher.count_tokens([text[:most] for text in texts[start : start + TOKENISED]])
    ]


def kept_token_counts(context: Context, folder: str, texts: Sequence[str], ids: Sequence[str]) -> dict[str, int]:
    """:func:`token_counts` by id; kept in a folder of the run, so that a finished run needs no teacher."""
    parts = {
        "texts": digest(*texts),
        **context.teacher_parts(),
        "passage tokens": str(context.config.relabel.passage_tokens),
    }
    counts = build_json(context.run, folder, parts, "tokens.json", lambda: token_counts(context, texts))
    return dict(zip(ids, counts, strict=True))


def neighbours_and_lengths(context: Context, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of the N nearest passages to each vector, and of every passage the tokens, 0 if it is none of them."""
    near, _ = top_k(asked, np.asarray(vectors(context)), context.config.mine.n)
    read = np.unique(near)
    lengths = np.zeros(len(context.passages), dtype=np.int64)
    lengths[read] = token_counts(context, [context.passages[index].content for index in read])
    return near, lengths
