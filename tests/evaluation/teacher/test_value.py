"""What a teacher is worth: the numbers, and that no pair is ever paid for twice."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from gecko.core.errors import ConfigError, EvaluationError, RunError, TeacherError
from gecko.core.files import digest
from gecko.core.progress import Silent
from gecko.core.records import Passage
from gecko.encoder import Encoder
from gecko.evaluation.beir import RetrievalSet
from gecko.evaluation.teacher import answers as module
from gecko.evaluation.teacher.answers import Answers, Judge, load_form, spread_forms
from gecko.evaluation.teacher.value import ValueConfig, sample_queries, teacher_value
from gecko.llm.base import Group, Judgement, Sampling
from gecko.llm.fake import FakeLM
from gecko.prompts import Prompt, load_prompt
from gecko.report.teacher import form_rows, value_rows, value_verdict

COLOURS, PETS, DOES = ("red", "blue", "green", "old"), ("cat", "dog", "fish", "bird"), ("runs", "sleeps", "eats")
TWO = "query_likelihood+relevance"
CONFIG = ValueConfig(queries=20, candidates=6, resamples=200)


def make_set(name: str, shift: int) -> RetrievalSet:
    texts = [f"the {colour} {pet} {does}" for colour in COLOURS for pet in PETS for does in DOES]
    passages = [Passage(f"{name}{place}", "", text) for place, text in enumerate(texts)]
    queries = [(f"q{place}", texts[(place * 7 + shift) % len(texts)].removeprefix("the ")) for place in range(30)]
    qrels = {key: {passage.id: 1 for passage in passages if passage.text.endswith(text)} for key, text in queries}
    return RetrievalSet(name, "test", passages, queries, qrels)


SETS = [make_set("one", 0), make_set("two", 3)]


class Teacher(FakeLM):
    """Knows the answer (or its opposite), notes each pair it is asked, and may die after so many batches."""

    def __init__(self, sign: int = 1, batches: int = 10**9) -> None:
        super().__init__()
        self.sign = sign
        self.left = batches
        self.asked: Counter[tuple[str, str, str, str]] = Counter()

    def value(self, passage: str, query: str) -> float:
        return self.sign * (1.0 if passage.endswith(query) else int(digest(passage, query), 16) / 2.0**64)

    def _note(self, kind: str, prompt: Prompt, groups: Sequence[Group]) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        for group in groups:
            self.asked.update((kind, prompt.hash, group.passage, query) for query in group.queries)

    def score(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[tuple[float, int]]]:
        self._note("ql", prompt, groups)
        self.usage.read += 7
        return [[(2 * self.value(group.passage, query) - 9, 2) for query in group.queries] for group in groups]

    def label_logprobs(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[tuple[float, ...]]]:
        self._note("rc", prompt, groups)
        return [[(self.value(group.passage, query), 0.0) for query in group.queries] for group in groups]

    def judge(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[Judgement]]:
        self._note("both", prompt, groups)
        self.usage.read += 5
        values = [[self.value(group.passage, query) for query in group.queries] for group in groups]
        return [[Judgement(2 * value - 9, 2, (value, 0.0)) for value in row] for row in values]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GECKO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Start:
    """A start model that finds a query's passage somewhere among the first few."""

    def passages(self, items: Sequence[Passage], *, progress: bool = False) -> np.ndarray:
        return np.array([self._vector(item.text) for item in items], dtype=np.float32)

    def queries(self, texts: Sequence[str], tasks: str = "", *, progress: bool = False) -> np.ndarray:
        noise = np.array([self._vector(f"noise {text}") for text in texts])
        return np.array([self._vector(f"the {text}") for text in texts] + 1.2 * noise, dtype=np.float32)

    def _vector(self, text: str) -> np.ndarray:
        return np.random.default_rng(int(digest(text), 16)).normal(size=8)


@pytest.fixture
def start() -> Encoder:
    return cast("Encoder", Start())


def measure(teacher: FakeLM, start: Encoder, config: ValueConfig = CONFIG, sets: Any = None) -> dict[str, Any]:
    judge = Judge("t", lambda: teacher, config.passage_tokens, Silent())
    return teacher_value(sets or SETS, config, judge, lambda: start, "start")


def unloadable() -> FakeLM:
    raise AssertionError("the teacher was loaded")


