"""What a teacher is worth: on labelled sets, its orders of the retriever's candidates against the retriever's own.

For each form of the prompts the retriever's first N are put in order by QL, by RC, by their fusion, and by their fusion
with the retriever's rank. Differences are paired, query by query.

Answers are kept as they come, by teacher, prompt and passage length, one batch a line; a pair is known by the hash of its
texts. So a check that was killed goes on where it was, more queries cost only what is new, and a second form that shares a
prompt with the first pays for the other prompt alone.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from filelock import FileLock, Timeout

from gecko.device import GPU_TEXTS
from gecko.errors import ConfigError, EvaluationError, RunError, TeacherError
from gecko.evaluation.beir import RetrievalSet
from gecko.evaluation.evaluate import HEADLINE, dense_run, refuse_equal_names
from gecko.evaluation.metrics import Array, descending, macro_ci, per_query
from gecko.fret.fuse import Fusion, fuse
from gecko.fret.relabel import prompt_hash, read_both, read_labels, relevance_logit, shielded_groups
from gecko.llm.base import Group, LanguageModel, Sampling
from gecko.progress import Silent, Ui
from gecko.prompts import Prompt, load_prompt
from gecko.records import Candidate, Passage, Score
from gecko.store import digest, read_json, write_json
from gecko.weights.cache import cache_folder, cache_room

if TYPE_CHECKING:
    from gecko.encoder import Encoder

VERSION = 1
BATCH = 16  # passages that are asked about between two writes to the cache, at least
PACKED = 64  # tokens a passage and its few queries surely have; a GPU's pack of 16,384 is filled by 256 passages
WRITING_SAMPLE = 16
RUN_QUERIES = 1000  # of the run whose cost is estimated

Reading = Literal["both", "ql", "rc"]
Verdict = Literal["passes", "no difference shown", "does harm"]


@dataclass(frozen=True)
class ValueConfig:
    """What is measured.

    Attributes:
        forms: one prompt's name or file, read for QL and RC in one pass, or two with a ``+`` between (P_QL+P_RC); or a
            folder of files.
        queries: at most so many a set, drawn at random; more of them include the fewer.
        candidates: how many of the retriever's first passages are put in order, N.
        passage_tokens: the teacher reads at most so many tokens of a passage.
        precision: of the teacher's linear layers, as ``relabel.precision``.
        generate: the prompt whose cost is measured for the estimate of a run.
        max_new_tokens: of a generated query.
        resamples: of the paired bootstrap.
        seed: of the draw of queries and the bootstrap.
    """

    forms: tuple[str, ...] = ("relevance",)
    queries: int = 100
    candidates: int = 20
    passage_tokens: int = 256
    precision: Literal["auto", "int8", "full"] = "auto"
    generate: str = "generate"
    max_new_tokens: int = 64
    resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class Form:
    """The prompts of one form; ``likelihood`` and ``relevance`` are the same where one prompt serves both."""

    name: str
    likelihood: Prompt
    relevance: Prompt

    @property
    def joint(self) -> bool:
        """Whether both scores are read in one pass."""
        return self.likelihood.hash == self.relevance.hash


def prompt_names(spec: str) -> tuple[str, str]:
    """The prompts of a form: for QL, for RC."""
    first, plus, second = spec.partition("+")
    return (first, second) if plus and not Path(spec).is_file() else (spec, spec)


def load_form(spec: str) -> Form:
    """``relevance``, ``my.toml`` or ``query_likelihood+relevance``.

    Raises:
        ConfigError: a prompt cannot be read, or cannot be used for judging.
    """
    likelihood, relevance = map(load_prompt, prompt_names(spec))
    for prompt in (likelihood, relevance):
        if not prompt.has_query:
            raise ConfigError(f"form {spec}: prompt {prompt.name!r} has no {{query}}, so it cannot judge one; add it")
    if len(relevance.labels) < 2:
        raise ConfigError(
            f"form {spec}: prompt {relevance.name!r} has {len(relevance.labels)} labels, and relevance needs two or more; "
            "write P_QL+P_RC for two prompts, or add labels"
        )
    return Form(spec, likelihood, relevance)


def spread_forms(specs: Sequence[str]) -> tuple[str, ...]:
    """Forms with a folder in the place of each of its prompt files, in order of name.

    A file without labels can give a likelihood alone, so the shipped ``relevance`` stands beside it.

    Raises:
        ConfigError: a folder holds none, or one cannot be read.
    """
    found: list[str] = []
    for spec in specs:
        if not Path(spec).is_dir():
            found.append(spec)
            continue
        files = sorted(map(str, Path(spec).glob("*.toml")))
        if not files:
            raise ConfigError(f"--form {spec}: the folder holds no prompt (*.toml)")
        found += [file if load_prompt(file).labels else f"{file}+relevance" for file in files]
    return tuple(dict.fromkeys(found))


# --- the teacher's answers, kept


@dataclass
class Answers:
    """What one teacher said under one prompt: ``pairs`` maps a pair's hash to (QL sum, QL tokens, RC), NaN where it refused.

    ``tokens`` and ``seconds`` are what the answers took, over all the sessions.
    """

    path: Path
    pairs: dict[str, tuple[float, int, float]] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def load(cls, path: Path) -> "Answers":
        """Read a file of answers; a last line that was cut off by a kill is forgotten.

        Raises:
            RunError: another line is damaged.
        """
        answers = cls(path)
        if not path.exists():
            return answers
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                answers._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(
                    f"{path}:{number} is damaged; move the file away to have its pairs asked again"
                ) from error
        return answers

    def add(self, pairs: dict[str, tuple[float, int, float]], tokens: int, seconds: float) -> None:
        """Keep a batch, on disk first."""
        row = {"pairs": pairs, "tokens": tokens, "seconds": seconds}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        for key, (total, count, relevance) in row["pairs"].items():
            self.pairs[key] = (float(total), int(count), float(relevance))
        self.tokens += row["tokens"]
        self.seconds += row["seconds"]


def pair_key(query: str, passage: Passage) -> str:
    """A pair by its texts."""
    return digest(query, passage.content)


class Judge:
    """Asks a teacher what is not yet known. The teacher is loaded only if something is missing.

    Args:
        identity: the teacher's.
        load: loads it.
        passage_tokens: see :class:`ValueConfig`.
        ui: where the progress goes.
        how: what else answers depend on; they are kept apart by it.
    """

    def __init__(
        self, identity: str, load: Callable[[], LanguageModel], passage_tokens: int, ui: Ui, how: str = ""
    ) -> None:
        self.identity = identity
        self.passage_tokens = passage_tokens
        self.ui = ui
        self._load = load
        self._teacher: LanguageModel | None = None
        self._known: dict[str, Any] | None = None
        self._answers: dict[tuple[Reading, str], Answers] = {}
        self.folder = cache_room("checks") / f"teacher-{identity}{how}"

    @property
    def teacher(self) -> LanguageModel:
        """The teacher, loaded on first use; its name and what it can do are noted."""
        if self._teacher is None:
            self._teacher = self._load()
            self._known = {"name": self._teacher.name, "can_score": self._teacher.can_score}
            write_json(self.folder / "teacher.json", self._known)
        return self._teacher

    @property
    def known(self) -> dict[str, Any]:
        """``name`` and ``can_score`` of the teacher."""
        path = self.folder / "teacher.json"
        if self._known is None and path.exists():
            self._known = read_json(path)
        if self._known is None:
            _ = self.teacher
        assert self._known is not None
        return self._known

    def answers(self, reading: Reading, prompt: Prompt) -> Answers:
        """What is known under one prompt."""
        key = (reading, prompt.hash)
        if key not in self._answers:
            name = f"{reading}-{digest(str(VERSION), prompt.hash, str(self.passage_tokens))}.jsonl"
            self._answers[key] = Answers.load(self.folder / name)
        return self._answers[key]

    def readings(self, form: Form) -> list[tuple[Reading, Prompt]]:
        """How a form is read: in one pass or two; RC alone where the teacher cannot score a given text."""
        if not self.known["can_score"]:
            return [("rc", form.relevance)]
        return [("both", form.relevance)] if form.joint else [("ql", form.likelihood), ("rc", form.relevance)]

    def _find(self, reading: Reading, prompt: Prompt, key: str) -> tuple[float, int, float] | None:
        for kind in ("both", reading):
            found = self.answers(kind, prompt).pairs.get(key)
            if found is not None:
                return found
        return None

    def ask(self, form: Form, groups: Sequence[tuple[Passage, Sequence[str]]], title: str) -> None:
        """Make sure that every pair is known under a form.

        Args:
            form: the prompts.
            groups: passages, each with the queries that retrieved it.
            title: of the progress bar.
        """
        for reading, prompt in self.readings(form):
            missing = []
            for passage, queries in groups:
                new = [query for query in queries if self._find(reading, prompt, pair_key(query, passage)) is None]
                if new:
                    missing.append((passage, new))
            if not missing:
                continue
            teacher = self.teacher
            at_once = max(BATCH, teacher.pack_tokens // PACKED)
            with self.ui.bar(f"{title}: {_READ[reading]} under {prompt.name!r}", len(missing)) as advance:
                for start in range(0, len(missing), at_once):
                    self._batch(teacher, reading, prompt, missing[start : start + at_once])
                    advance(len(missing[start : start + at_once]))

    def _batch(
        self, teacher: LanguageModel, reading: Reading, prompt: Prompt, batch: Sequence[tuple[Passage, Sequence[str]]]
    ) -> None:
        groups = [Group(passage.content, tuple(queries)) for passage, queries in batch]
        began, before, refused = time.perf_counter(), teacher.usage.tokens, teacher.usage.refused
        rows: list[list[tuple[float, int, float]]]
        match reading:
            case "both":
                rows = [
                    [(found.ql_sum, found.ql_tokens, relevance_logit(prompt, found.labels)) for found in row]
                    for row in read_both(groups, teacher, prompt)
                ]
            case "ql":
                scores = teacher.score(prompt, shielded_groups(prompt, groups))
                rows = [[(total, count, 0.0) for total, count in row] for row in scores]
            case "rc":
                rows = [
                    [(0.0, 0, relevance_logit(prompt, labels)) for labels in row]
                    for row in read_labels(groups, teacher, prompt)
                ]
        pairs = {
            pair_key(query, passage): found
            for (passage, queries), row in zip(batch, rows, strict=True)
            for query, found in zip(queries, row, strict=True)
        }
        if teacher.usage.refused == refused and not all(map(_is_whole, pairs.values())):
            raise TeacherError(f"{teacher.name} gave a score that is no finite number under prompt {prompt.name!r}")
        seconds = time.perf_counter() - began
        self.answers(reading, prompt).add(pairs, teacher.usage.tokens - before, seconds)

    def refused(self, form: Form, query: str, passage: Passage) -> bool:
        """Whether the teacher would not answer a pair that was asked for."""
        key = pair_key(query, passage)
        found = [self._find(reading, prompt, key) for reading, prompt in self.readings(form)]
        return not all(answer is None or _is_whole(answer) for answer in found)

    def score(self, form: Form, query_id: str, query: str, passage: Passage) -> Score:
        """Both scores of a pair that was asked for."""
        key = pair_key(query, passage)
        likelihood: tuple[float, int, float] | None = (0.0, 0, 0.0)
        if self.known["can_score"]:
            likelihood = self._find("ql", form.likelihood, key)
        relevance = self._find("rc", form.relevance, key)
        if likelihood is None or relevance is None:
            raise EvaluationError(f"query {query_id!r} and passage {passage.id!r} were not judged under {form.name}")
        used = prompt_hash(form.likelihood, form.relevance)
        return Score(query_id, passage.id, self.identity, used, likelihood[0], likelihood[1], relevance[2])

    def price(self, form: Form) -> tuple[float, float]:
        """(tokens, seconds) of a pair under a form, as measured.

        RC that was read on the way of a joint reading has no price of its own; it is given that of the joint one.
        """
        tokens = seconds = 0.0
        for reading, prompt in self.readings(form):
            answers = self.answers(reading, prompt)
            if not answers.pairs:
                answers = self.answers("both", prompt)
            tokens += answers.tokens / len(answers.pairs)
            seconds += answers.seconds / len(answers.pairs)
        return tokens, seconds

    def writing_price(self, prompt: Prompt, passages: Sequence[Passage], max_new_tokens: int) -> tuple[float, float]:
        """(tokens, seconds) of a generated query, measured once on a few passages and kept."""
        key = digest(str(VERSION), prompt.hash, str(max_new_tokens), str(self.passage_tokens))
        path = self.folder / f"writing-{key}.json"
        if not path.exists():
            self.ui.say("measuring how fast the teacher writes queries")
            sample = GPU_TEXTS if self.teacher.needs_many else WRITING_SAMPLE
            texts = [passage.content for passage in passages[:sample]]
            began, before = time.perf_counter(), self.teacher.usage.tokens
            with self.teacher.asked_anew():
                self.teacher.generate(prompt, texts, Sampling(0.5, 0.95, max_new_tokens, tuple(range(len(texts)))))
            tokens, seconds = self.teacher.usage.tokens - before, time.perf_counter() - began
            write_json(path, {"tokens": tokens / len(texts), "seconds": seconds / len(texts)})
        found = read_json(path)
        return float(found["tokens"]), float(found["seconds"])


def _is_whole(answer: tuple[float, int, float]) -> bool:
    return math.isfinite(answer[0]) and math.isfinite(answer[2])


_READ = {"both": "judging", "ql": "query likelihood", "rc": "relevance"}

# --- the measurement


def sample_queries(data: RetrievalSet, count: int, seed: int) -> RetrievalSet:
    """A set with ``count`` of its queries, drawn at random and kept in file order; a larger draw includes a smaller."""
    chosen = sorted(np.random.default_rng(seed).permutation(len(data.queries))[:count].tolist())
    return _with_queries(data, [data.queries[place] for place in chosen])


def _with_queries(data: RetrievalSet, queries: list[tuple[str, str]]) -> RetrievalSet:
    return replace(data, queries=queries, qrels={key: data.qrels[key] for key, _ in queries})


def retrieve(data: RetrievalSet, start: "Callable[[], Encoder]", identity: str, k: int) -> dict[str, dict[str, float]]:
    """The start model's first ``k`` passages of each query; kept, so that a second check embeds nothing."""
    texts = digest(*(text for passage in data.passages for text in (passage.id, passage.title, passage.text)))
    asked = digest(*(text for query in data.queries for text in query))
    path = (
        cache_folder() / "checks" / f"candidates-{digest(str(VERSION), identity, texts, asked, data.task, str(k))}.json"
    )
    if not path.exists():
        write_json(path, dense_run(data, start(), k, progress=True))
    run: dict[str, dict[str, float]] = read_json(path)
    return run


