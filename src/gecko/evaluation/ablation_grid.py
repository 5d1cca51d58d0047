"""The cells of an ablation: which settings are tried against a run's own, and which rows each of them has."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, assert_never

import numpy as np

from gecko.config.run import RunConfig
from gecko.core.errors import ConfigError
from gecko.core.formats import InputFormat
from gecko.core.records import Candidate, Example, Query, by_query

Draw = Literal["at random", "even over tasks", "even over passages", "few passages"]
TEMPERATURES = (0.01, 0.02, 0.05, 0.1)
CANDIDATES = (5, 10, 20)
SHARES = (0.25, 0.5, 1.0)
RATES = (1e-5, 2e-5, 5e-5)
LEAST_RC = (None, 0.0, 1.0, 2.0)
NEGATIVES = (1, 2, 4, 8)
ALONE = ("all queries", "none that speaks of its passage")
LISTWISE = (0.0, 0.5, 1.0, 2.0)
LOSSES: dict[str, dict[str, Any]] = {
    "no same-tower negatives": {"same_tower": False},
    "hard negatives of all rows": {"hard_negatives": "all"},
}


@dataclass(frozen=True)
class Cell:
    """One setting to train with, against the run's own.

    Attributes:
        group: the question it belongs to.
        name: the answer that it tries.
        reference: the cell of the group that the others are held against.
        select: changes to ``[select]``.
        train: changes to ``[train]``.
        loss: changes to ``[train.loss]``.
        form: another input format; none: the ablation's.
        candidates: only the first so many; none: all.
        share: of the rows.
        draw: how that share is drawn.
    """

    group: str
    name: str
    reference: str
    select: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    form: InputFormat | None = None
    candidates: int | None = None
    share: float = 1.0
    draw: Draw = "at random"

    @property
    def label(self) -> str:
        """``group/name``, as ``--cells`` takes it."""
        return f"{self.group}/{self.name}"


def all_cells(config: RunConfig, with_likelihood: bool = True) -> list[Cell]:
    """Every cell there is, for a run with these settings, whose scores hold query likelihoods or do not."""
    fusion, n = config.select.fusion, config.mine.n
    temperature, rate = config.train.loss.temperature, config.train.learning_rate
    cells = []
    for positive in ("seed", "p1"):
        for negative in ("none", "random", "last"):
            name = f"{positive} + {'p_N' if negative == 'last' else negative}"
            change = {"positive": positive, "negative": negative, "min_rc": None}
            cells.append(Cell("selection", name, "seed + none", change))
    filtered = {"positive": "p1", "negative": "last", "min_rc": 0.0}
    cells.append(Cell("selection", "p1 + p_N, RC > 0", "seed + none", filtered))
    fusions = ("rrf", "rrf+retriever", "ql", "rc") if with_likelihood else ("rc",)
    cells += [Cell("fusion", name, fusion, {"fusion": name}) for name in fusions]
    cells += [Cell("format", form, "native", form=form) for form in ("native", "unified")]
    cells.append(Cell("tasks", "as written", "as written", share=0.5))
    cells.append(Cell("tasks", "uniform", "as written", share=0.5, draw="even over tasks"))
    cells.append(
        Cell("passages", "many, few queries each", "many, few queries each", share=0.5, draw="even over passages")
    )
    cells.append(Cell("passages", "few, many queries each", "many, few queries each", share=0.5, draw="few passages"))
    for value in sorted({*TEMPERATURES, temperature}):
        cells.append(Cell("temperature", f"{value:g}", f"{temperature:g}", loss={"temperature": value}))
    for count in sorted({*(c for c in CANDIDATES if c < n), n}):
        cells.append(Cell("candidates", str(count), str(n), candidates=count))
    least = config.select.min_rc
    for bar in sorted({*LEAST_RC, least}, key=lambda one: -math.inf if one is None else one):
        cells.append(Cell("filter", _filter(bar), _filter(least), {"min_rc": bar}))
    alone = config.select.self_contained
    cells += [Cell("self-contained", ALONE[one], ALONE[alone], {"self_contained": one}) for one in (False, True)]
    own = config.select.negatives
    cells += [Cell("negatives", str(n), str(own), {"negatives": n}) for n in sorted({*NEGATIVES, own})]
    cells += [Cell("rows", f"{share:.0%}", "100%", share=share) for share in SHARES]
    for value in sorted({*RATES, rate}):
        cells.append(Cell("learning rate", f"{value:g}", f"{rate:g}", train={"learning_rate": value}))
    weight = config.train.loss.distill
    cells += [Cell("listwise", f"{w:g}", f"{weight:g}", loss={"distill": w}) for w in sorted({*LISTWISE, weight})]
    cells.append(Cell("loss", "the run's", "the run's"))
    cells += [Cell("loss", name, "the run's", loss=change) for name, change in LOSSES.items()]
    return cells


def _filter(least: float | None) -> str:
    return "all rows" if least is None else f"RC > {least:g}"


def chosen_cells(cells: Sequence[Cell], names: Sequence[str] | None) -> list[Cell]:
    """The cells of the groups, or the cells, that ``names`` names; all for none.

    Raises ConfigError: a name is neither.
    """
    if not names:
        return list(cells)
    groups, labels = dict.fromkeys(cell.group for cell in cells), [cell.label for cell in cells]
    for name in names:
        if name not in groups and name not in labels:
            raise ConfigError(
                f"--cells {name!r} is neither a group nor a cell; groups: {', '.join(groups)}; cells: {', '.join(labels)}"
            )
    return [cell for cell in cells if cell.group in names or cell.label in names]


def first_candidates(candidates: Sequence[Candidate], n: int, queries: Sequence[Query]) -> list[Candidate]:
    """The candidates that mining with a smaller N would have found: the nearest n, the seed at place n if not among them."""
    seeds = {query.id: query.seed_id for query in queries}
    kept = []
    for key, row in by_query(candidates).items():
        row.sort(key=lambda candidate: candidate.rank)
        first = row[:n]
        if seeds[key] and seeds[key] not in [candidate.passage_id for candidate in first]:
            seed = next(candidate for candidate in row if candidate.passage_id == seeds[key])
            first[-1] = replace(seed, rank=n, natural=False)
        kept += first
    return kept


def drawn(rows: Sequence[Example], wanted: int, generator: np.random.Generator, how: Draw) -> list[Example]:
    """So many of the rows, drawn without replacement, in their order.

    They are drawn ``at random``; evenly over the task texts (but for case) or the seed passages: one row of each, then
    the next of each; or of ``few passages``: all rows of one, then of the next.
    """
    order = generator.permutation(len(rows)).tolist()
    match how:
        case "at random":
            pass
        case "even over tasks":
            order = _by_turns(order, [row.task.casefold().strip() for row in rows])
        case "even over passages":
            order = _by_turns(order, [_written_for(row) for row in rows])
        case "few passages":
            seeds = dict.fromkeys(_written_for(rows[place]) for place in order)
            first = {seed: place for place, seed in enumerate(seeds)}
            order.sort(key=lambda place: first[_written_for(rows[place])])
        case _:
            assert_never(how)
    return [rows[place] for place in sorted(order[:wanted])]


def _written_for(row: Example) -> str:
    """A row's seed; of a query that somebody asked the query alone."""
    return row.seed_id or row.query_id


def _by_turns(order: Sequence[int], kinds: Sequence[str]) -> list[int]:
    seen: Counter[str] = Counter()
    turn = {}
    for place in order:
        turn[place] = seen[kinds[place]]
        seen[kinds[place]] += 1
    return sorted(order, key=turn.__getitem__)