def test_a_knowing_teacher_and_its_opposite(start: Encoder) -> None:
    result = measure(Teacher(), start)
    row = result["forms"]["relevance"]["macro"]
    found = row["retriever"]["ndcg@10"]
    assert 0.1 < found < 0.9
    # Every relevant passage that was retrieved comes first, so the orders reach what the candidates allow.
    assert row["ql"] == row["rc"] == row["rrf"]
    assert row["rrf"]["ndcg@10"] > found
    assert row["rrf"]["delta"] == pytest.approx(row["rrf"]["ndcg@10"] - found)
    sets = result["forms"]["relevance"]["sets"]
    assert row["rrf"]["delta"] == pytest.approx(np.mean([one["rrf"]["delta"] for one in sets.values()]))
    assert result["best"]["verdict"] == "passes"
    assert "passes" in value_verdict(result)
    assert len(value_rows(result)) == 1 + 5 * 3
    assert result["forms"]["relevance"]["rrf_over"] == {"ql": [0, 0, 0], "rc": [0, 0, 0]}
    assert "the fusion over its parts: ql +0.0 [+0.0, +0.0]" in value_verdict(result)


def test_a_harmful_teacher(start: Encoder, cache: Path) -> None:
    result = measure(Teacher(sign=-1), start)
    assert result["best"]["verdict"] == "does harm"
    assert result["best"]["ci95"][1] < 0
    assert "does harm" in value_verdict(result)


def test_the_orders_are_those_of_one_query_at_a_time(start: Encoder) -> None:
    """Rankings and nDCG@10 worked out plainly: one relevant passage at place r gives 1 / log2(1 + r)."""
    teacher = Teacher()
    measured = measure(teacher, start)["forms"]["relevance"]["sets"]
    for data in SETS:
        drawn = sample_queries(data, CONFIG.queries, CONFIG.seed)
        vectors = start.passages(data.passages)
        for order in ("retriever", "ql", "rrf+retriever"):
            values = []
            for (key, text), vector in zip(
                drawn.queries, start.queries([text for _, text in drawn.queries], data.task), strict=True
            ):
                near = np.argsort(-(vectors @ vector), kind="stable")[: CONFIG.candidates].tolist()
                said = [teacher.value(data.passages[place].content, text) for place in near]
                by_teacher = {
                    place: 1 + sum(other > value for other in said) for place, value in zip(near, said, strict=True)
                }
                places = {place: rank for rank, place in enumerate(near, start=1)}
                fused = {place: 1 / by_teacher[place] for place in near}
                if order == "retriever":
                    fused = {place: 1 / places[place] for place in near}
                if order == "rrf+retriever":
                    fused = {place: 2 / by_teacher[place] + 1 / places[place] for place in near}
                ranked = sorted(near, key=lambda place, f=fused, p=places: (-f[place], p[place]))
                gains = [
                    1 / np.log2(2 + rank)
                    for rank, place in enumerate(ranked)
                    if data.passages[place].id in data.qrels[key]
                ]
                values.append(sum(gains))
            assert measured[data.name][order]["ndcg@10"] == pytest.approx(np.mean(values))


def test_a_killed_check_goes_on_where_it_was(start: Encoder, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 5)
    config = replace(CONFIG, forms=("relevance", TWO))
    whole = Teacher()
    expected = measure(whole, start, config)
    assert set(whole.asked.values()) == {1}
    monkeypatch.setenv("GECKO_CACHE", str(cache / "second"))
    total: Counter[tuple[str, str, str, str]] = Counter()
    kills, result = 0, None
    while result is None:
        teacher = Teacher(batches=3)
        try:
            result = measure(teacher, start, config)
        except KeyboardInterrupt:
            kills += 1
        total += teacher.asked
    assert kills > 5
    assert total == whole.asked  # nothing lost, nothing twice
    assert result["best"] == expected["best"]
    for form in config.forms:
        assert result["forms"][form]["sets"] == expected["forms"][form]["sets"]
    # A finished check loads neither the teacher nor the start model.
    judge = Judge("t", unloadable, config.passage_tokens, Silent())
    again = teacher_value(SETS, config, judge, unloadable, "start")  # type: ignore[arg-type]
    assert again["best"] == expected["best"]


def test_a_second_form_pays_for_its_other_prompt_alone(start: Encoder) -> None:
    measure(Teacher(), start)
    second = Teacher()
    result = measure(second, start, replace(CONFIG, forms=("relevance", TWO)))
    assert {(kind, prompt) for kind, prompt, _, _ in second.asked} == {("ql", load_form(TWO).likelihood.hash)}
    assert result["forms"][TWO]["tokens_per_pair"] > result["forms"]["relevance"]["tokens_per_pair"] > 0