@dataclass(frozen=True)
class Measured:
    """nDCG@10 of each order (and ``retriever``) on one set under one form: (queries,) on 0–1."""

    data: RetrievalSet
    orders: dict[str, Array]


def measure_orders(
    sets: Sequence[RetrievalSet],
    forms: Sequence[Form],
    config: ValueConfig,
    judge: Judge,
    start: "Callable[[], Encoder]",
    start_identity: str,
) -> dict[str, list[Measured]]:
    """Put the start model's candidates in every order, on every set, under every form.

    Args:
        sets: test sets, with different names.
        forms: of the prompts.
        config: what is measured.
        judge: asks the teacher.
        start: loads the start model.
        start_identity: hash of the start model.

    Returns:
        by form, each set with nDCG@10 of each order and query; a query is left out under all forms, and that is said, where
        the teacher refused a pair of it under any.

    Raises:
        EvaluationError: two sets have one name, or no query of a set is left.
        RunError: another check of the same teacher is at work.
    """
    refuse_equal_names([data.name for data in sets])
    judge.folder.mkdir(parents=True, exist_ok=True)
    measured: dict[str, list[Measured]] = {form.name: [] for form in forms}
    try:
        with FileLock(judge.folder / "lock", timeout=0):
            for whole in sets:
                data = sample_queries(whole, config.queries, config.seed)
                run = retrieve(data, start, start_identity, config.candidates)
                by_id = {passage.id: passage for passage in data.passages}
                groups = _groups(data, run)
                for form in forms:
                    judge.ask(form, groups, data.name)
                data = _answered(data, groups, forms, judge)
                for form in forms:
                    measured[form.name].append(Measured(data, _orders(data, run, by_id, form, judge)))
    except Timeout:
        raise RunError(
            f"another check of this teacher is at work (lock {judge.folder / 'lock'}); wait for it"
        ) from None
    return measured


