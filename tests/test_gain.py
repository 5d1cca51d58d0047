"""The scripts that make the tables of docs/research/gain.md, on two tiny corpora with a stand-in for the teacher."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gecko.cli.main import app
from gecko.encoder import load_encoder
from gecko.evaluation.evaluate import dense_run
from gecko.evaluation.metrics import per_query
from gecko.evaluation.sets import load_set
from gecko.fret.relabel import relevance_logit
from gecko.llm.base import Group
from gecko.llm.fake import FakeLM
from gecko.prompts import load_prompt

from .conftest import load_script, write_corpus

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent.parent / "benchmarks"


Script = Callable[..., tuple[str, dict[str, Any]]]


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path) -> Script:
    """Runs a script in this process; gives what it printed, and its last line as JSON."""

    def run(name: str, *arguments: object) -> tuple[str, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        monkeypatch.setenv("GECKO_CACHE", str(home / "cache"))
        load_script(HERE / f"{name}.py").main()
        text = capsys.readouterr().out
        last = text.strip().splitlines()[-1]
        return text, json.loads(last) if last.startswith("{") else {}

    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gain")


@pytest.fixture(scope="module")
def arguments(home: Path, words: list[str], tiny_model: Path) -> list[object]:
    """Two labelled sets, and the settings of small runs; the folder ``out`` is the tests' own, in their order."""
    sets = []
    for place, name in enumerate(("north", "south")):
        folder = home / name
        (folder / "qrels").mkdir(parents=True)
        write_corpus(folder / "corpus.jsonl", words[place:] + words[:place])
        texts = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
        asked = [(f"q{n}", " ".join(texts[n]["text"].split()[3:6]), texts[n]["_id"]) for n in range(0, 60, 5)]
        lines = [json.dumps({"_id": key, "text": text}) for key, text, _ in asked]
        (folder / "queries.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "qrels" / "dev.tsv").write_text("".join(f"{key}\t{one}\t1\n" for key, _, one in asked))
        sets.append(f"{folder}@dev")
    settings = [
        "check.enabled=false",
        "generate.min_seed_chars=10",
        "mine.n=6",
        "select.min_rc=null",
        "train.formats=['native']",
        "train.epochs=1",
        "train.min_steps=0",
        "train.batch=8",
        "train.max_tokens=32",
        "train.learning_rate=0.0005",
    ]
    changes = [part for setting in settings for part in ("--set", setting)]
    return [*sets, "-o", home / "out", "--llm", "fake", "--backbone", tiny_model, *changes]


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("work was done again")


def test_the_gain_and_the_study(
    run_script: Script, arguments: list[object], home: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = home / "out"
    asked = [*arguments, "--queries", 16, "--teacher-queries", 8, "--joint", "--second-round"]
    text, last = run_script("gain", *asked)
    result = json.loads((out / "gain.json").read_text())
    assert list(result["students"]) == ["one model a corpus", "second round", "joint"]
    own = result["students"]["one model a corpus"]
    assert (out / "gain.md").read_text() in text
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [(line[0][2:], line[1]) for line in lines[1:4]] == [
        ("one model a corpus", "north (12)"),
        ("one model a corpus", "south (12)"),
        ("one model a corpus", "macro mean (24)"),
    ]
    assert "Share of the teacher's gain kept" in text or "The teacher shows no gain" in text

    # The numbers of one set, the slow way.
    data = load_set(str(arguments[0]))
    models = {
        label: load_encoder(str(path)) for label, path in (("start", tiny_model), ("student", out / "north" / "model"))
    }
    values = {
        label: per_query(dense_run(data, model, 10), data.qrels, ("ndcg@10",))["ndcg@10"]
        for label, model in models.items()
    }
    assert own["sets"]["north"]["start"] == pytest.approx(values["start"].mean())
    assert own["sets"]["north"]["student"] == pytest.approx(values["student"].mean())
    assert own["sets"]["north"]["gain"][0] == pytest.approx((values["student"] - values["start"]).mean())
    assert not np.array_equal(values["student"], values["start"])
    chosen = sorted(np.random.default_rng(0).permutation(12)[:8].tolist())
    passages, order = {one.id: one for one in data.passages}, {}
    prompt, teacher = load_prompt("relevance"), FakeLM()
    for key, query in (data.queries[place] for place in chosen):
        near = list(dense_run(data, models["start"], 6)[key])
        said = {one: teacher.judge(prompt, [Group(passages[one].content, (query,))])[0][0] for one in near}
        ql = sorted(near, key=lambda one: (-said[one].ql_sum, near.index(one)))
        rc = sorted(near, key=lambda one: (-relevance_logit(prompt, said[one].labels), near.index(one)))
        order[key] = {one: 1 / (1 + ql.index(one)) + 1 / (1 + rc.index(one)) - 1e-9 * near.index(one) for one in near}
    qrels = {key: data.qrels[key] for key in order}
    ranked = per_query(order, qrels, ("ndcg@10",))["ndcg@10"]
    assert result["teacher"]["north"]["rrf"] == pytest.approx(ranked.mean())
    # With fewer candidates than 10 the start's own order of them is what the teacher's is held against.
    found = per_query(dense_run(data, models["start"], 6), data.qrels, ("ndcg@10",))["ndcg@10"][chosen]
    assert own["sets"]["north"]["teacher_gain"][0] == pytest.approx((ranked - found).mean())
    share = own["sets"]["north"]["share"]
    if share is not None:
        whole = (ranked - found).sum()
        assert share[0] == pytest.approx((values["student"] - values["start"])[chosen].sum() / whole)
    assert last["ratio"] == pytest.approx(own["macro"]["student"] / own["macro"]["start"], abs=1e-4)
    both = result["students"]["joint"]["sets"]
    assert both["north"]["rows"] == own["sets"]["north"]["rows"] + own["sets"]["south"]["rows"]

    # Again: nothing is trained and nobody is asked.
    with monkeypatch.context() as patched:
        patched.setattr("gecko.training.train", refuse)
        patched.setattr(FakeLM, "judge", refuse)
        patched.setattr(FakeLM, "generate", refuse)
        assert run_script("gain", *asked)[0] == text
    # One change at a time, on the labels of both runs.
    cells = ["--seeds", 1, "--format", "native", "--cells", "filter/all rows", "--cells", "rows/50%"]
    study = ["ablate", out / "north", out / "south", "-o", out / "study", *cells]
    done = CliRunner().invoke(app, list(map(str, study)))
    assert done.exit_code == 0, done.output
    text = (out / "study" / "ablation.md").read_text()
    assert "north (12 queries), south (12 queries)" in text and "| filter | all rows |" in text
    assert (out / "study" / "ablation.svg").exists()
    with monkeypatch.context() as patched:
        patched.setattr("gecko.training.train", refuse)
        again = CliRunner().invoke(app, list(map(str, study)))
    assert (again.exit_code, again.stdout) == (0, done.stdout)
    # More rows add a point to the curve.
    run_script("gain", *arguments, "--queries", 24, "--teacher-queries", 8)
    assert sorted(path.stem for path in (out / "history").iterdir()) == ["16", "24"]
    assert "<svg" in (out / "growth.svg").read_text() and "var(--" not in (out / "gain.svg").read_text()
    shown, _ = run_script("gain", *arguments, "--queries", 32, "--dry-run")
    assert shown.count("the teacher's own order: 12 queries, 72 pairs") == 2


def test_a_refused_teacher_leaves_the_other_corpora(
    run_script: Script, arguments: list[object], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = FakeLM.generate
    texts = set((home / "south" / "corpus.jsonl").read_text().splitlines())

    def generate(self: FakeLM, prompt: Any, passages: Any, sampling: Any) -> list[str]:
        known = any(json.loads(line)["text"] in passage for line in texts for passage in passages[:1])
        return ["nothing"] * len(passages) if known else written(self, prompt, passages, sampling)

    monkeypatch.setattr(FakeLM, "generate", generate)
    changed = ["check.enabled=true" if one == "check.enabled=false" else one for one in arguments]
    changed[changed.index("-o") + 1 :] = [
        home / "other",
        *changed[changed.index("-o") + 2 :],
        "--set",
        "check.min_seed_found=0",
    ]
    monkeypatch.setattr("gecko.evaluation.teacher.probe.refuse_by_probe", lambda *_: None)
    text, _ = run_script("gain", *changed, "--queries", 16, "--teacher-queries", 4)
    assert "Not distilled: south." in text and "north (12)" in text and "macro" not in text