def test_more_queries_pay_for_the_new_ones_alone(start: Encoder) -> None:
    first, second = Teacher(), Teacher()
    measure(first, start, replace(CONFIG, queries=4))
    measure(second, start)
    assert first.asked and second.asked
    assert not set(first.asked) & set(second.asked)
    small, large = (sample_queries(SETS[0], count, 0).queries for count in (4, 20))
    assert set(small) < set(large)
    assert large == [query for query in SETS[0].queries if query in large]
    assert sample_queries(SETS[0], 99, 0).queries == SETS[0].queries


def test_a_torn_line_is_asked_again_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answers = Answers.load(path)
    answers.add({"a": (-1.5, 3, 0.25)}, 10, 1.0)
    answers.add({"b": (-2.5, 4, -0.25)}, 20, 2.0)
    data = path.read_bytes()
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        found = Answers.load(path)
        whole = data[:cut].count(b"\n")
        assert list(found.pairs) == ["a", "b"][:whole]
        found.add({"c": (-1.0, 1, 0.0)}, 1, 1.0)
        assert set(Answers.load(path).pairs) == {*["a", "b"][:whole], "c"}
    assert (answers.tokens, answers.seconds) == (30, 3.0)
    path.write_bytes(b'{"pairs": {"a": [1]}}\n' + data)
    with pytest.raises(RunError, match=r"answers\.jsonl:1 is damaged; move the file away"):
        Answers.load(path)


def test_a_teacher_that_cannot_score_is_measured_on_relevance_alone(start: Encoder) -> None:
    teacher = Teacher()
    teacher.can_score = False
    result = measure(teacher, start, replace(CONFIG, forms=("relevance", TWO)))
    assert {kind for kind, *_ in teacher.asked} == {"rc"}
    assert set(result["forms"]["relevance"]["macro"]) == {"queries", "retriever", "rc"}
    assert (result["best"]["fusion"], result["best"]["verdict"]) == ("rc", "passes")


def test_numbers_that_are_none_are_refused(start: Encoder) -> None:
    class Broken(Teacher):
        def value(self, passage: str, query: str) -> float:
            return float("nan")

    with pytest.raises(TeacherError, match="no finite number under prompt 'relevance classification'"):
        measure(Broken(), start)


class Refusing(Teacher):
    """Will not answer what speaks of a red cat; counts it as a server's refusals are counted."""

    def judge(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[Judgement]]:
        none = Judgement(float("nan"), 0, (float("nan"),) * 2)
        rows = super().judge(prompt, groups)
        self.usage.refused += sum("red cat" in query for group in groups for query in group.queries)
        return [
            [none if "red cat" in query else found for query, found in zip(group.queries, row, strict=True)]
            for group, row in zip(groups, rows, strict=True)
        ]


def with_queries(data: RetrievalSet, cats: bool) -> RetrievalSet:
    queries = [(key, query) for key, query in data.queries if ("red cat" in query) == cats]
    return replace(data, queries=queries, qrels={key: data.qrels[key] for key, _ in queries})


def test_a_query_of_which_a_pair_is_refused_is_left_out_and_not_asked_again(
    start: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, queries=30)
    found = measure(Refusing(), start, config)
    again = Refusing()
    assert measure(again, start, config) == found
    assert not again.asked
    cats = with_queries(SETS[0], cats=True)
    count = len(cats.queries)
    assert found["forms"]["relevance"]["sets"]["one"]["queries"] == 30 - count < 30
    with pytest.raises(EvaluationError, match=f"refused a pair of {count} of {count} queries of one"):
        measure(again, start, config, [cats])
    monkeypatch.setenv("GECKO_CACHE", str(tmp_path / "other"))
    answered = measure(Teacher(), start, config, [with_queries(data, cats=False) for data in SETS])
    for part in ("sets", "macro", "rrf_over"):
        assert found["forms"]["relevance"][part] == answered["forms"]["relevance"][part]


def test_forms(tmp_path: Path) -> None:
    assert load_form("relevance").joint
    two = load_form(TWO)
    assert not two.joint
    assert (two.likelihood.name, two.relevance.name) == ("query likelihood", "relevance classification")
    own = tmp_path / "a+b.toml"
    own.write_text('form = "completion"\ntemplate = "{passage} {query}"\nlabels = ["A", "B"]')
    assert load_form(str(own)).joint
    with pytest.raises(ConfigError, match="form query_likelihood: .* has 0 labels, and relevance needs two"):
        load_form("query_likelihood")
    with pytest.raises(ConfigError, match=r"form generate\+relevance: prompt 'generate' has no \{query\}"):
        load_form("generate+relevance")


