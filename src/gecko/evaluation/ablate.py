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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gecko.config.stages import SelectConfig
from gecko.config.training import TRAINING_VERSION, WITHOUT_EFFECT, TrainConfig
from gecko.core.counts import Counts
from gecko.core.errors import ConfigError, RunError, TrainingError
from gecko.core.files import digest, read_json, write_json
from gecko.core.formats import InputFormat
from gecko.core.progress import Silent, Ui
from gecko.core.records import Candidate, Example, Judged, Passage, Place, Query, Score
from gecko.core.text import points
from gecko.encoder import Encoder, load_encoder, model_identity, resolve_model
from gecko.evaluation.ablation_grid import Cell, all_cells, chosen_cells, drawn, first_candidates
from gecko.evaluation.ablation_table import AGREEMENT, arrays, macro, order_rows, table, width_rows
from gecko.evaluation.agreement import agreement
from gecko.evaluation.beir import RetrievalSet
from gecko.evaluation.cache import KeptEmbeddings, SupportsEmbedding
from gecko.evaluation.evaluate import HEADLINE, dense_run
from gecko.evaluation.metrics import per_query
from gecko.evaluation.sets import load_set
from gecko.fret.fuse import Label
from gecko.fret.release import Released
from gecko.fret.select import group_labels, select
from gecko.fret.view import all_scores, own_queries
from gecko.run.folder import Run