def _groups(data: RetrievalSet, run: dict[str, dict[str, float]]) -> list[tuple[Passage, list[str]]]:
    """Passages with the queries that retrieved them; a query text that stands in the set twice is asked once."""
    texts = dict(data.queries)
    asked: dict[str, list[str]] = {}
    for query_id, found in run.items():
        for passage_id in found:
            asked.setdefault(passage_id, []).append(texts[query_id])
    return [(passage, list(dict.fromkeys(asked[passage.id]))) for passage in data.passages if passage.id in asked]


def _answered(
    data: RetrievalSet, groups: Sequence[tuple[Passage, Sequence[str]]], forms: Sequence[Form], judge: Judge
) -> RetrievalSet:
    """A set less the queries of which the teacher refused a pair, so that all orders are of the same ones."""
    refused = {
        query
        for passage, queries in groups
        for query in queries
        if any(judge.refused(form, query, passage) for form in forms)
    }
    if not refused:
        return data
    left = [(key, query) for key, query in data.queries if query not in refused]
    lost, all_of_them = len(data.queries) - len(left), len(data.queries)
    what = f"{judge.known['name']} refused a pair of {lost} of {all_of_them} queries of {data.name}"
    if not left:
        raise EvaluationError(f"{what}, so it orders none; take another teacher, or mend what its server complains of")
    judge.ui.say(f"{what}; they are left out")
    return _with_queries(data, left)


