"""Which passages the teacher writes queries for, and how many of them the budget buys.

The paper draws seeds at random. Here they are drawn in neighbourhoods: a random passage and the passages nearest to it.
The queries of one neighbourhood retrieve largely the same candidates, so each candidate is read once for many queries,
which cuts the tokens of relabelling by about a third. ``neighbourhood = 1`` is the paper's way.

The order is fixed by the corpus and the generator alone, so a larger number of seeds begins with a smaller one: a run can
grow. Once every passage was a seed, the neighbourhoods come again, without those that are held out. Where the corpus itself
has grown, the seeds that the run has paid for come first, and the others are drawn from what is left.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gecko.config.stages import GenerateConfig, MineConfig, RelabelConfig
from gecko.core.errors import CorpusError
from gecko.core.records import Passage
from gecko.fret.answered import QUERIES_A_REQUEST

# Measured on generated queries: tokens of a query, of the control text around it, of a written answer.
QUERY_TOKENS = 14
CONTROL_TOKENS = 8
# The queries of a neighbourhood wander: together they retrieve this many times the passages that their seeds do.
SPREAD = 1.5
WRITTEN_TOKENS = 34


@dataclass(frozen=True)
class Seed:
    """A passage to write a query for, for the first time or (``round`` from 1) again. A neighbourhood is in one split."""

    passage_id: str
    split: str
    round: int = 0


@dataclass(frozen=True)
class Cost:
    """What seeds cost a teacher: tokens that it reads, ``generate_read`` of them for writing queries, and that it writes.

    ``requests`` is about how many judge, where the queries of a passage share one; else 0.
    """

    read: int
    generate_read: int
    written: int
    requests: int = 0


@dataclass
class Reading:
    """Tokens that a teacher reads to judge queries, group by group; a passage is read once for all of them.

    ``passes`` is 1 if one prompt gives both scores, else 2. A teacher that reads each call in full reads all prompts,
    ``alone`` tokens, and may get the queries of a passage in one call (``shared``); any other reads them once.
    """

    passes: int
    alone: int | None
    shared: bool = False
    tokens: int = 0
    _seen: set[Any] = field(default_factory=set)

    def add(self, queries: Iterable[tuple[int, Sequence[Any]]], lengths: Mapping[Any, int] | np.ndarray) -> int:
        """Read a group too: of each query its tokens and its candidates, whose ``lengths`` are looked up. The new total."""
        asked = list(queries)
        retrieved = [candidate for _, candidates in asked for candidate in candidates]
        each = self.alone is not None and not self.shared
        read = retrieved if each else set(retrieved) - self._seen
        self._seen.update(read)
        tails = sum((words + CONTROL_TOKENS) * len(candidates) for words, candidates in asked)
        self.tokens += self.passes * (int(sum(lengths[candidate] for candidate in read)) + tails)
        self.tokens += (self.alone or 0) * len(read)
        return self.tokens


def draw_seeds(
    passages: Sequence[Passage],
    vectors: np.ndarray,
    config: GenerateConfig,
    rng: np.random.Generator,
    limit: int | None = None,
    taken: Collection[str] = (),
    first: Sequence[Sequence[Seed]] = (),
) -> list[list[Seed]]:
    """Passages that can be a seed, in random neighbourhoods, in the order in which they are to be used.

    ``vectors`` are the start model's, (passages, d) unit rows. The drawing stops at ``limit`` seeds; none: every passage
    that can be one, ``config.rounds`` times. Passages whose ids are ``taken`` are no seed. The ``first`` neighbourhoods
    begin; what can be no seed (any more) is left out of them. Raises CorpusError: no passage is long enough.
    """
    free = np.array([len(passage.text) >= config.min_seed_chars and passage.id not in taken for passage in passages])
    if not free.any():
        raise CorpusError(
            f"none of the {len(passages)} passages has {config.min_seed_chars} characters; lower generate.min_seed_chars"
        )
    begun = _still_free(first, passages, free)
    so_far = sum(map(len, begun))
    blocks: list[list[int]] = []
    for centre in rng.permutation(len(passages)):
        if limit is not None and so_far >= limit:
            break
        if not free[centre]:
            continue
        chosen = [int(centre)]
        if config.neighbourhood > 1:
            near = vectors @ vectors[centre]
            near[~free] = -np.inf
            near[centre] = np.inf
            size = min(config.neighbourhood, int(free.sum()))
            chosen = np.argsort(-near, kind="stable")[:size].tolist()
            free[chosen] = False
        blocks.append(chosen)
        so_far += len(chosen)
    held = _heldout(len(begun) + len(blocks), config)
    drawn = begun + [
        [Seed(passages[index].id, "heldout" if number in held else "train") for index in block]
        for number, block in enumerate(blocks, start=len(begun))
    ]
    again = [block for block in drawn if block[0].split == "train"]
    total, repeat = sum(map(len, drawn)), 0
    while again and not _enough(repeat + 1, total, limit, config):
        repeat += 1
        for block in again:
            if limit is not None and total >= limit:
                break
            drawn.append([replace(seed, round=repeat) for seed in block])
            total += len(block)
    return drawn


def _still_free(first: Sequence[Sequence[Seed]], passages: Sequence[Passage], free: np.ndarray) -> list[list[Seed]]:
    """The neighbourhoods without those seeds that are no longer ``free``; the others cease to be."""
    place = {passage.id: index for index, passage in enumerate(passages)} if first else {}
    blocks = [[seed for seed in block if seed.passage_id in place and free[place[seed.passage_id]]] for block in first]
    for block in blocks:
        free[[place[seed.passage_id] for seed in block]] = False
    return [block for block in blocks if block]


def _enough(rounds: int, seeds: int, limit: int | None, config: GenerateConfig) -> bool:
    if limit is not None and seeds >= limit:
        return True
    if config.rounds is not None:
        return rounds >= config.rounds
    return config.queries is None or limit is None  # nobody has said how many there should be


def _heldout(blocks: int, config: GenerateConfig) -> set[int]:
    """Every k-th neighbourhood, so that any beginning of the list holds the same share."""
    if config.heldout == 0 or blocks < 2:
        return set()
    step = max(2, round(1 / config.heldout))
    most = config.heldout_max // config.neighbourhood
    return set(list(range(1, blocks, step))[:most])


def within_count(blocks: Sequence[Sequence[Seed]], count: int) -> list[list[Seed]]:
    """The first ``count`` seeds, with the last neighbourhood cut; at least one held-out seed if there is a second block."""
    chosen: list[list[Seed]] = []
    left = count
    for block in blocks:
        if left <= 0:
            break
        chosen.append(list(block[:left]))
        left -= len(block)
    return chosen


def most_seeds(budget: float, read: float, written: float, mine: MineConfig, config: GenerateConfig) -> int:
    """More seeds than a budget buys: two neighbourhoods, or what it would buy if passages and prompts cost nothing.

    ``read`` and ``written`` are the prices of a token in the budget's unit.
    """
    least = WRITTEN_TOKENS * written + mine.n * (QUERY_TOKENS + CONTROL_TOKENS) * read
    return max(2 * config.neighbourhood, math.ceil(max(0.0, budget) / least))


def prefix_costs(
    blocks: Sequence[Sequence[Seed]],
    neighbours: dict[str, list[int]],
    passage_tokens: np.ndarray,
    relabel: RelabelConfig,
    mine: MineConfig,
    passes: int,
    alone: tuple[int, int] | None = None,
    shared: bool = False,
) -> list[Cost]:
    """What the first 1, 2, 3 … neighbourhoods cost together, each seed's nearest passages standing in for its candidates.

    ``neighbours`` has for each seed's id the indices of its N nearest passages, and ``passage_tokens`` is (passages,).
    ``passes`` is 1 if one prompt gives both scores, else 2. ``alone`` are the tokens of the prompt that writes, and of
    all prompts that judge, for a teacher that reads each call in full, where ``shared`` says whether it gets the queries
    of a passage in one; none: it reads its prompts once, and a passage once for all its queries.
    """
    writing, judged = alone or (0, 0)
    each = alone is not None and not shared
    read_length = np.minimum(passage_tokens, relabel.passage_tokens)
    candidates = calls = pairs = for_writing = written = 0
    seen: set[int] = set()
    costs = []
    for block in blocks:
        for seed in block:
            near = neighbours[seed.passage_id]
            new = [index for index in near if index not in seen]
            seen.update(new)
            for_writing += int(read_length[near[0]]) + CONTROL_TOKENS + writing
            candidates += int(read_length[near if each else new].sum())
            calls += len(near if each else new)
            pairs += mine.n
            written += WRITTEN_TOKENS
        spread = 1.0 if each else SPREAD
        if shared:
            most = min(pairs, len(passage_tokens)) / calls
            spread = max(min(SPREAD, most), pairs / calls / QUERIES_A_REQUEST)
        requests = round(spread * calls)
        judging = passes * (int(spread * candidates) + pairs * (QUERY_TOKENS + CONTROL_TOKENS)) + requests * judged
        costs.append(Cost(judging + for_writing, for_writing, written, requests if shared else 0))
    return costs
