"""The speeds that a plan is made with, of a teacher whose speeds are known, by a clock that it moves itself."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from gecko.config.load import load_config
from gecko.llm.base import Group, Judgement, Sampling
from gecko.llm.fake import FakeLM
from gecko.prompts import Prompt
from gecko.run.folder import Run
from gecko.stages.runner import Pipeline
from gecko.stages.speed import measure

from .test_runner import Listener

READ, WRITE = 1000.0, 50.0  # tokens a second


class Timed(FakeLM):
    """Takes its time, and longer at the calls to write that ``busy`` names."""

    def __init__(self, write: float, busy: dict[int, float], written: int = 1) -> None:
        super().__init__()
        self.now, self.write, self.busy, self.calls, self.counted = 0.0, write, busy, 0, written

    def judge(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[Judgement]]:
        before = self.usage.read
        found = super().judge(prompt, groups)
        self.now += (self.usage.read - before) / READ
        return found

    def generate(
        self, prompt: Prompt, passages: Sequence[str], sampling: Sampling, variables: Sequence[str] = ()
    ) -> list[str]:
        before, written = self.usage.read, len(passages) * sampling.max_new_tokens
        found = super().generate(prompt, passages, sampling, variables)
        self.usage.written += self.counted * written - 8 * len(passages)  # in the place of the eight that are counted
        self.now += (self.usage.read - before) / READ + written / self.write + self.busy.get(self.calls, 0.0)
        self.calls += 1
        return found


def measured(
    teacher: Timed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ui: Listener | None = None
) -> tuple[float, float, float]:
    monkeypatch.setattr(time, "perf_counter", lambda: teacher.now)
    with Run(tmp_path / "run", load_config(None, ["generate.batch=6"], {"llm": "fake"})) as run:
        pipeline = Pipeline(run, ui)
        pipeline.models.teacher = teacher
        return measure(pipeline)


@pytest.mark.parametrize(
    ("busy", "calls"),
    [
        ({}, 3),
        ({0: 9.0}, 3),  # the first call reads what is remembered later
        ({2: 9.0}, 5),  # the long texts seem to take less than the short ones: once more
        ({2: 2.8}, 5),  # and here writing seems to be faster than reading
    ],
)
def test_a_busy_machine_does_not_make_writing_free(
    busy: dict[int, float], calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Timed(WRITE, busy)
    read, write, took = measured(teacher, tmp_path, monkeypatch)
    assert (read, write, took) == (pytest.approx(READ), pytest.approx(WRITE), pytest.approx(teacher.now))
    assert teacher.calls == calls


def test_what_cannot_be_measured_is_taken_as_slow_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ui = Listener()
    teacher = Timed(1e9, {})
    read, write, _ = measured(teacher, tmp_path, monkeypatch, ui)
    assert read == pytest.approx(READ)
    assert 0 < write <= read
    assert teacher.calls == 7  # three trials
    assert "could not be told from that of reading" in ui.said[-1]


def test_a_teacher_that_does_not_say_how_much_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write, _ = measured(Timed(WRITE, {}, written=0), tmp_path, monkeypatch)
    assert 0 < write <= read == pytest.approx(READ)