def teacher_value(
    sets: Sequence[RetrievalSet],
    config: ValueConfig,
    judge: Judge,
    start: "Callable[[], Encoder]",
    start_identity: str,
) -> dict[str, Any]:
    """Measure a teacher on labelled sets under each form of the prompts.

    Args:
        sets: test sets, with different names.
        config: what is measured.
        judge: asks the teacher.
        start: loads the start model.
        start_identity: hash of the start model.

    Returns:
        what ``gecko check-teacher --json`` prints; numbers on 0–1.

    Raises:
        ConfigError: a form cannot be used.
        EvaluationError: two sets have one name.
        RunError: another check of the same teacher is at work.
    """
    forms = [load_form(spec) for spec in spread_forms(config.forms)]
    measured = measure_orders(sets, forms, config, judge, start, start_identity)
    result: dict[str, Any] = {
        "teacher": judge.known["name"],
        "identity": judge.identity,
        "can_score": judge.known["can_score"],
        "candidates": config.candidates,
        "forms": {form.name: _numbers(measured[form.name], judge, form, config) for form in forms},
    }
    first = measured[forms[0].name]
    for form in forms[1:]:  # paired, so it tells forms apart that intervals against the retriever do not
        over = _against(measured[form.name], _usual(first), _usual(first), config, first)
        result["forms"][form.name]["over_first"] = list(over)
    result["best"] = _best(measured, config)
    best = next(form for form in forms if form.name == result["best"]["form"])
    result["estimate"] = _estimate(best, sets[0].passages, config, judge)
    return result


