"""The page for contributors, with its own code run."""

import math
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from gecko.config.stages import GenerateConfig, RelabelConfig
from gecko.core.counts import Counts
from gecko.core.errors import ConfigError
from gecko.core.progress import Silent
from gecko.core.records import Passage, Query
from gecko.fret.generate import generate
from gecko.fret.relabel import relabel
from gecko.fret.seeds import Seed
from gecko.llm import registry
from gecko.llm.base import LanguageModel
from gecko.prompts import load_prompt

PAGE = Path(__file__).parents[1] / "docs" / "contributing.md"
PASSAGES = {
    "p0": Passage("p0", "Heap", "heap merge joins several sorted inputs into one sorted output"),
    "p1": Passage("p1", "Bird", "the godwit flies from Alaska to Zealand without a stop"),
}


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """The backend that the page adds, found by its SPEC."""
    module, row = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    added = ModuleType("gecko.llm.unigram")
    exec(compile(module, "unigram.py", "exec"), added.__dict__)
    monkeypatch.setitem(sys.modules, added.__name__, added)
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
