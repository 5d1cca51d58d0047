"""What a teacher answers about pairs of query and passage, each asked for once.

Answers are kept as they come, by teacher, precision, prompt and passage length, one batch a line; a pair is known by the
hash of its texts. So whatever asks goes on where it was killed, more queries cost only what is new, and a second form that
shares a prompt with the first pays for the other prompt alone.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from gecko.compute.device import GPU_TEXTS
from gecko.core.errors import ConfigError, EvaluationError, RunError, TeacherError
from gecko.core.files import digest, read_json, write_json
from gecko.core.progress import Ui
from gecko.core.records import Candidate, Judged, Passage, Score
from gecko.evaluation.beir import RetrievalSet
from gecko.evaluation.evaluate import HEADLINE
from gecko.evaluation.metrics import Array, descending, per_query
from gecko.evaluation.teacher.in_words import as_grade, as_place, ask_grades, ask_orders, list_key, pair_key
from gecko.fret.fuse import Fusion, fuse
from gecko.fret.judging import FormName, answers_hash
from gecko.fret.relabel import prompt_hash, read_both, read_labels, relevance_logit, shielded_groups
from gecko.llm.base import Group, LanguageModel, Sampling
from gecko.prompts import Prompt, load_prompt
from gecko.weights.cache import cache_room

VERSION = 1
BATCH = 16  # passages that are asked about between two writes to the cache, at least
PACKED = 64  # tokens a passage and its few queries surely have; a GPU's pack of 16,384 is filled by 256 passages
WRITING_SAMPLE = 16

Reading = Literal["both", "ql", "rc", "graded", "listwise"]
IN_WORDS: tuple[FormName, ...] = ("graded", "listwise")  # forms by name, or with a prompt of one's own as graded:FILE


@dataclass(frozen=True)
class Form:
    """The prompts of one form; ``likelihood`` and ``relevance`` are the same where one prompt serves both.

    Where the teacher judges in words, ``likelihood`` is the prompt that asks for grades or for an order, and ``relevance``
    the one that then asks for the first of an order.
    """

    name: str
    likelihood: Prompt
    relevance: Prompt
    judging: FormName = "logprobs"

    @property
    def joint(self) -> bool:
        """Whether both scores are read in one pass."""
        return self.likelihood.hash == self.relevance.hash


def prompt_names(spec: str) -> tuple[str, str]:
    """The prompts of a form: for QL, for RC."""
    first, plus, second = spec.partition("+")
    return (first, second) if plus and not Path(spec).is_file() else (spec, spec)


def load_form(spec: str) -> Form:
    """``relevance``, ``my.toml`` or ``query_likelihood+relevance``; ``graded``, ``listwise`` or ``graded:my.toml``.

    Raises ConfigError: a prompt cannot be read, or cannot be used for judging.
    """
    name, _, file = spec.partition(":")
    if in_words := next((one for one in IN_WORDS if one == name), None):
        asking = load_prompt(file or name)
        if not asking.has_query:
            raise ConfigError(f"form {spec}: prompt {asking.name!r} has no {{query}}, so it cannot judge one; add it")
        return Form(spec, asking, load_prompt("relevance") if in_words == "listwise" else asking, in_words)
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

    A file without labels can give a likelihood alone, so the shipped ``relevance`` stands beside it. Raises ConfigError:
    a folder holds none, or one cannot be read.
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

        Raises RunError: another line is damaged.
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


@dataclass(eq=False)
class Judge:
    """Asks a teacher what is not yet known. The teacher is loaded only if something is missing.

    It reads at most ``passage_tokens`` tokens of a passage, in a precision as ``relabel.precision``; ``window`` passages
    are put in order in one request.
    """

    identity: str
    load: Callable[[], LanguageModel]
    passage_tokens: int
    ui: Ui
    precision: str = "auto"
    window: int = 20

    def __post_init__(self) -> None:
        self._lists: dict[str, Sequence[Passage]] = {}  # by query, what was put in order
        self._teacher: LanguageModel | None = None
        self._known: dict[str, Any] | None = None
        self._answers: dict[tuple[Reading, str], Answers] = {}
        how = "" if self.precision == "auto" else f"-{self.precision}"  # answers of another precision are kept apart
        self.folder = cache_room("checks") / f"teacher-{self.identity}{how}"

    @contextmanager
    def alone(self, wait: bool = False) -> Iterator[None]:
        """Hold the teacher's answers, so that no other process writes to them.

        Raises RunError: another check of the same teacher is at work, and its end is not waited for.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock", timeout=-1 if wait else 0)
        try:
            held = lock.acquire()
        except Timeout:
            raise RunError(f"another check of this teacher is at work (lock {lock.lock_file}); wait for it") from None
        with held:
            yield

    @property
    def teacher(self) -> LanguageModel:
        """The teacher, loaded on first use; its name and what it can do are noted."""
        if self._teacher is None:
            self._teacher = self.load()
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
        if form.judging == "graded":
            return [("graded", replace(form.likelihood, hash=answers_hash(form.likelihood)))]
        if form.judging == "listwise":
            used = digest(answers_hash(form.likelihood, form.relevance), str(self.window))
            return [("listwise", replace(form.likelihood, hash=used))]
        if not self.known["can_score"]:
            return [("rc", form.relevance)]
        return [("both", form.relevance)] if form.joint else [("ql", form.likelihood), ("rc", form.relevance)]

    def _find(self, reading: Reading, prompt: Prompt, key: str) -> tuple[float, int, float] | None:
        for kind in ("both", reading):
            found = self.answers(kind, prompt).pairs.get(key)
            if found is not None:
                return found
        return None

    def _key(self, form: Form, query: str, passage: Passage) -> str:
        if form.judging == "listwise":
            return list_key(query, passage, self._lists[query])
        return pair_key(query, passage)

    def ask(
        self,
        form: Form,
        groups: Sequence[tuple[Passage, Sequence[str]]],
        title: str,
        lists: Mapping[str, Sequence[Passage]] | None = None,
    ) -> int:
        """Make sure that every pair is known under a form; how many answers were not.

        ``groups`` are passages, each with the queries that retrieved it; ``lists`` of each query its passages in the
        retriever's order, for a form that puts them in order.
        """
        if form.judging == "listwise":
            return self._ask_orders(form, lists or {}, title)
        asked = 0
        for reading, prompt in self.readings(form):
            missing = []
            for passage, queries in groups:
                new = [query for query in queries if self._find(reading, prompt, pair_key(query, passage)) is None]
                if new:
                    missing.append((passage, new))
            if not missing:
                continue
            asked += sum(len(new) for _, new in missing)
            teacher = self.teacher
            at_once = max(BATCH, teacher.pack_tokens // PACKED)
            with self.ui.bar(f"{title}: {_READ[reading]} under {prompt.name!r}", len(missing), "passages") as advance:
                for start in range(0, len(missing), at_once):
                    self._batch(teacher, reading, prompt, missing[start : start + at_once])
                    advance(len(missing[start : start + at_once]))
        return asked

    def _ask_orders(self, form: Form, lists: Mapping[str, Sequence[Passage]], title: str) -> int:
        self._lists |= lists
        [(reading, prompt)] = self.readings(form)
        answers = self.answers(reading, prompt)
        missing = [
            (query, shown)
            for query, shown in lists.items()
            if any(list_key(query, passage, shown) not in answers.pairs for passage in shown)
        ]
        if not missing:
            return 0
        teacher = self.teacher
        with self.ui.bar(f"{title}: {_READ[reading]} under {prompt.name!r}", len(missing), "queries") as advance:
            for start in range(0, len(missing), BATCH):
                batch = missing[start : start + BATCH]
                began, before = time.perf_counter(), teacher.usage.tokens
                pairs = ask_orders(teacher, form.likelihood, form.relevance, self.window, batch)
                answers.add(pairs, teacher.usage.tokens - before, time.perf_counter() - began)
                advance(len(batch))
        return sum(len(shown) for _, shown in missing)

    def _batch(
        self, teacher: LanguageModel, reading: Reading, prompt: Prompt, batch: Sequence[tuple[Passage, Sequence[str]]]
    ) -> None:
        groups = [Group(passage.content, tuple(queries)) for passage, queries in batch]
        began, before, refused = time.perf_counter(), teacher.usage.tokens, teacher.usage.refused
        rows: list[list[tuple[float, int, float]]]
        if reading == "graded":
            grades = ask_grades(teacher, prompt, batch)
            self.answers(reading, prompt).add(grades, teacher.usage.tokens - before, time.perf_counter() - began)
            return
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
        key = self._key(form, query, passage)
        found = [self._find(reading, prompt, key) for reading, prompt in self.readings(form)]
        return not all(answer is None or _is_whole(answer) for answer in found)

    def score(self, form: Form, query_id: str, query: str, passage: Passage) -> Judged:
        """What was judged of a pair that was asked for."""
        key = self._key(form, query, passage)
        if form.judging != "logprobs":
            [(reading, prompt)] = self.readings(form)
            found = self.answers(reading, prompt).pairs[key]
            of = {"query_id": query_id, "passage_id": passage.id, "teacher": self.identity}
            if form.judging == "graded":
                return as_grade(of, found, form.likelihood)
            return as_place(of, found, form.likelihood, form.relevance)
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


def orders(data: RetrievalSet, run: Mapping[str, Mapping[str, float]], form: Form, judge: Judge) -> dict[str, Array]:
    """nDCG@10 of each order of the retriever's ``run`` (cosines, best first), whose pairs are judged: (queries,) on 0–1.

    The orders are ``retriever`` and the teacher's; one that gives no likelihood has RC alone.
    """
    scored = judge.known["can_score"] and form.judging == "logprobs"
    fusions: tuple[Fusion, ...] = ("ql", "rc", "rrf", "rrf+retriever") if scored else ("rc",)
    passages = {passage.id: passage for passage in data.passages}
    ranked: dict[str, dict[str, dict[str, float]]] = {"retriever": {}, **{fusion: {} for fusion in fusions}}
    for query_id, query in data.queries:
        candidates = [
            Candidate(query_id, passage_id, rank, cosine)
            for rank, (passage_id, cosine) in enumerate(run[query_id].items(), start=1)
        ]
        scores = {c.passage_id: judge.score(form, query_id, query, passages[c.passage_id]) for c in candidates}
        ranked["retriever"][query_id] = descending([candidate.passage_id for candidate in candidates])
        for fusion in fusions:
            ranked[fusion][query_id] = descending([label.passage_id for label in fuse(candidates, scores, fusion)])
    return {order: per_query(rows, data.qrels, (HEADLINE,))[HEADLINE] for order, rows in ranked.items()}


def _is_whole(answer: tuple[float, int, float]) -> bool:
    return math.isfinite(answer[0]) and math.isfinite(answer[2])


_READ: dict[Reading, str] = {
    "both": "judging",
    "ql": "query likelihood",
    "rc": "relevance",
    "graded": "grades",
    "listwise": "orders",
}
