"""Stage ``plan``: which seeds a run writes queries for, so that a budget is kept."""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from gecko.config.run import parse_budget
from gecko.core.errors import ConfigError
from gecko.core.files import digest
from gecko.core.records import Query
from gecko.fret.release import heldout_seeds, release_identity
from gecko.fret.seeds import Cost, Seed, draw_seeds, most_seeds, prefix_costs, within_count
from gecko.fret.view import ASKED, asked_queries
from gecko.run.shards import build_json
from gecko.stages import check
from gecko.stages.context import Context, once
from gecko.stages.costs import (
    neighbours_and_lengths,
    new_reading,
    prompt_overhead,
    reads_per_passage,
    shares_requests,
    token_counts,
)
from gecko.stages.embed import EMBED, vectors
from gecko.stages.ingest import INGEST
from gecko.stages.reuse import PLAN_FILE, paid_seeds
from gecko.stages.speed import measure
from gecko.stages.stage import Stage, section, value
from gecko.stages.user_queries import USER_QUERIES

MOST_SEEDS = 50_000  # considered for a budget; more than any single machine has time for
LEAST_QUERIES = 4


@dataclass(frozen=True)
class Plan:
    """Which seeds are used, and what they were expected to cost. Measured once a run and then kept.

    Attributes:
        blocks: neighbourhoods of seeds, in order.
        relabel_tokens: what relabelling may read; none: no limit. Queries that people asked come first.
        read_speed, write_speed: tokens a second; 0 where nothing was measured.
        expected: tokens to read and to write.
        asked: how many of the queries that people asked are to be judged.
    """

    blocks: list[list[Seed]]
    relabel_tokens: int | None
    read_speed: float
    write_speed: float
    expected: Cost
    asked: int = 0


@once
def make(context: Context) -> Plan:
    """The seeds of the run. Speeds are measured when the plan is first made, and never again.

    Raises ConfigError: the budget is too small for anything.
    """
    parts = PLAN.parts(context)
    raw = build_json(
        context.run, PLAN.name, parts, PLAN_FILE, lambda: asdict(new_plan(context, asked_queries(context.run)))
    )
    blocks = [[Seed(**seed) for seed in block] for block in raw["blocks"]]
    return Plan(**raw | {"blocks": blocks, "expected": Cost(**raw["expected"])})


def released_parts(context: Context) -> dict[str, str]:
    """What released rows add to a fingerprint: nothing where there are none."""
    names = context.config.select.released
    return {"released": digest(*map(release_identity, names))} if names else {}


def _depends(context: Context) -> dict[str, str]:
    return {
        **context.teacher_parts("generate"),
        **context.judging_parts(context.form),
        "start model": context.models.start_identity,
        **released_parts(context),
    }


PLAN = Stage(
    name="plan",
    version=1,
    make=make,
    reads={"passages": INGEST, ASKED: USER_QUERIES},
    settings={
        "budget": value("budget"),
        "settings": section("generate"),
        "candidates": value("mine.n"),
        "passage tokens": value("relabel.passage_tokens"),
        "seed": value("seed"),
    },
    depends=_depends,
    after=(EMBED, check.CHECK),
    command="generate",
)


@dataclass(frozen=True)
class _Purse:
    """What is left of a budget, in seconds or tokens, and what a token takes of it."""

    unit: str = ""
    left: float = math.inf
    read_speed: float = 0.0
    write_speed: float = 0.0
    read_price: float = 1.0
    write_price: float = 1.0

    def price(self, cost: Cost) -> float:
        return cost.read * self.read_price + cost.written * self.write_price


def _purse(context: Context) -> _Purse:
    if context.config.budget is None:
        return _Purse()
    unit, amount = parse_budget(context.config.budget)
    left = amount - check.cost(context, unit)
    if unit != "seconds":
        return _Purse(unit, left)
    read_speed, write_speed, measuring = measure(context)
    return _Purse(unit, left - measuring, read_speed, write_speed, 1 / read_speed, 1 / write_speed)


def new_plan(context: Context, people: Sequence[Query]) -> Plan:
    """A plan that is made now, whatever the run has; ``people`` are the queries that people asked.

    Raises ConfigError: the budget is too small for anything.
    """
    config, purse = context.config, _purse(context)
    count = config.generate.queries
    asked, judged, requests = _user_queries(context, people, purse.left / purse.read_price / (1 if count == 0 else 2))
    limited = None if config.budget is None else max(1, int(purse.left / purse.read_price))
    if count == 0:
        return Plan([], limited, purse.read_speed, purse.write_speed, Cost(judged, 0, 0, requests), asked)
    whole = purse.left
    purse = replace(purse, left=purse.left - judged * purse.read_price)
    limit = MOST_SEEDS if count is None else count
    if purse.left < math.inf:  # more than it can buy need not be drawn, and the first are the same
        limit = min(limit, most_seeds(purse.left, purse.read_price, purse.write_price, config.mine, config.generate))
    blocks = _drawn(context, limit)
    costs = _costs_of(context, blocks)
    if config.budget is None:
        return Plan(blocks, None, 0.0, 0.0, _with(costs(blocks)[-1], judged, requests), asked)
    drawn = sum(map(len, blocks))
    blocks, spent = _within_budget(context, blocks, costs, purse, judged)
    whole = max(whole, spent)
    expected = costs(blocks)[-1]
    speeds = f" ({purse.read_speed:.0f} tokens/s read, {purse.write_speed:.0f} written)" if purse.read_speed else ""
    found = sum(map(len, blocks))
    if count is None and found == drawn < limit:
        context.ui.say(
            f"the budget of {config.budget} is more than the {found:,} seeds of the corpus need{speeds}; with "
            "generate.rounds = 2 each of them gives two queries"
        )
    else:
        context.ui.say(f"the budget of {config.budget} buys about {found:,} queries{speeds}")
    writing = expected.generate_read * purse.read_price + expected.written * purse.write_price
    limited = max(1, int((whole - writing) / purse.read_price))
    return Plan(blocks, limited, purse.read_speed, purse.write_speed, _with(expected, judged, requests), asked)


