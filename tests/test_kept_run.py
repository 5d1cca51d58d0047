"""A run that an earlier version made is finished, selected anew and sent without a call of its teachers.

``golden/kept`` holds its sources, its start model and the run: the default preset, two teachers, queries of users, and a
mixture with a set that was relabelled. It was made once and is never made anew.
"""

import shutil
from pathlib import Path

import pytest

from gecko.core.records import Example
from gecko.fret.release import read_release
from gecko.llm.fake import FakeLM
from gecko.run.folder import Run
from gecko.stages.publish import push
from gecko.stages.runner import Pipeline, distill

from .golden.scenarios import fingerprints, settings, stages, use_teachers
from .stages.test_runner import Listener

KEPT = Path(__file__).parent / "golden" / "kept"
RUN = Path("run")


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the kept run, in the working folder; its teachers cannot be loaded."""

    def refuse(spec: str) -> FakeLM:
        raise AssertionError(f"the teacher {spec} was loaded")

    shutil.copytree(KEPT, tmp_path / "kept")
    monkeypatch.chdir(tmp_path / "kept")
    use_teachers(monkeypatch, refuse)


TRAINED = ("train", "agreement", "evaluate")


def test_training_alone_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version of training has risen since the run was made; nothing that was paid for hangs on it."""
    before = fingerprints(RUN, "")
    listener = Listener()
    with Run(RUN, settings("kept"), say=listener.say) as run:
        distill(run, listener, force=True)
    after = fingerprints(RUN, "")
    assert {stage for stage in after if after[stage] != before[stage]} == {"train-native", "train-unified"}
    assert {entry.name.rpartition("-")[0] for entry in (RUN / "archive").iterdir()} <= {
        f"{stage}{form}" for stage in TRAINED for form in ("", "-native", "-unified")
    }
    assert any(text.startswith("train-native: version changed, so it is done again") for text in listener.said)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded or trained")

    monkeypatch.setattr("gecko.encoder.load_encoder", refuse)
    monkeypatch.setattr("gecko.training.train", refuse)
    with Run(RUN, settings("kept")) as run:
        distill(run, force=True)
    assert fingerprints(RUN, "") == after


def test_it_goes_on_from_its_labels() -> None:
    labelled = ("relabel", "relabel-2", "relabel-faq")
    with Run(RUN) as run:
        before = {stage: run.finished(stage).identity for stage in labelled}
        rows = run.read("select", Example)
    for stage in stages(RUN):
        if stage.startswith(("select", "dataset", *TRAINED)):
            shutil.rmtree(RUN / stage)
    shutil.rmtree(RUN / "model")
    with Run(RUN, settings("kept")) as run:
        result = distill(run, force=True)
        assert {stage: run.finished(stage).identity for stage in labelled} == before
        assert run.read("select", Example) == rows
    assert result["agreement"]["queries"] > 0
    assert (RUN / "model" / "model.safetensors").exists()


def test_it_is_selected_anew() -> None:
    with Run(RUN) as run:
        before = run.read("select", Example)
    changed = settings("kept", "select.fusion=ql", "select.negative=none", "check.enabled=false")
    with Run(RUN, changed, force=True) as run:
        pipeline = Pipeline(run)
        pipeline.through("select")
        rows = run.read("select", Example)
    assert [row.query_id for row in rows] == [row.query_id for row in before]
    assert [row.fused for row in rows] != [row.fused for row in before]
    assert not any(row.negatives for row in rows)


@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_it_is_sent(kind: str) -> None:
    said: list[str] = []
    with Run(RUN) as run:
        push(Pipeline(run), "someone/some-thing", kind, dry_run=True, say=said.append)  # type: ignore[arg-type]
    assert f"would go to {'datasets/' if kind == 'dataset' else ''}someone/some-thing" in said[-1]
    if kind == "dataset":
        assert len(list(read_release(str(RUN / "dataset" / "fret")))) > 5