def test_a_folder_of_forms(start: Encoder, tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text('form = "completion"\ntemplate = "{passage} {query}"\nlabels = ["A", "B"]')
    (tmp_path / "a.toml").write_text('form = "completion"\ntemplate = "{passage}: {query}"')
    a, b = f"{tmp_path / 'a.toml'}+relevance", str(tmp_path / "b.toml")
    assert spread_forms(["relevance", str(tmp_path), b]) == ("relevance", a, b)
    result = measure(FakeLM(), start, replace(CONFIG, forms=("relevance", str(tmp_path))))
    assert list(result["forms"]) == ["relevance", a, b]
    header, *rows = form_rows(result)
    assert [row[0] for row in rows] == ["relevance", a, b] and header[1] == "retriever"
    macro = result["forms"][b]["macro"]
    assert rows[2][1:6] == tuple(f"{100 * macro[order]['ndcg@10']:.1f}" for order in header[1:6])
    first = result["forms"]["relevance"]["macro"]["rrf"]["ndcg@10"]
    difference, low, high = result["forms"][b]["over_first"]
    assert difference == pytest.approx(macro["rrf"]["ndcg@10"] - first)
    assert low <= difference <= high
    assert (header[7], rows[0][7]) == ("rrf − the first form's", "")
    assert rows[2][7] == f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    assert "over_first" not in result["forms"]["relevance"]
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="the folder holds no prompt"):
        spread_forms([str(tmp_path / "none")])


def test_what_cannot_be_measured(start: Encoder) -> None:
    with pytest.raises(EvaluationError, match="several test sets are named one"):
        measure(Teacher(), start, sets=[SETS[0], SETS[0]])
    judge = Judge("t", Teacher, 256, Silent())
    judge.folder.mkdir(parents=True)
    with module.FileLock(judge.folder / "lock"), pytest.raises(RunError, match="another check of this teacher"):
        measure(Teacher(), start)


def test_the_command(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gecko.cli.main import app

    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    data = SETS[0]
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": p.id, "text": p.text}) + "\n" for p in data.passages)
    )
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": k, "text": text}) + "\n" for k, text in data.queries)
    )
    (folder / "qrels" / "dev.tsv").write_text(
        "".join(f"{query}\t{passage}\t1\n" for query, row in data.qrels.items() for passage in row)
    )
    arguments = ["check-teacher", str(folder), "--llm", "fake", "--start", str(tiny_model), "--split", "dev"]
    more = ["--limit", "5", "--candidates", "4", "--form", "relevance", "--form", TWO]
    assert app(arguments + more + ["--json"], standalone_mode=False) in (0, None)
    result = json.loads(capsys.readouterr().out)
    assert set(result["forms"]) == {"relevance", TWO}
    assert result["forms"][TWO]["sets"]["set"]["queries"] == 5
    assert result["estimate"]["writing"]["tokens"] > 0
    assert app(arguments + more, standalone_mode=False) in (0, None)
    shown = capsys.readouterr().out
    assert "rrf+retriever" in shown
    assert app([*arguments, *more, "--markdown"], standalone_mode=False) in (0, None)
    lines = capsys.readouterr().out.splitlines()
    assert "set@dev (5 queries)" in lines[0]
    assert [line.split(" | ")[0] for line in lines[4:6]] == ["| relevance", f"| {TWO}"]
    assert "fake: " in shown and "a run of 1,000 queries with 4 candidates" in shown


def test_the_price_of_writing_is_measured_without_replies_of_an_earlier_run() -> None:
    class Keeping(FakeLM):
        anew, told = False, list[bool]()

        @contextmanager
        def asked_anew(self) -> Iterator[None]:
            self.anew = True
            yield
            self.anew = False

        def generate(self, prompt: Prompt, passages: Sequence[str], sampling: Sampling, *args: Any) -> Any:
            self.told.append(self.anew)
            return super().generate(prompt, passages, sampling, *args)

    teacher = Keeping()
    judge = Judge("keeping", lambda: teacher, 256, Silent())
    tokens, _ = judge.writing_price(load_prompt("generate"), SETS[0].passages, 8)
    assert tokens > 0 and teacher.told == [True] and not teacher.anew
