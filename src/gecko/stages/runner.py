"""The order of the stages, and what each of them depends on.

::

    ingest ─▶ embed ─▶ check ─▶ plan ─▶ generate ─▶ mine ─▶ relabel ─▶ select ─▶ train ─▶ evaluate ─▶ report
                        (queries of people) asked ─┘

A stage takes records and gives records; the store decides whether it has to run at all. Models are loaded when a stage
first needs them, so a run whose shards are all there loads none.
"""

import gc
import math
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gecko.config.mixture import FRET, MixtureConfig
from gecko.config.run import parse_budget
from gecko.config.training import TRAINING_VERSION, WITHOUT_EFFECT
from gecko.core.counts import Counts, left_out
from gecko.core.errors import ConfigError, CorpusError, RunError, TeacherError, TeacherRefused, TrainingError
from gecko.core.files import digest, read_json, replace_folder, tree_sha256, write_json
from gecko.core.formats import InputFormat
from gecko.core.progress import Silent, Ui
from gecko.core.records import Candidate, Example, Passage, Query, Score
from gecko.fret.seeds import (
    Cost,
    Reading,
    Seed,
    draw_seeds,
    most_seeds,
    prefix_costs,
    within_count,
)
from gecko.prompts import Prompt
from gecko.run.engine import LOCAL, Executor, Job
from gecko.run.folder import Run
from gecko.run.manifest import Manifest, Shard, schema_digest
from gecko.run.shards import build_file, run_local, run_shards, run_stream
from gecko.stages.jobs import EncoderLoader, Judge, Judging, Mine, SentTeacher, TeacherLoader, Write, Writing
from gecko.stages.models import SentEncoder
from gecko.stages.reuse import (
    ASKED,
    PLAN,
    all_scores,
    asked_parts,
    asked_queries,
    own_queries,
    paid_queries,
    paid_scores,
    paid_seeds,
    relabel_stages,
    scores_identity,
    seeds_key,
)

if TYPE_CHECKING:
    from gecko.encoder import Encoder
    from gecko.fret.fuse import Label
    from gecko.fret.release import Released
    from gecko.llm.base import LanguageModel
from gecko.evaluation.builtin import STDLIB_QUESTIONS

# Raised by hand when a stage gives other results for the same input; not for what is of the size of a rounding, as between
# two processors: queries and scores are paid for.
VERSIONS = {
    "ingest": 1,
    "embed": 1,
    "warmup": 2,
    "seeds": 1,
    "check": 1,
    "asked": 1,
    "plan": 1,
    "generate": 1,
    "mine": 1,
    "relabel": 1,
    "select": 1,
    "train": TRAINING_VERSION,
    "agreement": 1,
    "evaluate": 2,
}

QUERIES_A_SHARD = 512
CHARACTERS_A_TOKEN = 4  # of English
MOST_SEEDS = 50_000  # considered for a budget; more than any single machine has time for
LEAST_QUERIES = 4
LEAST_HELDOUT = 8  # held-out queries that a choice between two formats is left to
TOKENISED = 1024  # texts at a time
ESTIMATE_SAMPLE = 64  # passages whose embedding is timed
MEASURED_TOKENS = 24  # of each text whose writing is timed
TRIALS = 3  # at timing it on a busy machine


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


