"""FRet beside other sets in one run: what is trained on, what is made again and what is not, relabelling, mistakes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gecko.config.load import load_config
from gecko.core.errors import ConfigError, TrainingError
from gecko.core.records import Example
from gecko.llm.fake import FakeLM
from gecko.run.folder import Run
from gecko.stages.mixture import mixture_rows, refuse_names
from gecko.stages.runner import Pipeline, distill
from gecko.stages.train import sampling_of, without_tasks
from gecko.training import Sampling

BASE = (
    "generate.queries=10",
    "generate.batch=10",
    "generate.neighbourhood=2",
    "generate.min_seed_chars=10",
    "generate.heldout=0",
    "mine.n=4",
    "relabel.shard_passages=2",
    "select.min_rc=null",
    "train.formats=['unified']",
    "check.enabled=false",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory, words):
    folder = tmp_path_factory.mktemp("data")

    def write(name, rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    chosen = [[words[(n * 7 + k * (1 + n % 5)) % len(words)] for k in range(9)] for n in range(24)]
    write(
        "corpus.jsonl",
        [{"_id": f"p{n}", "title": some[0], "text": f"passage {n} " + " ".join(some)} for n, some in enumerate(chosen)],
    )
    write("faq.jsonl", [{"query": f"what of {some[1]}", "text": " ".join(some)} for some in chosen[:8]])
    write("moods.jsonl", [{"text": f"{some[2]} {some[3]} {n}", "label": n % 2} for n, some in enumerate(chosen)])
    return folder


def sets(data, **faq):
    entries = [
        {"name": "faq", "kind": "pairs", "source": str(data / "faq.jsonl"), "weight": 2.0, **faq},
        {"name": "moods", "kind": "classification", "source": str(data / "moods.jsonl")},
    ]
    return {"sets": entries, "sampling_temperature": 2.0}


def settings(data, model, mixture=None, *more):
    base = {"corpus": {"sources": [str(data / "corpus.jsonl")]}, "llm": "fake", "backbone": str(model)}
    return load_config(None, (*BASE, *more), {**base, **({"mixture": mixture} if mixture else {})})


@pytest.fixture(scope="module")
def labelled(data, tiny_model, tmp_path_factory) -> Path:
    """A run through select."""
    folder = tmp_path_factory.mktemp("labelled") / "run"
    with Run(folder, settings(data, tiny_model)) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        pipeline.through("select")
    return folder


@pytest.fixture
def trained(labelled, monkeypatch):
    """Train that run with other settings; gives what the trainer was given, or None if it was not called."""

    def go(config):
        given = {}

        def train(rows, start, folder, form, config, seed, *, sampling=None, **_):
            given.update(rows=rows, start=start, form=form, sampling=sampling)
            raise TrainingError("seen")

        monkeypatch.setattr("gecko.training.train", train)
        with Run(labelled, config, force=True) as run:
            pipeline = Pipeline(run)
            with pytest.raises(TrainingError, match="seen"):
                pipeline.train()
            return given, run.read("select", Example)

    return go


def test_fret_alone_is_trained_on_as_it_is(trained, data, tiny_model):
    given, fret = trained(settings(data, tiny_model, None, "lexical.sentences=0"))
    assert given["rows"] == fret
    assert len(fret) == 10
    assert given["sampling"] is None
    assert given["start"] == str(tiny_model)


def test_fret_and_two_sets(trained, data, tiny_model):
    given, fret = trained(settings(data, tiny_model, sets(data)))
    assert given["rows"][: len(fret)] == fret
    assert [row.dataset for row in given["rows"][len(fret) :]] == ["faq"] * 8 + ["moods"] * 24
    assert given["sampling"] == Sampling({"faq": 2.0, "moods": 1.0, "fret": 1.0}, 2.0, 0)
    moods = given["rows"][-24:]
    assert all(row.symmetric and row.group in ("0", "1") for row in moods)
    without, _ = trained(settings(data, tiny_model, sets(data), "mixture.fret_weight=0"))
    assert without["rows"] == given["rows"][len(fret) :]
    assert without["sampling"] == Sampling({"faq": 2.0, "moods": 1.0}, 2.0, 0)


def test_another_student_than_the_miner(trained, data, tiny_model, tmp_path):
    import shutil

    shutil.copytree(tiny_model, tmp_path / "other")
    given, _ = trained(settings(data, tiny_model, None, f"student={tmp_path / 'other'}"))
    assert given["start"] == str(tmp_path / "other")


def test_rows_are_converted_once_and_again_when_the_source_changes(labelled, data, tiny_model, monkeypatch, tmp_path):
    def rows():
        with Run(labelled, settings(data, tiny_model, sets(data)), force=True) as run:
            return mixture_rows(Pipeline(run))

    first = rows()
    with monkeypatch.context() as patch:
        patch.setattr("gecko.training.converters.convert", None)
        assert rows() == first
    plain = (data / "moods.jsonl").read_text()
    try:
        (data / "moods.jsonl").write_text(plain.replace("0}", '"zero"}'))
        assert {row.group for row in rows() if row.dataset == "moods"} == {"zero", "1"}
    finally:
        (data / "moods.jsonl").write_text(plain)
    with monkeypatch.context() as patch:
        patch.setattr("gecko.training.converters.convert", None)
        assert rows() == first  # taken back from the archive


def test_a_set_is_relabelled_as_fret_is(labelled, data, tiny_model, monkeypatch):
    plain, calls = FakeLM.judge, []

    def judge(self, prompt, groups):
        calls.append(len(groups))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, prompt, groups)

    monkeypatch.setattr(FakeLM, "judge", judge)
    config = settings(data, tiny_model, sets(data, relabel=True))

    def rows():
        with Run(labelled, config, force=True) as run:
            return mixture_rows(Pipeline(run))

    with pytest.raises(KeyboardInterrupt):
        rows()
    human = [json.loads(line) for line in (data / "faq.jsonl").read_text().splitlines()]
    made = [row for row in rows() if row.dataset == "faq"]
    assert sum(calls) == len(human) + 2  # every passage once, but for the shard of two that was cut off
    assert [row.query for row in made] == [row["query"] for row in human]
    texts = {row["text"] for row in human}
    for row in made:
        assert {row.positive.text, *(text.text for text in row.negatives)} <= texts
        assert len(row.negatives) == 1  # people gave none
        assert row.negatives[0] != row.positive
        assert row.group == row.positive.id
    count = len(calls)
    assert [row for row in rows() if row.dataset == "faq"] == made
    assert len(calls) == count


def test_task_dropout():
    rows = [replace(EXAMPLE, query=str(n)) for n in range(400)]
    dropped = without_tasks(rows, 0.25, 0)
    assert 60 < sum(not row.task for row in dropped) < 140
    assert [replace(row, task="t") for row in dropped] == rows
    assert dropped == without_tasks(rows, 0.25, 0) != without_tasks(rows, 0.25, 1)
    assert without_tasks(rows, 0.0, 0) == rows


EXAMPLE = Example("s", "t", "q", None)


def test_buckets_alone_need_a_sampler(data, tiny_model):
    assert sampling_of(settings(data, tiny_model, None, "mixture.bucket=8").mixture) == Sampling({"fret": 1.0}, 1.0, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "squad"}, r"mixture\.sets\.1.*'squad'.*classification"),
        ({"label": "x"}, r"mixture\.sets\.1.*label"),
        ({"scale": 5}, r"mixture\.sets\.1.*scale"),  # of another kind
        ({"name": "faq"}, "the name faq is taken"),
        ({"name": "fret"}, "the name fret is taken"),
        ({"name": "a/b"}, r"mixture\.sets\.1.*name = 'a/b'"),
    ],
)
def test_a_mistake_in_the_recipe_is_named(data, tiny_model, change, message):
    mixture = sets(data)
    mixture["sets"][1].update(change)
    with pytest.raises(ConfigError, match=message):
        settings(data, tiny_model, mixture)


def test_a_mistake_in_a_set_is_named(labelled, data, tiny_model):
    mixture = sets(data)
    mixture["sets"][1]["label_column"] = "mood"
    with (
        Run(labelled, settings(data, tiny_model, mixture), force=True) as run,
        pytest.raises(TrainingError, match=r"set 'moods', row 1 of moods\.jsonl: no column mood; .* text, label"),
    ):
        mixture_rows(Pipeline(run))


def test_a_set_does_not_take_the_folder_of_a_further_teacher(data, tiny_model, tmp_path):
    named = sets(data, relabel=True)
    named["sets"][0]["name"] = "2"
    config = settings(data, tiny_model, named)
    with Run(tmp_path / "run", config) as run:
        with pytest.raises(ConfigError, match="set named 2 would have the folder relabel-2"):
            distill(run)
        assert run.manifest("ingest") is None  # nothing was done yet
        run.prepare("relabel-2", {"rows": "as an earlier version paid for"})
        refuse_names(run)