def _orders(
    data: RetrievalSet, run: dict[str, dict[str, float]], passages: dict[str, Passage], form: Form, judge: Judge
) -> dict[str, Array]:
    fusions: tuple[Fusion, ...] = ("ql", "rc", "rrf", "rrf+retriever") if judge.known["can_score"] else ("rc",)
    ranked: dict[str, dict[str, dict[str, float]]] = {"retriever": {}, **{fusion: {} for fusion in fusions}}
    for query_id, query in data.queries:
        candidates = [
            Candidate(query_id, passage_id, rank, cosine)
            for rank, (passage_id, cosine) in enumerate(run[query_id].items(), start=1)
        ]
        scores = {c.passage_id: judge.score(form, query_id, query, passages[c.passage_id]) for c in candidates}
        ranked["retriever"][query_id] = descending([candidate.passage_id for candidate in candidates])
        for fusion in fusions:
            order = [label.passage_id for label in fuse(candidates, scores, fusion)]
            ranked[fusion][query_id] = descending(order)
    return {order: per_query(rows, data.qrels, (HEADLINE,))[HEADLINE] for order, rows in ranked.items()}


def _numbers(measured: Sequence[Measured], judge: Judge, form: Form, config: ValueConfig) -> dict[str, Any]:
    tokens, seconds = judge.price(form)
    result: dict[str, Any] = {
        "sets": {one.data.name: _row([one], config) | {"split": one.data.split} for one in measured},
        "tokens_per_pair": tokens,
        "seconds_per_pair": seconds,
    }
    if len(measured) > 1:
        result["macro"] = _row(measured, config)
    if "rrf" in measured[0].orders:
        result["rrf_over"] = {order: list(_against(measured, "rrf", order, config)) for order in ("ql", "rc")}
    return result


def _row(measured: Sequence[Measured], config: ValueConfig) -> dict[str, Any]:
    row: dict[str, Any] = {"queries": sum(len(one.data.queries) for one in measured)}
    for order in measured[0].orders:
        mean = float(np.mean([one.orders[order].mean() for one in measured]))
        if order == "retriever":
            row[order] = {HEADLINE: mean, "delta": None, "ci95": None}
            continue
        delta, low, high = _against(measured, order, "retriever", config)
        row[order] = {HEADLINE: mean, "delta": delta, "ci95": [low, high]}
    return row