def _with(cost: Cost, judged: int, requests: int) -> Cost:
    """A cost with the tokens that judging people's queries reads, and the requests that it takes."""
    return replace(cost, read=cost.read + judged, requests=cost.requests + requests)


def _drawn(context: Context, limit: int) -> list[list[Seed]]:
    """Neighbourhoods of seeds: at most ``limit`` of them, and ``generate.queries``."""
    config, count = context.config, context.config.generate.queries
    taken = {identifier for spec in config.select.released for identifier in heldout_seeds(spec)}
    rng = np.random.default_rng(config.seed)
    depends = replace(PLAN, reads={"passages": INGEST}).parts(
        context
    )  # an estimate is made before people's queries are
    first = paid_seeds(context.run, depends, context.by_id)
    blocks = draw_seeds(context.passages, np.asarray(vectors(context)), config.generate, rng, limit, taken, first)
    if count is not None:
        blocks = within_count(blocks, count)
        if (found := sum(map(len, blocks))) < min(count, limit):
            context.ui.say(f"generate.queries = {count:,}, but there are only {found:,} seeds; raise generate.rounds")
    return blocks


def _costs_of(context: Context, blocks: Sequence[Sequence[Seed]]) -> Callable[[list[list[Seed]]], list[Cost]]:
    """A function that gives the cost of the first, the first two, … of such neighbourhoods."""
    place: Mapping[str, int] = {passage.id: index for index, passage in enumerate(context.passages)}
    chosen = list(dict.fromkeys(seed.passage_id for block in blocks for seed in block))
    embedded = np.asarray(vectors(context))[[place[identifier] for identifier in chosen]]
    near, lengths = neighbours_and_lengths(context, embedded)
    neighbours = dict(zip(chosen, near.tolist(), strict=True))
    relabel, mine = context.config.relabel, context.config.mine
    passes, overhead, shared = reads_per_passage(context), prompt_overhead(context), shares_requests(context)
    return lambda some: prefix_costs(some, neighbours, lengths, relabel, mine, passes, overhead, shared)


def _within_budget(
    context: Context,
    blocks: list[list[Seed]],
    costs: Callable[[list[list[Seed]]], list[Cost]],
    purse: _Purse,
    judged: int,
) -> tuple[list[list[Seed]], float]:
    """The neighbourhoods that the budget buys, and what is spent at least, beside released rows, if it is too small."""
    config = context.config
    fitting = sum(purse.price(cost) <= purse.left for cost in costs(blocks))
    if fitting >= min(2, len(blocks)):
        return blocks[:fitting], 0.0
    one = purse.price(costs(blocks)[0]) / len(blocks[0])  # less than two neighbourhoods: smaller ones
    queries, least = int(purse.left / one), 0.0
    if queries < LEAST_QUERIES:
        short = (
            f"budget {config.budget} is too small: {max(0.0, purse.left):.0f} {purse.unit} of it are left after checking "
            f"and measuring the teacher{' and for what people asked' if judged else ''}, and {LEAST_QUERIES} queries "
            f"take about {LEAST_QUERIES * one:.0f}"
        )
        if not config.select.released:
            raise ConfigError(f"{short}; raise the budget")
        context.ui.say(f"{short}; they are written all the same, and the other rows are released ones")
        queries, least = LEAST_QUERIES, LEAST_QUERIES * one + judged * purse.read_price
    return within_count(blocks, queries), least


def _user_queries(context: Context, queries: Sequence[Query], most: float) -> tuple[int, int, int]:
    """How many of the ``queries`` that people asked can be judged for ``most`` tokens, and tokens and requests of these.

    The start model's nearest passages stand in for their candidates.
    """
    if not queries:
        return 0, 0, 0
    texts = [query.text for query in queries]
    embedded = context.models.start.queries(texts, [query.task for query in queries])
    near, lengths = neighbours_and_lengths(context, embedded)
    reading, words = new_reading(context), token_counts(context, texts)
    costs = [reading.add([(count, row)], lengths) for count, row in zip(words, near.tolist(), strict=True)]
    fitting = bisect_right(costs, most)

    def requests(found: np.ndarray) -> int:
        return len(np.unique(found)) if shares_requests(context) else 0

    if fitting == len(queries):
        return fitting, costs[-1], requests(near)
    budget = context.config.budget
    part = "" if context.config.generate.queries == 0 else "half of "
    if fitting < (least := min(LEAST_QUERIES, len(costs))):
        raise ConfigError(
            f"{part}the budget of {budget} is too small to judge {least} of the {len(costs):,} queries that "
            "people asked; raise the budget"
        )
    context.ui.say(
        f"{part}the budget of {budget} buys about {fitting:,} of the {len(costs):,} queries that people asked"
    )
    return fitting, costs[fitting - 1], requests(near[:fitting])
