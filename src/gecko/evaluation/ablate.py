"""The paper's ablations on the labels of one run.

Table 3 (what to train on), Table 6 (the LLM as reranker), Table 7 (formats and tasks), and temperature, N and fusion.
Nothing here asks a language model: rows are selected anew from the run's scores, a student is trained on them for each
seed, measured and thrown away; its numbers are kept in ``RUN/ablate/cells``, named by everything that they depend on.
So a killed ablation continues at the next training, cells that are the same are trained once, and another selection of
cells uses what is there.
"""

import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never

import numpy as np

from gecko.config import TRAINING_VERSION, WITHOUT_EFFECT, RunConfig, SelectConfig, TrainConfig
from gecko.errors import ConfigError, RunError, TrainingError
from gecko.evaluation.agreement import agreement
from gecko.evaluation.beir import RetrievalSet
from gecko.evaluation.cache import KeptEmbeddings, SupportsEmbedding
from gecko.evaluation.evaluate import HEADLINE, dense_run
from gecko.evaluation.metrics import Array, descending, macro_ci, per_query
from gecko.evaluation.result import load_set
from gecko.formats import InputFormat
from gecko.fret.fuse import Label
from gecko.fret.select import group_labels, select
from gecko.paid import all_ratings, all_scores, own_queries
from gecko.progress import Silent, Ui
from gecko.records import Candidate, Example, Passage, Query, Score
from gecko.store import Run, digest, read_json, write_json
from gecko.work import Counts

if TYPE_CHECKING:
    from gecko.encoder import Encoder
    from gecko.fret.release import Released

VERSION = 1
FOLDER = "ablate"
AGREEMENT = "agreement with the teacher"
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
RERANKERS = ("retriever", "ql", "rc", "rrf", "rrf+retriever")
RESAMPLES = 10_000


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
    """Every cell there is, for a run with these settings.

    Args:
        config: of the run.
        with_likelihood: whether its scores hold query likelihoods.
    """
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

    Raises:
        ConfigError: a name is neither.
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


@dataclass(frozen=True)
class Options:
    """What an ablation may be told.

    Attributes:
        cells: groups or cells; empty: all.
        seeds: trainings a cell, with seeds from 0.
        epochs: of each training; none: the run's.
        sets: test sets; empty: the run's ``evaluate.sets``.
        form: the input format of all cells that do not name one; none: the one that the run kept.
    """

    cells: tuple[str, ...] = ()
    seeds: int = 3
    epochs: int | None = None
    sets: tuple[str, ...] = ()
    form: InputFormat | None = None


@dataclass(frozen=True)
class Training:
    """One cell with one seed; equal keys mean equal students."""

    cell: Cell
    seed: int
    rows: int
    key: str


@dataclass(frozen=True)
class Estimate:
    """What is left to do. Seconds a training includes measuring its student."""

    trainings: int
    kept: int
    seconds: float