def _against(
    measured: Sequence[Measured], order: str, base: str, config: ValueConfig, other: Sequence[Measured] | None = None
) -> tuple[float, float, float]:
    """How far an order is ahead of another, under the same form if no other one is given; with its interval."""
    pairs = zip(measured, other or measured, strict=True)
    differences = [one.orders[order] - another.orders[base] for one, another in pairs]
    return macro_ci(differences, config.resamples, config.seed)


def _usual(measured: Sequence[Measured]) -> str:
    """The order that forms are compared by; a teacher that cannot score a given text has RC alone."""
    return "rrf" if "rrf" in measured[0].orders else "rc"


def _best(measured: dict[str, list[Measured]], config: ValueConfig) -> dict[str, Any]:
    """The form whose fused order is best, and the fusion to use: RRF, unless another is shown to be better."""
    usual = _usual(next(iter(measured.values())))

    def worth(form: str) -> float:
        return _against(measured[form], usual, "retriever", config)[0]

    form = max(measured, key=worth)  # the first of equals
    fusion = usual
    for other in measured[form][0].orders:
        if other not in ("retriever", usual) and _against(measured[form], other, usual, config)[1] > 0:
            ahead = _against(measured[form], other, fusion, config)[0]
            fusion = other if ahead > 0 else fusion
    delta, low, high = _against(measured[form], fusion, "retriever", config)
    verdict: Verdict = "passes" if low > 0 else "does harm" if high < 0 else "no difference shown"
    queries = sum(len(one.data.queries) for one in measured[form])
    return {
        "form": form,
        "fusion": fusion,
        "delta": delta,
        "ci95": [low, high],
        "queries": queries,
        "sets": len(measured[form]),
        "verdict": verdict,
    }


def _estimate(form: Form, passages: Sequence[Passage], config: ValueConfig, judge: Judge) -> dict[str, Any]:
    """Cost of a run of ``RUN_QUERIES`` on this machine, from what the check itself took.

    A run shares passages between the queries of a neighbourhood more than a test set's queries do: an upper bound.
    """
    tokens, seconds = judge.price(form)
    pairs = RUN_QUERIES * config.candidates
    estimate: dict[str, Any] = {
        "queries": RUN_QUERIES,
        "candidates": config.candidates,
        "judging": {"tokens": round(tokens * pairs), "seconds": seconds * pairs},
        "writing": None,
    }
    try:
        tokens, seconds = judge.writing_price(load_prompt(config.generate), passages, config.max_new_tokens)
    except TeacherError as error:
        judge.ui.say(f"writing queries could not be measured: {error}")
    else:
        estimate["writing"] = {"tokens": round(tokens * RUN_QUERIES), "seconds": seconds * RUN_QUERIES}
    return estimate


def connect(
    llm: str, backbone: str, config: ValueConfig, ui: Ui | None = None
) -> "tuple[Judge, Callable[[], Encoder], str]":
    """What measuring needs: a judge that loads the teacher when it must, the start model's loader and its identity."""
    from gecko.config import RelabelConfig
    from gecko.encoder import load_encoder, model_identity
    from gecko.llm.registry import load_teacher, teacher_identity

    shown = ui or Silent()

    def load() -> LanguageModel:
        shown.say(f"loading the teacher ({llm})")
        settings = RelabelConfig(passage_tokens=config.passage_tokens, precision=config.precision)
        return load_teacher(llm, settings, shown)

    how = "" if config.precision == "auto" else f"-{config.precision}"
    judge = Judge(teacher_identity(llm), load, config.passage_tokens, shown, how)
    return judge, lambda: load_encoder(backbone), model_identity(backbone)


def check_teacher(
    sets: Sequence[RetrievalSet], llm: str, backbone: str, config: ValueConfig, ui: Ui | None = None
) -> dict[str, Any]:
    """:func:`teacher_value` of an LLM SPEC against a start model's order.

    Args:
        sets: test sets, with different names.
        llm: the teacher's SPEC.
        backbone: the start model's SPEC.
        config: what is measured.
        ui: where the progress goes.
    """
    for data in sets:
        if ui is not None and data.gaps:
            ui.say(f"{data.name}: {data.gaps}")
    settings = {"llm": llm, "backbone": backbone} | asdict(config)
    return {"settings": settings} | teacher_value(sets, config, *connect(llm, backbone, config, ui))
