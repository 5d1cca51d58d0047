"""The page for contributors, with its own code run."""

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from gecko.config.load import load_config
from gecko.config.run import RunConfig
from gecko.config.stages import GenerateConfig, RelabelConfig
from gecko.core.counts import Counts
from gecko.core.errors import ConfigError, RunError
from gecko.core.progress import Silent
from gecko.core.records import Example, Passage, Query
from gecko.fret.generate import generate
from gecko.fret.relabel import relabel
from gecko.fret.seeds import Seed
from gecko.llm import registry
from gecko.llm.base import LanguageModel
from gecko.prompts import load_prompt
from gecko.run.folder import Run
from gecko.stages import graph
from gecko.stages.runner import Pipeline

from .conftest import write_corpus

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
PASSAGES = {
    "p0": Passage("p0", "Heap", "heap merge joins several sorted inputs into one sorted output"),
    "p1": Passage("p1", "Bird", "the godwit flies from Alaska to Zealand without a stop"),
}


def blocks(title: str, kind: str) -> list[str]:
    """The code of one kind under a title of the page."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)


def add_module(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    added = ModuleType(name)
    exec(compile(text, name, "exec"), added.__dict__)
    monkeypatch.setitem(sys.modules, name, added)
    return added


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """The backend that the page adds, found by its SPEC."""
    module, row = blocks("Add a backend", "python")
    add_module("gecko.llm.unigram", module, monkeypatch)
    ((kind, found),) = eval(f"{{{row}}}", {"Row": registry.Row}).items()
    with pytest.raises(ConfigError, match="no known form"):
        registry.teacher_identity("unigram")
    monkeypatch.setitem(registry.BACKENDS, kind, found)
    return registry.load_teacher("unigram", RelabelConfig(), Silent())


def test_the_backend_is_found_by_its_row(teacher: LanguageModel) -> None:
    assert teacher.identity == registry.teacher_identity("unigram")
    registry.check_scores(teacher)
    with pytest.raises(ConfigError, match="no known form; use .* or unigram"):
        registry.teacher_identity("unigram:name")


def test_the_backend_writes_and_judges(teacher: LanguageModel) -> None:
    prompt, counts = load_prompt("generate"), Counts()
    seeds = [Seed(name, "train") for name in PASSAGES]
    queries = list(generate(seeds, PASSAGES, teacher, prompt, GenerateConfig(), 0, counts))
    assert [query.seed_id for query in queries] == ["p0", "p1"]
    assert all(word in PASSAGES["p1"].content.lower() for word in queries[1].text.split())
    relevance = load_prompt("relevance")
    pairs: list[tuple[Passage, list[Query]]] = [(passage, queries) for passage in PASSAGES.values()]
    found = {
        (score.query_id, score.passage_id): score
        for score in relabel(pairs, teacher, load_prompt("query_likelihood"), relevance, counts)
    }
    for query, other in zip(queries, queries[::-1], strict=True):
        own, far = found[query.id, query.seed_id], found[query.id, other.seed_id]
        assert own.ql_sum > far.ql_sum
        assert own.ql_tokens == far.ql_tokens == len(query.text.split())
        assert own.rc > 0 > far.rc
    nowhere = len(queries[0].text.split())
    assert found[queries[0].id, "p1"].ql_sum == pytest.approx(nowhere * math.log(0.001))
    assert teacher.usage.read > 0 < teacher.usage.written


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The stage that the page adds, in the graph as the page changes it; ``calls`` lists what it has written."""
    (module,), (change,) = blocks("Add a stage", "python"), blocks("Add a stage", "diff")
    added = add_module("gecko.stages.lengths", module, monkeypatch)
    added.calls, write = [], added.write_json  # type: ignore[attr-defined]
    monkeypatch.setattr(added, "write_json", lambda path, value: (added.calls.append(value), write(path, value)))
    line, old, new = change.splitlines()
    text = Path(graph.__file__).read_text(encoding="utf-8")
    assert text.count(f"{old[1:]}\n") == 1, "the page removes a line that is there"
    last = re.findall(r"^from gecko\.stages\..*\n", text, re.MULTILINE)[-1]
    text = text.replace(last, f"{last}{line[1:]}\n").replace(old[1:], new[1:])
    before = dict(graph.__dict__)
    exec(compile(text, graph.__file__, "exec"), graph.__dict__)
    yield added
    graph.__dict__.clear()
    graph.__dict__.update(before)


def small(folder: Path, words: list[str], model: Path, *more: str) -> RunConfig:
    corpus = write_corpus(folder / "corpus.jsonl", words)
    overrides = (
        *("generate.queries=16", "generate.min_seed_chars=10", "generate.neighbourhood=4", "check.enabled=false"),
        *("mine.n=6", "select.min_rc=null", 'train.formats=["native"]', "train.epochs=1", "train.min_steps=0"),
        *("train.batch=8", "train.max_tokens=32"),
    )
    base = {"corpus": {"sources": [str(corpus)]}, "llm": "fake", "backbone": str(model)}
    return load_config(None, (*overrides, *more), base)


def test_the_stage_is_made_once_and_again_when_its_rows_change(
    lengths: ModuleType, words: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    folder, file = tmp_path / "run", tmp_path / "run" / "lengths" / "lengths.json"
    with Run(folder, small(tmp_path, words, tiny_model)) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        pipeline.through("select")
        assert not lengths.calls
        with pytest.raises(RunError, match=f"stage lengths is not finished; run: gecko train {re.escape(str(folder))}"):
            run.finished("lengths")
        pipeline.through("choose")
        rows = run.read("select", Example)
        expected = Counter(str(len(row.query.split())) for row in rows)
        assert rows and json.loads(file.read_text()) == expected
        made = list(graph.manifests(run))
        assert made.index("select") + 1 == made.index("lengths") == made.index("lexical") - 1
        assert made.index("lexical") == made.index("train-native") - 1
        assert not graph.stale(run)
    with Run(folder) as run:
        Pipeline(run).through("choose")
        assert len(lengths.calls) == 1
    file.write_text("{}")
    with Run(folder) as run, pytest.raises(RunError, match=r"lengths\.json does not match its checksum"):
        Pipeline(run).through("choose")
    with Run(folder, small(tmp_path, words, tiny_model, "select.negatives=3"), force=True) as run:
        pipeline = Pipeline(run)
        pipeline.through("select")
        assert "lengths was made from an earlier select" in graph.stale(run)
        pipeline.through("choose")
        assert len(lengths.calls) == 2
        assert not graph.stale(run)