class Ablation:
    """The ablations of one run.

    Args:
        run: the run folder, held; its stages up to ``relabel`` are finished.
        options: what to do.
        ui: where sentences and progress go.
        released: rows that were labelled elsewhere and that the run trains on, too.

    Raises:
        RunError: a stage is not finished, or nothing is there to measure with.
        ConfigError: a cell is not known, or there are no seeds.
        EvaluationError: a test set cannot be read.
    """

    def __init__(self, run: Run, options: Options, ui: Ui | None = None, released: "Sequence[Released]" = ()) -> None:
        self.run, self.options, self.ui = run, options, ui or Silent()
        if options.seeds < 1:
            raise ConfigError(f"--seeds {options.seeds}: give at least 1")
        if options.epochs is not None and options.epochs < 1:
            raise ConfigError(f"--epochs {options.epochs}: give at least 1")
        config = run.config
        self.passages = {passage.id: passage for passage in run.read("ingest", Passage)}
        own = own_queries(run), run.read("mine", Candidate), all_scores(run)
        self.ratings = all_ratings(run)
        self._judged = [own, *(as_judged(one) for one in released)]
        self.queries = [query for queries, *_ in self._judged for query in queries]
        self.with_likelihood = all(score.ql_tokens > 0 for *_, scores in self._judged for score in scores)
        self.cells = chosen_cells(all_cells(config, self.with_likelihood), options.cells)
        self.form: InputFormat = options.form or self._kept_form()
        self.sets: list[RetrievalSet] = [load_set(spec) for spec in options.sets or config.evaluate.sets]
        self._newest: tuple[tuple[str, int | None], dict[str, list[Label]]] | None = None
        self.labels = self._group(config.select)
        self.heldout = [query for query in self.queries if query.split == "heldout" and query.id in self.labels]
        if not self.sets and not self.heldout:
            raise RunError(
                f"{run.path} has neither test sets nor held-out queries to measure with; name a BEIR folder with --eval"
            )

    def _kept_form(self) -> InputFormat:
        file = self.run.path / "evaluate" / "results.json"
        form: InputFormat = read_json(file)["form"] if file.exists() else self.run.config.train.formats[0]
        return form

    @property
    def folder(self) -> Path:
        """Where everything lies that the ablation writes."""
        return self.run.path / FOLDER

    @cached_property
    def start(self) -> "Encoder":
        """The run's start model, in its own format."""
        from gecko.encoder import load_encoder

        return load_encoder(self.run.config.backbone, pad_token=self.run.config.train.backbone.pad_token)

    def _embed_queries(self, texts: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
        return self.start.queries(texts, tasks)

    @cached_property
    def _sets_identity(self) -> str:
        parts = [str(VERSION)]
        for data in self.sets:
            parts += [data.name, data.split, data.task, str(data.exclude_own)]
            parts += [text for item in data.passages for text in (item.id, item.title, item.text)]
            parts += [text for query in data.queries for text in query]
            parts += [f"{key} {one} {grade}" for key, row in data.qrels.items() for one, grade in row.items()]
        for query in self.heldout:
            parts += [query.id, query.text, query.task]
            parts += [f"{label.passage_id} {label.fused!r}" for label in self.labels[query.id]]
        return digest(*parts)

    # --- one cell

    def _group(self, config: SelectConfig, n: int | None = None) -> dict[str, list[Label]]:
        """Labels of all queries, of all candidates or the first n."""
        labels: dict[str, list[Label]] = {}
        for queries, candidates, scores in self._judged:
            taken = candidates if n is None else first_candidates(candidates, n, queries)
            labels |= group_labels(queries, taken, scores, config)
        return labels

    def _labels(self, fusion: str, n: int | None) -> dict[str, list[Label]]:
        """Labels by another fusion or of fewer candidates; only the newest are held, and cells of one group share them."""
        if self._newest is None or self._newest[0] != (fusion, n):
            config = SelectConfig.model_validate({**self.run.config.select.model_dump(), "fusion": fusion})
            self._newest = (fusion, n), self._group(config, n)
        return self._newest[1]

    def rows(self, cell: Cell, seed: int) -> list[Example]:
        """The training rows of a cell, from the scores that the run paid for."""
        config = SelectConfig.model_validate({**self.run.config.select.model_dump(), **cell.select})
        labels = self._labels(config.fusion, cell.candidates)
        # What people asked has no seed: where seeds are held against p_1, both are of the same queries.
        queries = [query for query in self.queries if not query.asked or cell.group != "selection"]
        rows = list(select(queries, labels, self.passages, config, seed, Counts(), self._embed_queries, self.ratings))
        if cell.share == 1:
            return rows
        return drawn(rows, math.ceil(cell.share * len(rows)), np.random.default_rng(seed), cell.draw)

    @cached_property
    def _train_config(self) -> TrainConfig:
        """What all cells share. How often and in which batches follows from the run's rows, also for a cell with fewer."""
        from gecko.training.schedule import enough_steps

        config, epochs = self.run.config.train, self.options.epochs
        if epochs is None:
            config = enough_steps(config, self.run.finished("select").rows)
        return config.model_copy(update={"min_steps": 0, **({} if epochs is None else {"epochs": epochs})})

    def settings(self, cell: Cell) -> TrainConfig:
        """How a cell is trained."""
        values = {**self._train_config.model_dump(), **cell.train}
        values["loss"] = {**values["loss"], **cell.loss}
        return TrainConfig.model_validate(values)

    def _key(self, cell: Cell, seed: int, rows: Sequence[Example]) -> str:

        return digest(
            str(VERSION),
            str(TRAINING_VERSION),
            self._trained_identity,
            self._sets_identity,
            self.settings(cell).model_dump_json(exclude=WITHOUT_EFFECT),
            cell.form or self.form,
            str(seed),
            *(repr(row) for row in rows),
            *self._texts_read(cell),
        )

    def _texts_read(self, cell: Cell) -> list[str]:
        """What a training reads besides its rows."""
        return [self.run.finished("ingest").identity] if self.settings(cell).loss.distill else []

    @cached_property
    def _start_identity(self) -> str:
        from gecko.encoder import model_identity

        return model_identity(self.run.config.backbone)

    @property
    def _trained_from(self) -> str:
        """What a student starts as: the run's ``student`` where it has one, else the start model."""
        return self.run.config.student or self.run.config.backbone

    @cached_property
    def _trained_identity(self) -> str:
        from gecko.encoder import model_identity

        return model_identity(self._trained_from)

    def _file(self, key: str) -> Path:
        return self.folder / "cells" / f"{key}.json"

    @cached_property
    def plan(self) -> "list[Training]":
        """Every training, those of one cell together; a cell that the run is too small for is told and left out.

        Raises:
            TrainingError: the run is too small for all of them.
        """
        found = []
        for cell in self.cells:
            rows = [self.rows(cell, seed) for seed in range(self.options.seeds)]
            if (fewest := min(map(len, rows))) < 2:
                self.ui.say(f"cell {cell.label} is left out: it has {fewest} training rows")
                continue
            found += [Training(cell, seed, len(one), self._key(cell, seed, one)) for seed, one in enumerate(rows)]
        if not found:
            raise TrainingError(f"{self.run.path} has too few rows to train on")
        return found

    @property
    def planned(self) -> list[Cell]:
        """The cells that are trained."""
        return list({training.cell.label: training.cell for training in self.plan}.values())

    @property
    def epochs(self) -> int:
        """How many each training has."""
        return self._train_config.epochs

    def _left(self) -> "list[Training]":
        """The trainings that are not there yet; of equal ones, the first."""
        left = {training.key: training for training in reversed(self.plan) if not self._file(training.key).exists()}
        return list(reversed(left.values()))

    def measure(self, model: SupportsEmbedding) -> dict[str, list[float]]:
        """nDCG@10 of each query of each set, and agreement with the teacher on each held-out query."""
        values = {}
        for data in self.sets:
            run = dense_run(data, model, 10)
            values[data.name] = per_query(run, data.qrels, (HEADLINE,))[HEADLINE].tolist()
        if self.heldout:
            values[AGREEMENT] = agreement(self.heldout, self.labels, self.passages, model).tolist()
        return values

    def _train(self, training: Training) -> dict[str, Any]:
        from gecko.encoder import load_encoder, resolve_model
        from gecko.training import train

        cell, seed, rows = training.cell, training.seed, self.rows(training.cell, training.seed)
        work = self.folder / "work" / training.key  # its checkpoints let a killed training go on, too
        began = time.perf_counter()
        train(
            rows,
            resolve_model(self._trained_from),
            work / "model",
            cell.form or self.form,
            self.settings(cell),
            seed,
            checkpoints=work / "checkpoints",
            passages=self.passages,
        )
        trained = time.perf_counter()
        values = self.measure(load_encoder(str(work / "model")))
        shutil.rmtree(work)
        spent = {"train": trained - began, "measure": time.perf_counter() - trained}
        return {"cell": cell.label, "seed": seed, "rows": len(rows), "seconds": spent, "values": values}

    # --- all of them

    def estimate(self) -> Estimate:
        """What is left to do, from a short training on this machine and from embedding some of the test passages."""
        left = self._left()
        kept = len({training.key for training in self.plan}) - len(left)
        if not left:
            return Estimate(0, kept, 0.0)
        largest = max(left, key=lambda training: training.rows)
        fixed, row, text = self._speeds(self.rows(largest.cell, largest.seed))
        measured = sum(len(data.passages) + len(data.queries) for data in self.sets)
        measured += len({label.passage_id for query in self.heldout for label in self.labels[query.id]}) + len(
            self.heldout
        )
        worked = sum(training.rows * self.epochs for training in left)
        return Estimate(len(left), kept, len(left) * (fixed + measured * text) + worked * row)

    def _speeds(self, rows: Sequence[Example]) -> tuple[float, float, float]:
        """Seconds of loading and saving, of one row in one epoch, and of embedding one text."""
        from gecko.encoder import resolve_model
        from gecko.training import train

        config = self.settings(self.planned[0]).model_copy(update={"epochs": 1})
        start, seconds = resolve_model(self._trained_from), []
        sizes = (min(len(rows), config.batch), min(len(rows), 3 * config.batch))
        with tempfile.TemporaryDirectory() as folder:
            for size in sizes:
                began, one = time.perf_counter(), Path(folder) / str(size)
                train(
                    rows[:size],
                    start,
                    one / "model",
                    self.form,
                    config,
                    0,
                    checkpoints=one / "checkpoints",
                    passages=self.passages,
                )
                seconds.append(time.perf_counter() - began)
        per_row = seconds[1] / sizes[1]
        if sizes[1] > sizes[0]:  # two sizes tell the rows' share from that of loading and saving, but for noise
            per_row = min(per_row, max(per_row / 10, (seconds[1] - seconds[0]) / (sizes[1] - sizes[0])))
        fixed = max(0.0, seconds[1] - sizes[1] * per_row)
        texts = [passage for data in self.sets for passage in data.passages] or list(self.passages.values())
        sample = texts[:: max(1, len(texts) // 128)]
        began = time.perf_counter()
        self.start.passages(sample)
        return fixed, per_row, (time.perf_counter() - began) / len(sample)

    def work(self) -> dict[str, Any]:
        """Train and measure what is not there yet, and put everything together.

        Returns:
            see :meth:`result`.
        """
        left = self._left()
        with self.ui.bar("training the cells", len(left)) as advance:
            for number, training in enumerate(left, start=1):
                found = self._train(training)
                write_json(self._file(training.key), found)
                value, spent = _macro(self._headline(found["values"])), sum(found["seconds"].values())
                cell = training.cell.label
                self.ui.say(f"{number} of {len(left)}: {cell}, seed {training.seed}: {value:.4f} ({spent:.0f} s)")
                advance(1)
        return self.result()

    @cached_property
    def start_values(self) -> dict[str, list[float]]:
        """What the start model gets; kept as the cells are."""
        file = self._file(digest(str(VERSION), "start", self._start_identity, self._sets_identity))
        if not file.exists():
            write_json(file, {"cell": "start", "values": self.measure(self.start)})
        values: dict[str, list[float]] = read_json(file)["values"]
        return values

    def _headline(self, values: Mapping[str, Sequence[float]]) -> list[Array]:
        return _arrays(values, [data.name for data in self.sets])

    def values(self) -> dict[str, list[dict[str, list[float]]]]:
        """What each cell's students got, by label: one entry a seed."""
        found: dict[str, list[dict[str, list[float]]]] = {}
        for training in self.plan:
            found.setdefault(training.cell.label, []).append(read_json(self._file(training.key))["values"])
        return found

    def sizes(self) -> dict[str, int]:
        """Training rows of each cell, by label (of the last seed)."""
        return {training.cell.label: training.rows for training in self.plan}

    def result(self) -> dict[str, Any]:
        """The table; numbers on 0–1.

        The headline is the macro mean of nDCG@10 over the test sets, or agreement with the teacher where there are none.
        A cell's value is the mean over its seeds; intervals resample queries, after each query's values were averaged over
        the seeds; ``seeds`` holds the value of each seed, from which the spread of training is seen.
        """
        found = _table(self.planned, self.values(), self.sizes(), self.start_values, [data.name for data in self.sets])
        return found | {
            "sets": {data.name: len(data.queries) for data in self.sets},
            "heldout": len(self.heldout),
            "form": self.form,
            "epochs": self.epochs,
            "seeds": self.options.seeds,
            "rerankers": self.rerankers(),
            "dims": self.dims(),
        }

    def rerankers(self) -> list[dict[str, Any]]:
        """The LLM as reranker of the run's own candidates (Table 6 of the paper), on all queries that it has scored.

        A generated query has no human judgement; what is known is the passage that it was written for. ``seed_mrr`` is
        how high an order puts that passage, ``seed_first`` how often at the top, ``delta`` the difference to the
        retriever in ``seed_mrr``, over the ``queries`` that were written for one. Where queries of the run are queries of
        a test set, word for word, ``ndcg@10`` is against its judgements. Empty where all queries are of people.
        """
        scored = [query for query in self.queries if query.id in self.labels]
        if all(query.asked for query in scored):
            return []
        qrels = self._judgements(scored)
        order: dict[str, dict[str, list[str]]] = {}
        for name in RERANKERS if self.with_likelihood else ("retriever", "rc"):
            if name == "retriever":
                found_first = {
                    query.id: sorted((label.retriever_rank, label.passage_id) for label in self.labels[query.id])
                    for query in scored
                }
                order[name] = {key: [passage_id for _, passage_id in listed] for key, listed in found_first.items()}
                continue
            config = SelectConfig.model_validate({**self.run.config.select.model_dump(), "fusion": name})
            labels = self._group(config)
            order[name] = {query.id: [label.passage_id for label in labels[query.id]] for query in scored}
        found, base = [], None
        for name, orders in order.items():
            ranks = np.array([orders[query.id].index(query.seed_id) + 1 for query in scored if not query.asked])
            base = 1 / ranks if base is None else base
            delta, low, high = macro_ci([1 / ranks - base], RESAMPLES)
            run = {key: descending(orders[key]) for key in qrels}
            found.append(
                {
                    "order": name,
                    "queries": len(ranks),
                    "seed_mrr": float((1 / ranks).mean()),
                    "delta": None if name == "retriever" else delta,
                    "ci95": None if name == "retriever" else [low, high],
                    "seed_first": float((ranks == 1).mean()),
                    "judged": len(qrels),
                    HEADLINE: float(per_query(run, qrels, (HEADLINE,))[HEADLINE].mean()) if qrels else None,
                }
            )
        return found

    def dims(self) -> list[dict[str, Any]]:
        """The run's model and the start model, cut to fewer dimensions, on the test sets; ``delta`` is at equal width.

        Empty where there are no test sets, or where the run has not trained its model.
        """
        trained = self.run.path / "model"
        if not self.sets or not trained.exists():
            return []
        rows = []
        starts, models = self._widths(self.run.config.backbone), self._widths(str(trained))
        for width, found in models.items():
            row: dict[str, Any] = {"dim": width, "score": _macro(self._headline(found))}
            if width in starts:
                pairs = zip(self._headline(found), self._headline(starts[width]), strict=True)
                delta, low, high = macro_ci([ours - theirs for ours, theirs in pairs], RESAMPLES)
                row |= {"start": _macro(self._headline(starts[width])), "delta": delta, "ci95": [low, high]}
            rows.append(row)
        return rows

    def _widths(self, spec: str) -> dict[int, dict[str, list[float]]]:
        """What a model gets at full width and at shorter ones, by width; kept as the cells are."""
        from gecko.encoder import load_encoder, model_identity

        file = self._file(digest(str(VERSION), "dims", model_identity(spec), self._sets_identity))
        if not file.exists():
            encoder = load_encoder(spec, pad_token=self.run.config.train.backbone.pad_token)
            full = encoder.dim
            widths = {full, *(self.run.config.train.dims or (full // 2, full // 4)), full // 8}
            with tempfile.TemporaryDirectory() as folder:  # embedded once, in full width, and cut
                kept = {
                    str(width): self.measure(KeptEmbeddings(encoder.truncated(width), Path(folder)))
                    for width in sorted(widths, reverse=True)
                    if 0 < width <= full
                }
            write_json(file, {"cell": f"dims of {spec}", "values": kept})
        return {int(width): values for width, values in read_json(file)["values"].items()}

    def _judgements(self, queries: Sequence[Query]) -> dict[str, dict[str, int]]:
        known = {text: data.qrels[key] for data in self.sets for key, text in data.queries}
        return {query.id: known[query.text] for query in queries if query.text in known}


def as_judged(released: "Released") -> tuple[list[Query], list[Candidate], list[Score]]:
    """Queries of a release, and the candidates and scores that its labels were made from, as far as labels tell."""
    candidates, scores = [], []
    for query in released.queries:
        for label in sorted(released.labels[query.id], key=lambda label: label.retriever_rank):
            candidates.append(Candidate(query.id, label.passage_id, label.retriever_rank, 0.0))
            likelihood = (0.0, 0) if math.isnan(label.ql) else (label.ql, 1)
            scores.append(Score(query.id, label.passage_id, "", "", *likelihood, label.rc))
    return released.queries, candidates, scores


def first_candidates(candidates: Sequence[Candidate], n: int, queries: Sequence[Query]) -> list[Candidate]:
    """The candidates that mining with a smaller N would have found: the nearest n, the seed at place n if not among them."""
    seeds = {query.id: query.seed_id for query in queries}
    by_query: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_query.setdefault(candidate.query_id, []).append(candidate)
    kept = []
    for key, row in by_query.items():
        row.sort(key=lambda candidate: candidate.rank)
        first = row[:n]
        if seeds[key] and seeds[key] not in [candidate.passage_id for candidate in first]:
            seed = next(candidate for candidate in row if candidate.passage_id == seeds[key])
            first[-1] = replace(seed, rank=n, natural=False)
        kept += first
    return kept


def drawn(rows: Sequence[Example], wanted: int, generator: np.random.Generator, how: Draw) -> list[Example]:
    """Some of the rows, drawn without replacement, in their order.

    Args:
        rows: all.
        wanted: how many.
        generator: draws.
        how: ``at random``; evenly over the task texts (but for case) or the seed passages: one row of each, then the next
            of each; or of ``few passages``: all rows of one, then of the next.
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


def combined(ablations: Sequence[Ablation]) -> dict[str, Any]:
    """One table of the same cells over several runs, each with test sets of its own: the macro mean is over all sets.

    A cell's difference is then one that held on several corpora, each student against the start model on its own corpus.
    Cells that one of the runs was too small for are left out.

    Raises:
        RunError: a run has no test set, two have one of the same name, or no cell is the same in all.
    """
    first = ablations[0]
    names = [data.name for ablation in ablations for data in ablation.sets]
    if any(not ablation.sets for ablation in ablations) or len(set(names)) < len(names):
        raise RunError(f"each run needs test sets of its own; there are: {', '.join(names) or 'none'}")
    if len({(ablation.form, ablation.options.seeds, ablation.options.epochs) for ablation in ablations}) > 1:
        raise RunError("the runs differ in format, seeds or epochs, so their cells are not the same; set them for all")
    cells = [cell for cell in first.planned if all(cell in other.planned for other in ablations)]
    if not cells:
        raise RunError(f"no cell is trained in all of the {len(ablations)} runs; name some that are with --cells")
    found: list[dict[str, list[dict[str, list[float]]]]] = [ablation.values() for ablation in ablations]
    values = {
        label: [_merged([one[label][seed] for one in found]) for seed in range(first.options.seeds)]
        for label in (cell.label for cell in cells)
    }
    sizes: Counter[str] = Counter()
    for ablation in ablations:
        sizes.update(ablation.sizes())
    result = _table(cells, values, sizes, _merged([ablation.start_values for ablation in ablations]), names)
    return result | {
        "sets": {data.name: len(data.queries) for ablation in ablations for data in ablation.sets},
        "heldout": 0,
        "form": first.form,
        "epochs": " or ".join(dict.fromkeys(str(ablation.epochs) for ablation in ablations)),
        "seeds": first.options.seeds,
        "rerankers": [],
        "dims": [],
    }


def _merged(rows: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    return {name: values for row in rows for name, values in row.items() if name != AGREEMENT}


def _table(
    cells: Sequence[Cell],
    values: Mapping[str, Sequence[Mapping[str, list[float]]]],
    sizes: Mapping[str, int],
    base: Mapping[str, list[float]],
    names: Sequence[str],
) -> dict[str, Any]:
    """``headline``, ``start`` and ``cells`` of a result, from each query's values: of the start, of cells by seed."""
    averaged = {label: _averaged(found) for label, found in values.items()}
    agreed = AGREEMENT in base
    rows = []
    for cell in cells:
        found, reference = averaged[cell.label], averaged.get(f"{cell.group}/{cell.reference}")
        seeds = [_macro(_arrays(one, names)) for one in values[cell.label]]
        row: dict[str, Any] = {
            "group": cell.group,
            "name": cell.name,
            "rows": sizes[cell.label],
            "score": float(np.mean(seeds)),
            "seeds": seeds,
            **_against("start", found, base, names),
            "reference": cell.reference if reference is not None else None,
            **(_against("reference", found, reference, names) if reference is not None else {}),
            "sets": {name: float(np.mean(row)) for name, row in found.items() if name != AGREEMENT},
            "agreement": None,
        }
        if agreed:
            delta, low, high = macro_ci([np.array(found[AGREEMENT]) - np.array(base[AGREEMENT])], RESAMPLES)
            mean = float(np.mean(found[AGREEMENT]))
            row["agreement"] = {"score": mean, "delta": delta, "ci95": [low, high]}
        rows.append(row)
    start = {
        "score": _macro(_arrays(base, names)),
        "agreement": float(np.mean(base[AGREEMENT])) if agreed else None,
    }
    return {"headline": f"macro {HEADLINE}" if names else AGREEMENT, "start": start, "cells": rows}


def _arrays(values: Mapping[str, Sequence[float]], names: Sequence[str]) -> list[Array]:
    return [np.array(values[name]) for name in names or [AGREEMENT]]


def _against(
    name: str, found: Mapping[str, Sequence[float]], base: Mapping[str, Sequence[float]], names: Sequence[str]
) -> dict[str, Any]:
    pairs = zip(_arrays(found, names), _arrays(base, names), strict=True)
    delta, low, high = macro_ci([ours - theirs for ours, theirs in pairs], RESAMPLES)
    return {f"delta_{name}": delta, f"ci95_{name}": [low, high]}


def _averaged(found: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    return {name: np.mean([one[name] for one in found], axis=0).tolist() for name in found[0]}


def _macro(values: Sequence[Array]) -> float:
    return float(np.mean([row.mean() for row in values]))