VERSION = 1
FOLDER = "ablate"
RERANKERS = ("retriever", "ql", "rc", "rrf", "rrf+retriever")


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
    """The ablations of a run whose stages up to ``relabel`` are finished.

    ``released`` are rows that were labelled elsewhere and that the run trains on, too. Raises RunError: a stage is not
    finished, or nothing is there to measure with. ConfigError: a cell is not known, or there are no seeds.
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
        self._judged = [own, *(as_judged(one, config.select.fusion) for one in released)]
        self.queries = [query for queries, *_ in self._judged for query in queries]
        self.with_likelihood = all(
            isinstance(score, Score) and score.ql_tokens > 0 for *_, scores in self._judged for score in scores
        )
        self.cells = chosen_cells(all_cells(config, self.with_likelihood), options.cells)
        kept = run.path / "evaluate" / "results.json"
        self.form: InputFormat = options.form or (read_json(kept)["form"] if kept.exists() else config.train.formats[0])
        self.sets: list[RetrievalSet] = [load_set(spec) for spec in options.sets or config.evaluate.sets]
        self._newest: tuple[tuple[str, int | None], dict[str, list[Label]]] | None = None
        self.labels = self._group(config.select)
        self.heldout = [query for query in self.queries if query.split == "heldout" and query.id in self.labels]
        if not self.sets and not self.heldout:
            raise RunError(
                f"{run.path} has neither test sets nor held-out queries to measure with; name a BEIR folder with --eval"
            )

    @property
    def folder(self) -> Path:
        """Where everything lies that the ablation writes."""
        return self.run.path / FOLDER

    @cached_property
    def start(self) -> "Encoder":
        """The run's start model, in its own format."""
        return load_encoder(self.run.config.backbone, pad_token=self.run.config.train.backbone.pad_token)

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
        rows = list(select(queries, labels, self.passages, config, seed, Counts()))
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
        read_beside = [self.run.finished("ingest").identity] if self.settings(cell).loss.distill else []
        return digest(
            str(VERSION),
            str(TRAINING_VERSION),
            self._trained_identity,
            self._sets_identity,
            self.settings(cell).model_dump_json(exclude=WITHOUT_EFFECT),
            cell.form or self.form,
            str(seed),
            *(repr(row) for row in rows),
            *read_beside,
        )

    @cached_property
    def trained_from(self) -> str:
        """What a student starts as: as the run's own, so after BM25's order where the run has learned it."""
        return str(self.run.taught or self.run.config.student or self.run.config.backbone)

    @cached_property
    def _trained_identity(self) -> str:
        return model_identity(self.trained_from)

    def _file(self, key: str) -> Path:
        return self.folder / "cells" / f"{key}.json"

    @cached_property
    def plan(self) -> "list[Training]":
        """Every training, those of one cell together; a cell that the run is too small for is told and left out.

        Raises TrainingError: the run is too small for all of them.
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

    def train(self, training: Training) -> dict[str, Any]:
        """Train a cell with one seed, and measure its student, which is then thrown away."""
        from gecko.training import train

        cell, seed, rows = training.cell, training.seed, self.rows(training.cell, training.seed)
        work = self.folder / "work" / training.key  # its checkpoints let a killed training go on, too
        began = time.perf_counter()
        train(
            rows,
            resolve_model(self.trained_from),
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
        config = self.settings(self.planned[0]).model_copy(update={"epochs": 1})
        fixed, row = _training_speed(
            self.rows(largest.cell, largest.seed), self.trained_from, self.form, config, self.passages
        )
        texts = [passage for data in self.sets for passage in data.passages] or list(self.passages.values())
        text = _embedding_speed(self.start, texts)
        measured = sum(len(data.passages) + len(data.queries) for data in self.sets)
        measured += len({label.passage_id for query in self.heldout for label in self.labels[query.id]}) + len(
            self.heldout
        )
        worked = sum(training.rows * self.epochs for training in left)
        return Estimate(len(left), kept, len(left) * (fixed + measured * text) + worked * row)

    def work(self) -> dict[str, Any]:
        """Train and measure what is not there yet, and put everything together: see :meth:`result`."""
        self.train_left()
        return self.result()

    def train_left(self) -> None:
        """Train and measure what is not there yet."""
        left, names = self._left(), [data.name for data in self.sets]
        with self.ui.bar("training the cells", len(left), "trainings") as advance:
            for number, training in enumerate(left, start=1):
                found = self.train(training)
                write_json(self._file(training.key), found)
                value, spent = macro(arrays(found["values"], names)), sum(found["seconds"].values())
                cell = training.cell.label
                self.ui.say(f"{number} of {len(left)}: {cell}, seed {training.seed}: {points(value)} ({spent:.0f} s)")
                advance(1)

    @cached_property
    def start_values(self) -> dict[str, list[float]]:
        """What the start model gets; kept as the cells are."""
        identity = model_identity(self.run.config.backbone)
        file = self._file(digest(str(VERSION), "start", identity, self._sets_identity))
        if not file.exists():
            write_json(file, {"cell": "start", "values": self.measure(self.start)})
        values: dict[str, list[float]] = read_json(file)["values"]
        return values

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
        found = table(self.planned, self.values(), self.sizes(), self.start_values, [data.name for data in self.sets])
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
        orders: dict[str, dict[str, list[str]]] = {}
        for name in RERANKERS if self.with_likelihood else ("retriever", "rc"):
            labels = self.labels if name == "retriever" else self._labels(name, None)
            ranked = {query.id: labels[query.id] for query in scored}
            if name == "retriever":
                by_rank = {
                    key: sorted((one.retriever_rank, one.passage_id) for one in row) for key, row in ranked.items()
                }
                orders[name] = {key: [passage_id for _, passage_id in row] for key, row in by_rank.items()}
            else:
                orders[name] = {key: [label.passage_id for label in row] for key, row in ranked.items()}
        known = {text: data.qrels[key] for data in self.sets for key, text in data.queries}
        return order_rows(scored, orders, {query.id: known[query.text] for query in scored if query.text in known})

    def dims(self) -> list[dict[str, Any]]:
        """The run's model and the start model, cut to fewer dimensions, on the test sets; ``delta`` is at equal width.

        Empty where there are no test sets, or where the run has not trained its model.
        """
        trained = self.run.path / "model"
        if not self.sets or not trained.exists():
            return []
        starts, models = self._widths(self.run.config.backbone), self._widths(str(trained))
        return width_rows(models, starts, [data.name for data in self.sets])

    def _widths(self, spec: str) -> dict[int, dict[str, list[float]]]:
        """What a model gets at full width and at shorter ones, by width; kept as the cells are."""
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


def as_judged(released: "Released", fusion: str = "rrf") -> tuple[list[Query], list[Candidate], list[Judged]]:
    """Queries of a release, and the candidates and judgements that its labels were made from, as far as labels tell.

    Labels without a likelihood, where the fusion is no other than that of RC, are of a teacher that judged by answers.
    """
    candidates: list[Candidate] = []
    scores: list[Judged] = []
    for query in released.queries:
        for label in sorted(released.labels[query.id], key=lambda label: label.retriever_rank):
            candidates.append(Candidate(query.id, label.passage_id, label.retriever_rank, 0.0))
            if math.isnan(label.ql) and fusion != "rc":
                place, relevant = round(label.rc_rank), None if math.isnan(label.rc) else label.rc > 0
                scores.append(Place(query.id, label.passage_id, "", "", place, place, relevant))
                continue
            likelihood = (0.0, 0) if math.isnan(label.ql) else (label.ql, 1)
            scores.append(Score(query.id, label.passage_id, "", "", *likelihood, label.rc))
    return released.queries, candidates, scores


def _training_speed(
    rows: Sequence[Example], spec: str, form: InputFormat, config: TrainConfig, passages: Mapping[str, Passage]
) -> tuple[float, float]:
    """Seconds of loading and saving a model, and of training on one row once, from two short trainings."""
    from gecko.training import train

    start, seconds = resolve_model(spec), []
    sizes = (min(len(rows), config.batch), min(len(rows), 3 * config.batch))
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            began, one = time.perf_counter(), Path(folder) / str(size)
            checkpoints = one / "checkpoints"
            train(rows[:size], start, one / "model", form, config, 0, checkpoints=checkpoints, passages=passages)
            seconds.append(time.perf_counter() - began)
    per_row = seconds[1] / sizes[1]
    if sizes[1] > sizes[0]:  # two sizes tell the rows' share from that of loading and saving, but for noise
        per_row = min(per_row, max(per_row / 10, (seconds[1] - seconds[0]) / (sizes[1] - sizes[0])))
    return max(0.0, seconds[1] - sizes[1] * per_row), per_row


def _embedding_speed(model: "Encoder", passages: Sequence[Passage]) -> float:
    """Seconds of embedding one passage, from about a hundred of them."""
    sample = passages[:: max(1, len(passages) // 128)]
    began = time.perf_counter()
    model.passages(sample)
    return (time.perf_counter() - began) / len(sample)
