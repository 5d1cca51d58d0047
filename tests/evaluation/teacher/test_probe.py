"""The teacher check: what the probe computes, what is cached, and where each test draws its line."""

import math
from pathlib import Path

import pytest

from gecko.config.stages import CheckConfig
from gecko.core.errors import TeacherError, TeacherRefused
from gecko.encoder import load_encoder
from gecko.evaluation.builtin import probe
from gecko.evaluation.teacher.probe import ProbeResult, refuse_by_parsing, refuse_by_probe, refuse_by_seeds, run_probe
from gecko.llm.fake import FakeLM
from gecko.prompts import load_prompt


class Knowing(FakeLM):
    """Knows the probe's grades, or their opposite."""

    name, identity = "knowing", "knowing"

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.sign = sign
        self.grades = {}
        self.asked = 0
        for topic in probe():
            for identifier, text in topic.queries:
                for passage in topic.passages:
                    self.grades[passage.content, text] = topic.qrels[identifier].get(passage.id, 0)

    def score(self, prompt, groups):
        self.asked += 1
        return [
            [(self.sign * self.grades[group.passage, query] - 3.0, 1) for query in group.queries] for group in groups
        ]

    def label_logprobs(self, prompt, groups):
        return [
            [(-3.0 + self.sign * self.grades[group.passage, query], -1.0) for query in group.queries]
            for group in groups
        ]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GECKO_CACHE", str(tmp_path / "cache"))


def result_of(teacher: FakeLM, model: Path) -> ProbeResult:
    prompt = load_prompt("relevance")
    return run_probe(teacher, prompt, prompt, load_encoder(str(model)), passage_tokens=256, resamples=500, seed=0)


def test_a_perfect_teacher_passes_with_ndcg_1(tiny_model: Path) -> None:
    result = result_of(Knowing(1), tiny_model)
    assert (result.ql, result.rc, result.rrf) == (1.0, 1.0, 1.0)
    assert result.start < 0.9 and result.low > 0
    assert result.delta == pytest.approx(result.rrf - result.start)
    refuse_by_probe(result, "knowing")


def test_a_perverse_teacher_is_refused(tiny_model: Path) -> None:
    result = result_of(Knowing(-1), tiny_model)
    assert result.high < 0
    with pytest.raises(TeacherRefused, match=r"knowing would make the embedder worse.*--llm.*--accept-teacher"):
        refuse_by_probe(result, "knowing")


def test_a_teacher_that_refuses_pairs_of_the_probe_is_told(tiny_model: Path) -> None:
    class Shy(Knowing):
        def score(self, prompt, groups):
            self.usage.refused += 1
            return [[(math.nan, 0), *row[1:]] for row in super().score(prompt, groups)]

    pairs = sum(len(topic.queries) * len(topic.passages) for topic in probe())
    passages = sum(len(topic.passages) for topic in probe())
    with pytest.raises(TeacherError, match=rf"refused {passages:,} of {pairs:,} pairs of the reranking probe"):
        result_of(Shy(1), tiny_model)


def test_answers_are_kept_by_teacher(tiny_model: Path) -> None:
    teacher = Knowing(1)
    first = result_of(teacher, tiny_model)
    asked = teacher.asked
    assert asked > 0 and not first.cached
    again = result_of(teacher, tiny_model)
    assert again.cached and teacher.asked == asked
    assert (again.rrf, again.delta) == (first.rrf, first.delta)
    other = Knowing(1)
    other.identity = "another"
    result_of(other, tiny_model)
    assert other.asked > 0


def test_a_killed_probe_goes_on_where_it_was(tiny_model: Path) -> None:
    class Dying(Knowing):
        def score(self, prompt, groups):
            if self.asked == 3:
                raise KeyboardInterrupt
            return super().score(prompt, groups)

    whole = Knowing(1)
    whole.identity = "another"
    expected = result_of(whole, tiny_model)
    with pytest.raises(KeyboardInterrupt):
        result_of(Dying(1), tiny_model)
    second = Knowing(1)
    found = result_of(second, tiny_model)
    assert 0 < second.asked == whole.asked - 3 and not found.cached
    assert (found.rrf, found.delta) == (expected.rrf, expected.delta)


def test_the_lines_are_where_the_settings_draw_them() -> None:
    config = CheckConfig()
    refuse_by_parsing(70, 100, {}, config, "t")
    with pytest.raises(TeacherRefused, match=r"only 69 of 100 .*20 markup, 11 empty"):
        refuse_by_parsing(69, 100, {"empty": 11, "markup": 20}, config, "t")
    refuse_by_seeds(50, 100, 20, config, "t")
    with pytest.raises(TeacherRefused, match="only 49 of 100"):
        refuse_by_seeds(49, 100, 20, config, "t")
    refuse_by_parsing(0, 9, {}, config, "t")  # too few to tell
    refuse_by_seeds(0, 9, 20, config, "t")
    refuse_by_parsing(0, 0, {}, config, "t")
    refuse_by_seeds(0, 0, 20, config, "t")
    just = ProbeResult(60, 0.8, 0.7, 0.7, 0.7, -0.1, -0.2, 0.0, 1.0, 1, False)
    refuse_by_probe(just, "t")  # an interval that touches 0 does not show harm


def test_a_teacher_with_relevance_alone_is_judged_by_it(tiny_model: Path) -> None:
    teacher = Knowing(1)
    teacher.can_score = False
    result = result_of(teacher, tiny_model)
    assert (result.ql, result.rrf, result.rc) == (None, None, 1.0)
    assert result.delta == pytest.approx(1 - result.start)