class Pipeline:
    """All stages of one run.

    Args:
        run: the run folder, held.
        ui: where sentences and progress go.
        force: go on with a teacher that the check refuses.
        asks: whether a teacher may be loaded; what would ask one is an error otherwise.
        engine: embeds the corpus, generates, mines and relabels.
    """

    def __init__(
        self, run: Run, ui: Ui | None = None, *, force: bool = False, asks: bool = True, engine: Executor = LOCAL
    ) -> None:
        self.run = run
        self._asks = asks
        self._stage = "relabel"  # the one that is being made
        self.ui: Ui = ui or Silent()
        self.engine = engine
        self.config = run.config
        self._teacher: LanguageModel | None = None
        self._loading = 0.0
        # Whoever changes settings has not yet seen what the teacher check says of them.
        self.override_check = force and not run.changed

    # --- what stages share

    @cached_property
    def passages(self) -> list[Passage]:
        """The corpus."""
        return self.run.read("ingest", Passage)

    @cached_property
    def by_id(self) -> dict[str, Passage]:
        """The corpus by id."""
        return {passage.id: passage for passage in self.passages}

    @cached_property
    def start_identity(self) -> str:
        """Hash of the start model."""
        from gecko.encoder import model_identity

        return model_identity(self.config.backbone)

    @cached_property
    def start(self) -> "Encoder":
        """The start model, in its own input format."""
        from gecko.encoder import load_encoder

        return load_encoder(self.config.backbone, pad_token=self.config.train.backbone.pad_token)

    @cached_property
    def vectors(self) -> np.ndarray:
        """The start model's embeddings of the corpus: (passages, d), unit rows."""
        parts = {"passages": self.run.finished("ingest").identity, "model": self.start_identity, **_version("embed")}
        return self._embedded("embed", parts, self._start_loader)

    @property
    def _start_loader(self) -> EncoderLoader:
        if self.engine.remote:
            return SentEncoder(self.config.backbone, self.start_identity, self.config.train.backbone.pad_token)
        return lambda: self.start

    def _embedded(self, stage: str, parts: dict[str, str], encoder: EncoderLoader) -> np.ndarray:
        from gecko.stages.embed import FILE, write_vectors

        def make(path: Path) -> None:
            write_vectors(self.run, stage, parts, path, encoder, self.ui.say, self.engine)

        vectors: np.ndarray = np.load(build_file(self.run, stage, parts, FILE, make), mmap_mode="r")
        return vectors

    @cached_property
    def teacher_identity(self) -> str:
        """Hash of the teacher's weights."""
        from gecko.llm.registry import teacher_identity

        return teacher_identity(self.config.llm)

    @property
    def teacher(self) -> "LanguageModel":
        """The teacher, loaded on first use."""
        if self._teacher is None:
            from gecko.llm.registry import check_scores, load_teacher

            self._may_ask()
            began = time.perf_counter()
            self.ui.say(f"loading the teacher ({self.config.llm})")
            self._teacher = load_teacher(self.config.llm, self.config.relabel, self.ui)
            self._loading += time.perf_counter() - began
            self.ui.say(f"{self._teacher.name} is ready after {time.perf_counter() - began:.0f} s")
            if self.config.select.fusion != "rc":
                check_scores(self._teacher)
        return self._teacher

    def _may_ask(self) -> None:
        if not self._asks:
            raise RunError(
                f"{self.run.path}: the stage {self._stage} has to ask the teacher (its settings changed, or it is not "
                f"finished); run: gecko {self._stage} {self.run.path}"
            )

    def loaded_teacher(self, counts: Counts) -> "LanguageModel":
        """The teacher; the time that loading it takes is not counted as work."""
        before = self._loading
        teacher = self.teacher
        counts.waited += self._loading - before
        return teacher

    @property
    def _teacher_loader(self) -> TeacherLoader:
        if self.engine.remote:
            self.forget_teacher()  # this process has no more use for it, and may share its memory with a worker
            scores = self.config.select.fusion != "rc"
            return SentTeacher(self.config.llm, self.teacher_identity, self.config.relabel, scores)
        return self.loaded_teacher

    def forget_teacher(self) -> None:
        """Free the teacher's memory."""
        self._teacher = None
        gc.collect()

    @cached_property
    def prompts(self) -> dict[str, Prompt]:
        """The prompts of the run, by role."""
        from gecko.fret.variables import varied

        return {
            "generate": varied(
                self.run.prompt("generate"), self.config.generate.variables, self.config.corpus.languages
            ),
            "likelihood": self.run.prompt("query_likelihood"),
            "relevance": self.run.prompt("relevance"),
        }

    def teacher_parts(self, *roles: str) -> dict[str, str]:
        """What a result of the teacher depends on: its weights and the prompts of these roles."""
        return {"teacher": self.teacher_identity} | {f"prompt {role}": self.prompts[role].hash for role in roles}

    def _released_parts(self) -> dict[str, str]:
        """What released rows add to a fingerprint: nothing where there are none."""
        from gecko.fret.release import release_identity

        names = self.config.select.released
        return {"released": digest(*map(release_identity, names))} if names else {}

    # --- stages

    def through(self, stage: str) -> None:
        """Everything from the teacher check to ``stage``; what is there and still valid is used as it is.

        A stage never works on what an earlier one made with other settings.
        """
        steps: dict[str, Callable[[], object]] = {
            "check": self.check,
            "generate": self.generate,
            "mine": self.mine,
            "relabel": self.relabel,
            "select": self.select,
        }
        for name, step in steps.items():
            self._stage = "generate" if name == "check" else name
            step()
            if name == stage:
                return

    def ingest(self) -> Manifest:
        """Read the corpus."""
        from gecko.corpus import ingest_shards
        from gecko.corpus.readers import source_identity
        from gecko.stages.ingest import read_ahead

        settings = self.config.corpus
        parts = {
            "sources": digest(*(source_identity(spec) for spec in settings.sources)),
            "settings": settings.model_dump_json(exclude={"sources"}),
            "tokenizer": self.start_identity if settings.chunk_tokens is not None else "",
            # Raised when others are found.
            **({"near duplicates": "2"} if settings.near_duplicates is not None else {}),
            "schema": schema_digest(Passage),
            **_version("ingest"),
        }

        reads = False

        def batches() -> Iterator[tuple[list[Passage], Counts]]:
            from gecko.corpus.chunk import load_tokenizer
            from gecko.encoder import resolve_model

            nonlocal reads
            reads = True
            self.ui.say(f"reading {', '.join(settings.sources)}")
            tokenizer = None if settings.chunk_tokens is None else load_tokenizer(resolve_model(self.config.backbone))
            cache = self.run.path / "documents.sqlite"
            if self.engine.remote and (found := read_ahead(settings, cache, self.engine)):
                self.ui.say(f"{found:,} documents were parsed")
            return ingest_shards(settings, tokenizer=tokenizer, cache=cache)

        manifest = run_stream(self.run, "ingest", Passage, parts, batches)
        left = left_out(manifest)
        if reads and left:
            self.ui.say(f"of what was read:{left}")
        if manifest.rows < self.config.mine.n:
            raise CorpusError(
                f"the corpus has {manifest.rows} passages, and mining takes {self.config.mine.n} candidates a query; "
                f"give more passages, or set mine.n to at most {max(2, manifest.rows)}"
                f"{f'. Of what was read:{left}' if left else ''}"
            )
        return manifest

    def check(self) -> dict[str, Any] | None:
        """Put the teacher to the reranking probe.

        Raises:
            TeacherRefused: it orders the probe worse than the start model.
        """
        from gecko.evaluation import builtin
        from gecko.evaluation.teacher import probe

        if not self.config.check.enabled:
            return None
        parts = {
            **self.teacher_parts("likelihood", "relevance"),
            "start model": self.start_identity,
            "probe": builtin.data_hash("probe.jsonl"),
            "passage tokens": str(self.config.relabel.passage_tokens),
            "resamples": str(self.config.evaluate.resamples),
            "seed": str(self.config.seed),
            **self.precision_parts,
            **_version("check"),
        }

        def make(path: Path) -> None:
            result = probe.run_probe(
                self.teacher,
                self.prompts["likelihood"],
                self.prompts["relevance"],
                self.start,
                passage_tokens=self.config.relabel.passage_tokens,
                precision=self.config.relabel.precision,
                resamples=self.config.evaluate.resamples,
                seed=self.config.seed,
                ui=self.ui,
            )
            write_json(path, asdict(result))

        result = probe.ProbeResult(**read_json(build_file(self.run, "check", parts, "probe.json", make)))
        self._refusing(lambda: probe.refuse_by_probe(result, self.config.llm))
        return asdict(result)

    def _refusing(self, check: Callable[[], None]) -> None:
        try:
            check()
        except TeacherRefused as refusal:
            if not self.override_check:
                raise
            self.ui.say(f"warning, going on because of --force: {refusal}")

    @cached_property
    def plan(self) -> Plan:
        """The seeds of the run. Speeds are measured when it is made, and never again."""
        path = build_file(
            self.run,
            "plan",
            self._plan_parts() | asked_parts(self.run),
            PLAN,
            lambda path: write_json(path, asdict(self._new_plan(asked_queries(self.run)))),
        )
        raw = read_json(path)
        return Plan(
            blocks=[[Seed(**seed) for seed in block] for block in raw["blocks"]],
            relabel_tokens=raw["relabel_tokens"],
            read_speed=raw["read_speed"],
            write_speed=raw["write_speed"],
            expected=Cost(**raw["expected"]),
            asked=raw.get("asked", 0),
        )

    def _plan_parts(self) -> dict[str, str]:
        config = self.config
        return {
            **self.teacher_parts("generate", "likelihood", "relevance"),
            "passages": self.run.finished("ingest").identity,
            "start model": self.start_identity,
            "budget": str(config.budget),
            "settings": config.generate.model_dump_json(),
            "candidates": str(config.mine.n),
            "passage tokens": str(config.relabel.passage_tokens),
            "seed": str(config.seed),
            **self._released_parts(),
            **_version("plan"),
        }

    def _new_plan(self, people: Sequence[Query]) -> Plan:
        from gecko.fret.release import heldout_seeds

        config = self.config
        vectors = np.asarray(self.vectors)
        left = math.inf
        read_speed = write_speed = 0.0
        read_price = write_price = 1.0  # of a token, in the budget's unit
        if config.budget is not None:
            unit, amount = parse_budget(config.budget)
            left = amount - self._probe_cost(unit)
            if unit == "seconds":
                read_speed, write_speed, measuring = self._measure()
                read_price, write_price = 1 / read_speed, 1 / write_speed
                left -= measuring
        count = config.generate.queries
        asked, judged = self._plan_asked(people, left / read_price if count == 0 else left / read_price / 2)
        limited = None if config.budget is None else max(1, int(left / read_price))
        if count == 0:
            return Plan([], limited, read_speed, write_speed, Cost(judged, 0, 0), asked)
        whole, left = left, left - judged * read_price
        limit = MOST_SEEDS if count is None else count
        if left < math.inf:  # more than it can buy need not be drawn, and the first are the same
            limit = min(limit, most_seeds(left, read_price, write_price, config.mine, config.generate))
        taken = {identifier for spec in config.select.released for identifier in heldout_seeds(spec)}
        rng = np.random.default_rng(config.seed)
        first = paid_seeds(self.run, self._plan_parts(), self.by_id)
        blocks = draw_seeds(self.passages, vectors, config.generate, rng, limit, taken, first)
        if count is not None:
            blocks = within_count(blocks, count)
            if (found := sum(map(len, blocks))) < min(count, limit):
                self.ui.say(f"generate.queries = {count:,}, but there are only {found:,} seeds; raise generate.rounds")
        place = {passage.id: index for index, passage in enumerate(self.passages)}
        chosen = list(dict.fromkeys(seed.passage_id for block in blocks for seed in block))
        near, lengths = self._near(vectors[[place[identifier] for identifier in chosen]])
        neighbours = dict(zip(chosen, near.tolist(), strict=True))

        def costs(blocks: list[list[Seed]]) -> list[Cost]:
            return prefix_costs(blocks, neighbours, lengths, config.relabel, config.mine, self._passes, self._alone)

        def together(cost: Cost) -> Cost:
            return replace(cost, read=cost.read + judged)

        if config.budget is None:
            return Plan(blocks, None, 0.0, 0.0, together(costs(blocks)[-1]), asked)

        def price(cost: Cost) -> float:
            return cost.read * read_price + cost.written * write_price

        fitting, all_of_them = sum(price(cost) <= left for cost in costs(blocks)), sum(map(len, blocks))
        if fitting < min(2, len(blocks)):  # less than two neighbourhoods: smaller ones
            one = price(costs(blocks)[0]) / len(blocks[0])
            queries = int(left / one)
            if queries < LEAST_QUERIES:
                short = (
                    f"budget {config.budget} is too small: {max(0.0, left):.0f} {unit} of it are left after checking and "
                    f"measuring the teacher{' and for what people asked' if judged else ''}, and {LEAST_QUERIES} queries "
                    f"take about {LEAST_QUERIES * one:.0f}"
                )
                if not config.select.released:
                    raise ConfigError(f"{short}; raise the budget")
                self.ui.say(f"{short}; they are written all the same, and the other rows are released ones")
                queries, whole = LEAST_QUERIES, max(whole, LEAST_QUERIES * one + judged * read_price)
            blocks = within_count(blocks, queries)
        else:
            blocks = blocks[:fitting]
        expected = costs(blocks)[-1]
        writing = expected.generate_read * read_price + expected.written * write_price
        speeds = f" ({read_speed:.0f} tokens/s read, {write_speed:.0f} written)" if read_speed else ""
        found = sum(map(len, blocks))
        if count is None and found == all_of_them < limit:
            self.ui.say(
                f"the budget of {config.budget} is more than the {found:,} seeds of the corpus need{speeds}; with "
                "generate.rounds = 2 each of them gives two queries"
            )
        else:
            self.ui.say(f"the budget of {config.budget} buys about {found:,} queries{speeds}")
        limited = max(1, int((whole - writing) / read_price))
        return Plan(blocks, limited, read_speed, write_speed, together(expected), asked)

    def _plan_asked(self, queries: Sequence[Query], most: float) -> tuple[int, int]:
        """How many of the ``queries`` that people asked can be judged for ``most`` tokens, and the tokens that it takes.

        The start model's nearest passages stand in for their candidates.
        """
        from bisect import bisect_right

        if not queries:
            return 0, 0
        texts = [query.text for query in queries]
        near, lengths = self._near(self.embed_queries(texts, [query.task for query in queries]))
        reading = Reading(self._passes, self._alone and self._alone[1])
        words = self._teachers_tokens(texts)
        costs = [reading.add([(count, row)], lengths) for count, row in zip(words, near.tolist(), strict=True)]
        fitting = bisect_right(costs, most)
        if fitting == len(queries):
            return fitting, costs[-1]
        part = "" if self.config.generate.queries == 0 else "half of "
        if fitting < (least := min(LEAST_QUERIES, len(costs))):
            raise ConfigError(
                f"{part}the budget of {self.config.budget} is too small to judge {least} of the {len(costs):,} queries that "
                "people asked; raise the budget"
            )
        self.ui.say(
            f"{part}the budget of {self.config.budget} buys about {fitting:,} of the {len(costs):,} queries that people asked"
        )
        return fitting, costs[fitting - 1]

    def _near(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The places of the N nearest passages to each vector, and of every passage the tokens, 0 if it is none of them."""
        from gecko.encoder.nearest import top_k

        near, _ = top_k(vectors, np.asarray(self.vectors), self.config.mine.n)
        read = np.unique(near)
        lengths = np.zeros(len(self.passages), dtype=np.int64)
        lengths[read] = self._teachers_tokens([self.passages[index].content for index in read])
        return near, lengths

    def _teachers_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens that are read of each text; counted a block at a time, since a tokenizer holds much."""
        limit = self.config.relabel.passage_tokens
        most = 16 * limit  # characters; what is behind them is not read
        return [
            min(count, limit)
            for start in range(0, len(texts), TOKENISED)
            for count in self.teacher.count_tokens([text[:most] for text in texts[start : start + TOKENISED]])
        ]

    def _probe_cost(self, unit: str) -> float:
        """What the reranking probe has taken from the budget, in seconds or tokens."""
        file = self.run.path / "check" / "probe.json"
        return float(read_json(file)[unit]) if file.exists() else 0.0

    def _measure(self) -> tuple[float, float, float]:
        """(tokens read a second, tokens written a second, seconds that measuring took)."""
        with self.teacher.asked_anew():
            return self._measured()

    def _measured(self) -> tuple[float, float, float]:
        from gecko.evaluation.builtin import probe
        from gecko.fret.relabel import judge
        from gecko.llm.base import Group

        self.ui.say("measuring the teacher's speed")
        teacher, began = self.teacher, time.perf_counter()
        # A GPU is fast with many texts at a time, and has read and written them in a moment.
        topics, most = (probe(), None) if teacher.needs_many else (probe()[:2], 8)
        groups = [
            Group(passage.content, tuple(text for _, text in topic.queries))
            for topic in topics
            for passage in topic.passages
        ][:most]
        likelihood, relevance = self.prompts["likelihood"], self.prompts["relevance"]
        judge(groups[:1], teacher, likelihood, relevance)  # warm-up, and the preamble
        start, before = time.perf_counter(), teacher.usage.tokens
        judge(groups, teacher, likelihood, relevance)
        read_speed = (teacher.usage.tokens - before) / (time.perf_counter() - start)
        if not read_speed:
            raise TeacherError(
                f"{teacher.name} does not say how many tokens it has read, so no budget and no estimate can be worked out; "
                "set generate.queries to a number instead of a budget, and leave --dry-run out"
            )
        texts = [passage.content for topic in topics for passage in topic.passages][: self.config.generate.batch]
        write_speed = self._write_speed(texts, read_speed)
        return read_speed, write_speed, time.perf_counter() - began

    def _write_speed(self, texts: Sequence[str], read_speed: float) -> float:
        """Tokens written a second: long texts against short ones of the same prompts, of which each is read alike.

        A token is written by one pass through all weights, which reads one: writing cannot be faster than reading. On a busy
        machine a difference may come out as nothing or less; it is then measured again, and at last what the long texts took
        with all their reading is taken, which is too slow and not too fast.
        """
        from gecko.llm.base import Sampling

        teacher = self.teacher

        def took(texts: Sequence[str], tokens: int) -> tuple[float, int]:
            before, start = teacher.usage.written, time.perf_counter()
            teacher.generate(self.prompts["generate"], texts, Sampling(0.0, 1.0, tokens, tuple(range(len(texts)))))
            return time.perf_counter() - start, teacher.usage.written - before

        took(texts[:1], 1)  # the preamble is read once and then remembered
        for _ in range(TRIALS):
            long, short = took(texts, MEASURED_TOKENS), took(texts, 1)
            seconds, tokens = long[0] - short[0], long[1] - short[1]
            if tokens <= 0:
                break  # it ends at once, or does not say how much it has written
            if seconds * read_speed >= tokens:
                return tokens / seconds
        slow = long[1] / max(long[0], 1e-6)
        self.ui.say(
            "the time that writing takes could not be told from that of reading; the estimate is on the safe side"
        )
        return min(slow, read_speed) or read_speed

    def estimate(self) -> str:
        """What the run would cost, stage by stage, in words; embeds the corpus and measures teacher and start model."""
        from gecko.evaluation.sets import load_set

        people = self._read_asked(Counts())
        self.ingest()
        plan = self._new_plan(people)
        cost, queries = plan.expected, plan.asked + sum(map(len, plan.blocks))
        read_speed, write_speed = plan.read_speed, plan.write_speed
        if not read_speed:
            read_speed, write_speed, _ = self._measure()
        writing = cost.generate_read / read_speed + cost.written / write_speed
        judged = cost.read - cost.generate_read
        further = len(self.config.relabel.teachers)
        self.start.passages(self.passages[:1])  # loaded and warm
        began = time.perf_counter()
        self.start.passages(self.passages[:ESTIMATE_SAMPLE])
        text = (time.perf_counter() - began) / min(len(self.passages), ESTIMATE_SAMPLE)
        # A step forwards and backwards takes about three times an encoding; a row has a query and two passages.
        from gecko.training.schedule import enough_steps

        forms, epochs = len(self.config.train.formats), enough_steps(self.config.train, round(queries)).epochs
        training = 3 * 2.5 * text * queries * epochs * forms
        tested = sum(len(load_set(spec).passages) for spec in self.config.evaluate.sets)
        testing = text * tested * (1 + forms) / 60
        before = self.run.manifest("generate")
        paid = before.rows + before.drops.total() if before else 0
        known = [f"{paid:,} queries are there; what is paid for is in these numbers and not paid again"] if paid else []
        return "\n".join(
            [
                f"{len(self.passages):,} passages, {queries:,} queries"
                + (f" ({plan.asked:,} that people asked)" if plan.asked else "")
                + f", {self.config.mine.n} candidates each",
                f"generate: {cost.generate_read:,} tokens read, {cost.written:,} written, about {writing / 60:.1f} minutes",
                f"mine:     about {text * queries / 60:.1f} minutes; the passages are embedded",
                f"relabel:  {judged:,} tokens read, about {judged / read_speed / 60:.1f} minutes"
                + (f"; as many tokens by each of {further} further teachers" if further else ""),
                f"train:    roughly {training / 60:.1f} minutes ({epochs} epochs, {forms} formats)",
                *([f"evaluate: roughly {testing:.1f} minutes for {tested:,} passages"] if tested else []),
                *known,
                f"(measured: {read_speed:.0f} tokens/s read, {write_speed:.0f} written, {1 / text:.0f} passages/s embedded)",
            ]
        )

    def asked(self, *, again: bool = False) -> Manifest | None:
        """Read the queries that people asked, where ``asked.sources`` names some.

        Args:
            again: look at the sources even where they were read before, as at the corpus, by the commands that do.

        Raises:
            CorpusError: there is none, or a source is missing.
            TrainingError: a source cannot be read.
        """
        from gecko.fret.user_queries import asked_identity

        config, generate = self.config.asked, self.config.generate
        if not config.sources:
            return None
        parts = {
            "names": digest(*config.sources),
            "settings": config.model_dump_json(include={"field", "task", "limit"}),
            "held out": f"{generate.heldout} {generate.heldout_max}",
            "seed": str(self.config.seed),
            "schema": schema_digest(Query),
            **_version(ASKED),
        }
        before = self.run.manifest(ASKED)
        if not again and before is not None and before.done and parts.items() <= before.parts.items():
            return before
        parts["sources"] = asked_identity(config)
        return run_local(self.run, ASKED, Query, parts, [0], lambda _, counts: self._read_asked(counts))

    def _read_asked(self, counts: Counts) -> list[Query]:
        from gecko.fret.user_queries import read_asked

        config, generate = self.config.asked, self.config.generate
        if not config.sources:
            return []
        queries = read_asked(config, generate.heldout, generate.heldout_max, self.config.seed, counts)
        if not queries:
            drops = ", ".join(f"{count:,} {reason}" for reason, count in counts.drops.items()) or "it is empty"
            raise CorpusError(
                f"{', '.join(config.sources)}: no query can be used ({drops}); mend or leave out asked.sources"
            )
        if left := left_out(counts):
            self.ui.say(f"of the queries that people asked:{left}")
        return queries

    def generate(self) -> Manifest:
        """Read the queries that people asked, if there are such, and write a task and a query for each seed.

        Raises:
            CorpusError, TrainingError: see :meth:`asked`.
            TeacherRefused: too few generations parse.
        """
        from gecko.evaluation.teacher.probe import refuse_by_parsing
        from gecko.fret.generate import OF_NO_USE

        config = self.config.generate
        size = config.batch or 1
        self.asked()
        seeds = [seed for block in self.plan.blocks for seed in block]
        shards = [seeds[start : start + size] for start in range(0, len(seeds), size)]
        parts = {
            **self.teacher_parts("generate"),
            "passages": self.run.finished("ingest").identity,
            "seeds": seeds_key(seeds),
            "settings": config.model_dump_json(include={"temperature", "top_p", "max_new_tokens", "batch"}),
            "passage tokens": str(self.config.relabel.passage_tokens),
            "seed": str(self.config.seed),
            "schema": schema_digest(Query),
            **_version("generate"),
        }

        growing = {"seeds", "passages", "schema", "settings.batch"}

        def job(known: Mapping[int, Shard]) -> Job[Writing, Query]:
            paid = cache(lambda: paid_queries(self.run, parts, growing, self.by_id, self._query_id))
            before = _earlier_rounds(shards)

            @cache
            def read(index: int) -> list[Query]:
                return self.run.read_shard(self.run.path / "generate", known[index], Query)

            def ask(index: int, counts: Counts) -> Writing:
                written, left = paid().take(shards[index], counts)
                again = {seed.passage_id for seed in left if seed.round}
                earlier = [row for place in before[index] if again for row in read(place) if row.seed_id in again]
                return Writing(left, {seed.passage_id: self.by_id[seed.passage_id] for seed in left}, written, earlier)

            write = Write(self._teacher_loader, self.prompts["generate"], config, self.config.seed)
            return Job(write, ask, before.__getitem__)

        title = f"writing {len(seeds):,} queries, {size} at a time"
        manifest = run_shards(
            self.run,
            "generate",
            Query,
            parts,
            shards,
            job,
            self.engine,
            lambda left: self.ui.bar(title, left),
            growing=growing,
            key=seeds_key,
        )
        if self.config.check.enabled and manifest.done and seeds:
            drops, check, name = manifest.drops, self.config.check, self.config.llm
            parsed = manifest.rows + sum(drops.pop(reason, 0) for reason in OF_NO_USE)
            self._refusing(lambda: refuse_by_parsing(parsed, len(seeds), drops, check, name))
        return manifest

    def _query_id(self, seed: Seed) -> str:
        from gecko.fret.generate import query_id

        return query_id(seed.passage_id, self.prompts["generate"], self.config.seed, seed.round)

    def mine(self) -> Manifest:
        """Find each query's candidates.

        Raises:
            TeacherRefused: too few seeds are found again.
        """
        from gecko.encoder.nearest import cuts
        from gecko.evaluation.teacher.probe import refuse_by_seeds

        queries = own_queries(self.run)
        if not queries:
            raise RunError(f"{self.run.path}: no generated query can be used; see the drops in generate/manifest.json")
        written = [query for query in queries if not query.asked]
        shards = [queries[start : start + QUERIES_A_SHARD] for start in range(0, len(queries), QUERIES_A_SHARD)]
        warm = self.config.mine.warmup_epochs > 0
        parts = {
            "queries": self.run.finished("generate").identity,
            **asked_parts(self.run),
            "passages": self.run.finished("ingest").identity,
            "model": self._miner_identity(),
            "settings": self.config.mine.model_dump_json(),
            "schema": schema_digest(Candidate),
            **({"training": self._warmup_settings()} if warm else {}),
            **_version("mine"),
        }

        def job(_: Mapping[int, Shard]) -> Job[Sequence[Query], Candidate]:
            encoder, vectors = (self._warm_loader, self._warm_vectors) if warm else self._miner
            plain = np.asarray(vectors)
            ids = self.engine.keep([passage.id for passage in self.passages])
            return Job(
                Mine(encoder, ids, [self.engine.keep(plain[cut]) for cut in cuts(len(plain))], self.config.mine.n),
                lambda index, _: shards[index],
            )

        manifest = run_shards(self.run, "mine", Candidate, parts, shards, job, self.engine)
        if self.config.check.enabled and manifest.done and written:
            found = self._seeds_found(written, manifest)
            check, n, name = self.config.check, self.config.mine.n, self.config.llm
            self._refusing(lambda: refuse_by_seeds(found, len(written), n, check, name))
        return manifest

    def _seeds_found(self, queries: Sequence[Query], mined: Manifest) -> int:
        """How many seeds are among the start model's first N; a model that was trained on them finds more."""
        from gecko.encoder.nearest import top_k

        n = self.config.mine.n
        if not self.config.mine.warmup_epochs and self._miner_identity() == self.start_identity:
            return len(queries) - sum(not row.natural for row in self.run.read("mine", Candidate))

        def make(path: Path) -> None:
            place = {passage.id: index for index, passage in enumerate(self.passages)}
            asked = self.embed_queries([query.text for query in queries], [query.task for query in queries])
            found, _ = top_k(asked, np.asarray(self.vectors), n)
            hits = [place[query.seed_id] in row for query, row in zip(queries, found.tolist(), strict=True)]
            write_json(path, {"found": sum(hits), "asked": len(hits)})

        parts = {"candidates": mined.identity, "start model": self.start_identity, "n": str(n), **_version("seeds")}
        return int(read_json(build_file(self.run, "seeds", parts, "found.json", make))["found"])

    def _miner_identity(self) -> str:
        from gecko.encoder import model_identity, resolve_model

        spec = self.config.mine.model
        if not spec:
            return self.start_identity
        final = (self.run.path / "model").resolve()
        if Path(resolve_model(spec)).resolve() == final:
            raise ConfigError(
                f"mine.model = {spec!r} is the run's own model, which the next training replaces; copy it first: "
                f"cp -r {final} {final.parent / 'round-1'}"
            )
        return model_identity(spec)

    @cached_property
    def _miner(self) -> tuple[EncoderLoader, np.ndarray]:
        """The model that mines, and its embeddings of the corpus."""
        from gecko.encoder import load_encoder

        spec = self.config.mine.model
        if not spec:
            return self._start_loader, self.vectors
        passages, identity = self.run.finished("ingest").identity, self._miner_identity()
        parts = {"passages": passages, "model": identity, **_version("embed")}
        encoder = SentEncoder(spec, identity) if self.engine.remote else cache(lambda: load_encoder(spec))
        return encoder, self._embedded("embed-miner", parts, encoder)

    def _warmup_settings(self) -> str:
        return self.config.train.model_dump_json(exclude=WITHOUT_EFFECT | {"epochs"})

    @cached_property
    def _warm(self) -> "Encoder":
        """The start model after training on (q, p_seed) with in-batch negatives: the paper's initial embedder."""
        from gecko.encoder import load_encoder, resolve_model
        from gecko.fret.fuse import Label
        from gecko.fret.select import make_row
        from gecko.training import train

        train_queries = [query for query in self.run.read("generate", Query) if query.split == "train"]
        if not train_queries:
            raise ConfigError("mine.warmup_epochs trains on written queries, and there are none; set it to 0")
        alone = self.config.select.model_copy(update={"positive": "seed", "negative": "none"})
        rows = [
            make_row(query, [Label(query.seed_id, 1, 0, 0, 1, 1, 2.0)], self.by_id, alone, self.config.seed)
            for query in train_queries
        ]
        plain = {"hard_negatives": "none", "same_tower": False, "distill": 0.0}
        loss = self.config.train.loss.model_copy(update=plain)
        settings = self.config.train.model_copy(
            update={"epochs": self.config.mine.warmup_epochs, "loss": loss, "patience": None}
        )
        parts = {
            "queries": self.run.finished("generate").identity,
            "start model": self.start_identity,
            "settings": settings.model_dump_json(exclude=WITHOUT_EFFECT),
            "seed": str(self.config.seed),
            **_version("warmup"),
        }

        def make(path: Path) -> None:
            self.ui.say(f"training the initial embedder on {len(rows)} pairs of query and seed")
            checkpoints = self.run.path / "warmup" / "checkpoints"
            start = resolve_model(self.config.backbone)
            train(
                rows, start, path, self.start.form, settings, self.config.seed, checkpoints=checkpoints, say=self.ui.say
            )
            shutil.rmtree(checkpoints, ignore_errors=True)

        return load_encoder(str(build_file(self.run, "warmup", parts, "model", make)))

    @property
    def _warm_loader(self) -> EncoderLoader:
        if self.engine.remote:
            return SentEncoder(self._warm.spec, self._warm.identity)
        return lambda: self._warm

    @cached_property
    def _warm_vectors(self) -> np.ndarray:
        parts = {"passages": self.run.finished("ingest").identity, "model": self._warm.identity, **_version("embed")}
        return self._embedded("embed-warmup", parts, self._warm_loader)

    def relabel(self) -> Manifest:
        """Score every pair with the teacher, passage by passage, and then with each further one."""
        from gecko.llm.registry import teacher_identity

        queries = {query.id: query for query in own_queries(self.run)}
        candidates = self.run.read("mine", Candidate)
        kept = self._affordable(queries, candidates)
        by_passage: dict[str, list[Query]] = {}
        for candidate in candidates:
            if candidate.query_id in kept:
                by_passage.setdefault(candidate.passage_id, []).append(queries[candidate.query_id])
        work = (queries, kept, by_passage)
        first = self._relabel("relabel", self.teacher_identity, self._teacher_loader, *work)
        for stage, spec in zip(relabel_stages(self.run)[1:], self.config.relabel.teachers, strict=True):
            self._relabel(stage, teacher_identity(spec), self._other_teacher(spec), *work)
        return first

    def _other_teacher(self, spec: str) -> TeacherLoader:
        """A further teacher, loaded on first use in the place of the one before."""
        from gecko.llm.registry import load_teacher, teacher_identity

        if self.engine.remote:
            return SentTeacher(spec, teacher_identity(spec), self.config.relabel, scores=False)

        @cache
        def load() -> "LanguageModel":
            self._may_ask()
            self.forget_teacher()
            self.ui.say(f"loading the teacher ({spec})")
            return load_teacher(spec, self.config.relabel, self.ui)

        def loaded(counts: Counts) -> "LanguageModel":
            began = time.perf_counter()
            teacher = load()
            counts.waited += time.perf_counter() - began
            return teacher

        return loaded

    @property
    def precision_parts(self) -> dict[str, str]:
        """What a choice of ``relabel.precision`` adds to what a score depends on; nothing where it is left to the machine."""
        precision = self.config.relabel.precision
        return {} if precision == "auto" else {"precision": precision}

    def _relabel(
        self,
        stage: str,
        identity: str,
        teacher: TeacherLoader,
        queries: Mapping[str, Query],
        kept: Collection[str],
        by_passage: Mapping[str, Sequence[Query]],
    ) -> Manifest:
        config = self.config.relabel
        order = [passage.id for passage in self.passages if passage.id in by_passage]
        shards = [order[start : start + config.shard_passages] for start in range(0, len(order), config.shard_passages)]
        parts = {
            **self.teacher_parts("likelihood", "relevance"),
            "teacher": identity,
            "passages": self.run.finished("ingest").identity,
            "queries": self.run.finished("generate").identity,
            **asked_parts(self.run),
            "candidates": self.run.finished("mine").identity,
            "queries kept": digest(*sorted(kept)),
            "settings": config.model_dump_json(include={"passage_tokens", "shard_passages"}),
            "schema": schema_digest(Score),
            **self.precision_parts,
            **_version("relabel"),
        }
        pairs = sum(map(len, by_passage.values()))
        growing = {"queries", ASKED, "candidates", "queries kept", "passages", "schema", "settings.shard_passages"}

        def job(_: Mapping[int, Shard]) -> Job[Judging, Score]:
            paid = cache(lambda: paid_scores(self.run, parts, growing, queries, self.by_id, stage))

            def ask(index: int, counts: Counts) -> Judging:
                asked = [(query.id, identifier) for identifier in shards[index] for query in by_passage[identifier]]
                paid().count(asked, counts)
                known = {pair: paid().scores[pair] for pair in asked if pair in paid().scores}
                return Judging([(self.by_id[one], by_passage[one]) for one in shards[index]], known)

            return Job(Judge(teacher, self.prompts["likelihood"], self.prompts["relevance"]), ask)

        size = min(config.shard_passages, len(order))
        title = f"judging {pairs:,} pairs, {size:,} of {len(order):,} passages at a time"
        return run_shards(
            self.run,
            stage,
            Score,
            parts,
            shards,
            job,
            self.engine,
            lambda left: self.ui.bar(title, left),
            growing=growing,
        )

    def _affordable(self, queries: dict[str, Query], candidates: Sequence[Candidate]) -> set[str]:
        """The queries whose exact cost fits what the plan left for relabelling.

        Those that people asked come first, one by one, then the others, neighbourhood by neighbourhood.
        """
        limit = self.plan.relabel_tokens
        if limit is None:
            return set(queries)
        asked = [query.id for query in queries.values() if query.asked][: self.plan.asked]
        retrieved: dict[str, list[str]] = {}
        for candidate in candidates:
            retrieved.setdefault(candidate.query_id, []).append(candidate.passage_id)
        used = sorted({candidate.passage_id for candidate in candidates})
        length = self._token_counts("passage-tokens", [self.by_id[identifier].content for identifier in used], used)
        words = self._token_counts("query-tokens", [query.text for query in queries.values()], list(queries))
        written = [[self._query_id(seed) for seed in block] for block in self.plan.blocks]
        reading = Reading(self._passes, self._alone and self._alone[1])
        kept: list[str] = []
        for number, block in enumerate([*([identifier] for identifier in asked), *written]):
            members = [identifier for identifier in block if identifier in queries]
            if reading.add([(words[one], retrieved[one]) for one in members], length) > limit and number >= 2:
                break
            kept += members
        return set(kept)

    @cached_property
    def _alone(self) -> tuple[int, int] | None:
        """About the tokens of the prompts that write and that judge, for a teacher that reads each call in full."""
        from gecko.llm.registry import reads_once

        if reads_once(self.config.llm):
            return None

        def tokens(role: str) -> int:
            prompt = self.prompts[role]
            return (len(prompt.text) + sum(len(content) for _, content in prompt.messages)) // CHARACTERS_A_TOKEN

        judging = {self.prompts[role].hash: tokens(role) for role in ("likelihood", "relevance")}
        return tokens("generate"), sum(judging.values())

    @property
    def _passes(self) -> int:
        """How often a passage is read for judging it: once if one prompt gives both scores."""
        return 1 if self.prompts["likelihood"].hash == self.prompts["relevance"].hash else 2

    def _token_counts(self, stage: str, texts: Sequence[str], ids: Sequence[str]) -> dict[str, int]:
        """Tokens of each text, at most as many as are read; kept in the run, so that a finished run needs no teacher."""
        parts = {
            "texts": digest(*texts),
            **self.teacher_parts(),
            "passage tokens": str(self.config.relabel.passage_tokens),
        }

        def make(path: Path) -> None:
            write_json(path, self._teachers_tokens(texts))

        counts = read_json(build_file(self.run, stage, parts, "tokens.json", make))
        return dict(zip(ids, counts, strict=True))

    def select(self) -> Manifest:
        """Choose positives and negatives from the scores."""
        from gecko.fret.select import ROWS_ASKED, ROWS_FROM, select

        parts = {
            "queries": self.run.finished("generate").identity,
            **asked_parts(self.run),
            "scores": scores_identity(self.run),
            "candidates": self.run.finished("mine").identity,
            "settings": self.config.select.model_dump_json(),
            "seed": str(self.config.seed),
            "schema": schema_digest(Example),
            **self._released_parts(),
            **_version("select"),
        }

        def work(_: int, counts: Counts) -> list[Example]:
            config, seed = self.config.select, self.config.seed
            asked = {query.id for query in asked_queries(self.run)}
            rows = list(select(self.queries, self.labels, self.by_id, config, seed, counts))
            if taught := sum(row.query_id in asked for row in rows):
                counts.notes[ROWS_ASKED] = taught
            for released in self.released:
                counts.take_drops(released.counts.drops, released.counts.examples)
                counts.notes.update(released.counts.notes)
                ours = {query.id for query in released.queries}
                counts.notes[f"{ROWS_FROM}{released.name}"] = sum(row.query_id in ours for row in rows)
            return rows

        return run_local(self.run, "select", Example, parts, [0], work)

    def embed_queries(self, texts: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
        """Unit vectors of queries by the start model, which is loaded for it: (len(texts), d)."""
        return self.start.queries(texts, tasks)

    @cached_property
    def released(self) -> "list[Released]":
        """Rows that were labelled elsewhere; of several that hold the same query, the first has it."""
        from gecko.fret.release import load_release

        own = own_queries(self.run)
        heldout = {query.seed_id for query in own if query.split == "heldout"} - {""}
        seen = {query.id for query in own}
        found = []
        for spec in self.config.select.released:
            released = load_release(spec, self.by_id, self.config.select, heldout)
            new = [query for query in released.queries if query.id not in seen]
            for query in released.queries:
                if query.id in seen:
                    released.counts.drop(f"{spec}: known already", query.text)
            seen |= {query.id for query in new}
            found.append(replace(released, queries=new))
        return found

    @cached_property
    def queries(self) -> list[Query]:
        """The run's own queries, then the released ones."""
        return [*own_queries(self.run), *(query for one in self.released for query in one.queries)]

    @cached_property
    def labels(self) -> "dict[str, list[Label]]":
        """Each query's candidates in fused order."""
        from gecko.fret.select import group_labels

        judged = group_labels(
            own_queries(self.run),
            self.run.read("mine", Candidate),
            all_scores(self.run),
            self.config.select,
        )
        return judged | {query.id: one.labels[query.id] for one in self.released for query in one.queries}

    @cached_property
    def heldout(self) -> list[Query]:
        """The queries kept from training that the teacher has labelled."""
        return [query for query in self.queries if query.split == "heldout" and query.id in self.labels]

    def train(self) -> Path:
        """Train the start model in each input format that is asked for, and keep one (:meth:`chosen_format`).

        Returns:
            the folder of the final model, ``RUN/model``.
        """
        examples = self.training_rows
        self.forget_teacher()
        if len(examples) < 2:
            drops = ", ".join(f"{count} {reason}" for reason, count in self.run.finished("select").drops.items())
            raise TrainingError(
                f"{len(examples)} training rows are left ({drops}); raise the budget, or lower select.min_rc"
            )
        for form in self.config.train.formats:
            self.student_folder(form)
        chosen = self.chosen_format()
        final = self.run.path / "model"
        replace_folder(self.student_folder(chosen), final)
        return final

    @cached_property
    def training_rows(self) -> list[Example]:
        """What is trained on: the rows of FRet and those of the mixture."""
        from gecko.stages.mixture import mixture_rows
        from gecko.training.mixture import without_tasks

        mixture = self.config.mixture
        fret = self.run.read("select", Example) if mixture.fret_weight > 0 else []
        return without_tasks([*fret, *mixture_rows(self)], mixture.task_dropout, self.config.seed)

    @cached_property
    def _mixture_parts(self) -> dict[str, str]:
        """What a training depends on beside FRet; nothing where FRet is alone."""
        mixture = self.config.mixture
        if mixture == MixtureConfig():
            return {}
        drawn = mixture.model_dump_json(exclude={"sets"}) + str([(entry.name, entry.weight) for entry in mixture.sets])
        return {"mixture": digest(drawn, *(repr(row) for row in self.training_rows if row.dataset != FRET))}

    def student_folder(self, form: InputFormat) -> Path:
        """The model trained in one input format; trained now if it is not there."""
        from gecko.encoder import model_identity

        settings, spec = self.config.train, self.config.student or self.config.backbone
        parts = {
            "rows": self.run.finished("select").identity,
            "start model": model_identity(spec) if self.config.student else self.start_identity,
            **self._mixture_parts,
            "settings": settings.model_dump_json(exclude=WITHOUT_EFFECT),
            "format": form,
            "seed": str(self.config.seed),
            **_version("train"),
        }

        def make(path: Path) -> None:
            from gecko.encoder import resolve_model
            from gecko.training import train
            from gecko.training.mixture import sampling_of
            from gecko.training.schedule import TOO_FEW

            examples = self.training_rows
            self.ui.say(f"training on {len(examples)} rows, {form} format")
            if len(examples) < TOO_FEW and form == self.config.train.formats[0]:
                self.ui.say(
                    f"warning: {len(examples)} rows are few to learn from, and may make the model worse; raise "
                    "generate.queries or the budget, and measure the model"
                )
            checkpoints = self.run.path / f"train-{form}" / "checkpoints"
            start = resolve_model(spec)
            report = train(
                examples,
                start,
                path,
                form,
                settings,
                self.config.seed,
                checkpoints=checkpoints,
                say=self.ui.say,
                sampling=sampling_of(self.config.mixture),
                passages=self.by_id,
            )
            write_json(checkpoints.parent / "training.json", asdict(report))
            shutil.rmtree(checkpoints, ignore_errors=True)

        return build_file(self.run, f"train-{form}", parts, "model", make)

    def chosen_format(self) -> InputFormat:
        """The first of the trained formats, unless another agrees better with the teacher on held-out queries.

        Better: the paired 95 % interval of the difference lies above 0, and there are eight queries or more: an interval of
        two lies above 0 whenever both differences do. A dozen queries favour one or the other by
        chance, and a format that is new to the start model loses more on a whole corpus than among the start's own
        candidates, on which agreement is measured.
        """
        from gecko.evaluation.metrics import bootstrap_ci

        first, *others = self.config.train.formats
        if not others or not self.heldout:
            return first
        values = {label: np.array(found) for label, found in self.agreements().items()}
        if len(values[first]) < LEAST_HELDOUT:
            return first
        gains = {
            form: bootstrap_ci(values[form] - values[first], self.config.evaluate.resamples, self.config.seed)
            for form in others
        }
        clear = [form for form in others if gains[form][1] > 0]
        return max(clear, key=lambda form: gains[form][0], default=first)

    def agreements(self) -> dict[str, list[float]]:
        """Agreement with the teacher on each held-out query: for ``start`` and each trained format."""
        from gecko.encoder import load_encoder
        from gecko.evaluation.agreement import agreement

        folders = {form: self.student_folder(form) for form in self.config.train.formats}
        parts = {
            "scores": scores_identity(self.run),
            "selection": self.run.finished("select").identity,
            "start model": self.start_identity,
            **self._released_parts(),
            **_version("agreement"),
        }
        parts.update({form: self.run.finished(f"train-{form}").identity for form in folders})

        def make(path: Path) -> None:
            models: dict[str, Encoder] = {"start": self.start}
            models.update({form: load_encoder(str(folder)) for form, folder in folders.items()})
            values = {
                label: agreement(self.heldout, self.labels, self.by_id, encoder).tolist()
                for label, encoder in models.items()
            }
            write_json(path, values)

        values: dict[str, list[float]] = read_json(build_file(self.run, "agreement", parts, "agreement.json", make))
        return values

    def evaluate(self) -> dict[str, Any]:
        """Hold the start model, the trained ones and BM25 against the test sets."""
        from gecko.evaluation import builtin
        from gecko.stages.evaluate import measure_run

        self.train()
        forms = self.config.train.formats
        parts = {
            **{form: self.run.finished(f"train-{form}").identity for form in forms},
            "form": self.chosen_format(),
            "agreement": digest(str(self.agreements())) if self.heldout else "",
            "start model": self.start_identity,
            "sets": digest(*(f"{spec}={_set_identity(spec)}" for spec in self.config.evaluate.sets)),
            "questions": builtin.data_hash("stdlib-questions.jsonl"),
            "resamples": str(self.config.evaluate.resamples),
            "seed": str(self.config.seed),
            **_version("evaluate"),
        }

        def make(path: Path) -> None:
            write_json(path, measure_run(self))

        result: dict[str, Any] = read_json(build_file(self.run, "evaluate", parts, "results.json", make))
        return result

    def report(self, figures: Path | None = None) -> Path:
        """Write ``RUN/report.html``, and the cards of the model and the rows; the plots, too, where a folder is named."""
        from gecko.report import write_report
        from gecko.stages.publish import write_cards

        path = self.run.path / "report.html"
        write_report(self, path, figures)
        write_cards(self)
        return path


def distill(run: Run, ui: Ui | None = None, *, force: bool = False, engine: Executor = LOCAL) -> dict[str, Any]:
    """All stages in order: from the corpus to the model, its numbers and the report.

    Args:
        run: the run folder, held.
        ui: where sentences and progress go.
        force: go on with a teacher that the check refuses.
        engine: see :class:`Pipeline`.

    Returns:
        what ``evaluate`` measured.

    Raises:
        GeckoError: see the stages.
    """
    from gecko.evaluation.sets import load_set
    from gecko.stages.mixture import refuse_names

    refuse_names(run)
    pipeline = Pipeline(run, ui, force=force, engine=engine)
    for spec in run.config.evaluate.sets:
        if spec != STDLIB_QUESTIONS:
            load_set(spec)  # a mistake in it should show now, not after the teacher was paid
    pipeline.asked(again=True)
    pipeline.ingest()
    pipeline.through("select")
    pipeline.train()
    result = pipeline.evaluate()
    pipeline.report()
    return result


def _earlier_rounds(shards: Sequence[Sequence[Seed]]) -> list[list[int]]:
    """For each shard of seeds the shards before it that hold a passage which comes again in it."""
    places: dict[str, list[int]] = {}
    found = []
    for index, shard in enumerate(shards):
        again = {place for seed in shard if seed.round for place in places.get(seed.passage_id, ())}
        found.append(sorted(again - {index}))
        for seed in shard:
            places.setdefault(seed.passage_id, []).append(index)
    return found


def _version(stage: str) -> dict[str, str]:
    return {"version": str(VERSIONS[stage])}


def _set_identity(spec: str) -> str:
    from gecko.corpus.readers import source_identity
    from gecko.evaluation.beir import parse_spec

    if spec == STDLIB_QUESTIONS:
        return source_identity("stdlib")
    path = parse_spec(spec, None)[0]
    if not path.exists():
        raise CorpusError(f"{path} does not exist; give a file, a folder or `stdlib`")
    return tree_sha256(path)
