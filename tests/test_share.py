"""The script that trains and measures from stored labels, on two tiny corpora with a stand-in for the teacher."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from gecko.core.files import read_json, tree_sha256
from gecko.encoder import load_encoder
from gecko.evaluation.evaluate import dense_run
from gecko.evaluation.metrics import per_query
from gecko.evaluation.sets import load_set

from .conftest import load_script

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "share.py"

pytestmark = pytest.mark.slow


def test_labels_are_written_once_and_trained_on_without_a_teacher(
    sets: list[Path],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels = tmp_path / "labels"
    monkeypatch.setenv("GECKO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def share(*options: str, llm: str = "fake") -> dict:
        changed = (
            f"llm={llm}",
            f"backbone={tiny_model}",
            "check.enabled=false",
            "mine.n=4",
            "generate.min_seed_chars=5",
        )
        small = ("select.min_rc=null", "train.batch=8", "train.epochs=1", "train.min_steps=0", "train.max_tokens=32")
        chosen = [word for one in (*changed, *small) for word in ("--set", one)]
        monkeypatch.setattr(sys, "argv", ["share.py", *map(str, sets), "--labels", str(labels), *chosen, *options])
        load_script(SCRIPT).main()
        printed = capsys.readouterr().out.strip().splitlines()
        return json.loads(printed[-1]) if printed and printed[-1].startswith("{") else {}

    share("--write", "16", "--judge", "6")
    assert all((labels / name / file).is_file() for name in ("one", "two") for file in ("fret.parquet", "teacher.json"))
    before = tree_sha256(labels / "one")
    cells = ("--cell", "contrast", "train.loss.distill=0.0")
    result = share("--train", "--seeds", "2", *cells, llm="openai:http://127.0.0.1:9#none")
    assert tree_sha256(labels / "one") == before
    files = sorted(path.relative_to(labels / "results").as_posix() for path in (labels / "results").rglob("*.json"))
    assert files == [
        f"{cell}/{name}-{seed}.json" for cell in ("contrast", "default") for name in ("one", "two") for seed in (0, 1)
    ]

    gains, teacher = [], []
    for name in ("one", "two"):
        kept = [read_json(labels / "results" / "default" / f"{name}-{seed}.json") for seed in (0, 1)]
        even = [f"q{row}" for row in range(0, 12, 2)]
        gains.append(np.mean([[100 * (one["student"][key] - one["start"][key]) for key in even] for one in kept]))
        orders = read_json(labels / name / "teacher.json")["orders"]
        teacher.append(np.mean([100 * (orders["rrf"][key] - orders["retriever"][key]) for key in even]))
        assert result["sets"][name]["ordered"] == result["sets"][name]["queries"] == 6
    assert result["gain"] == pytest.approx(np.mean(gains), abs=0.01)
    assert result["teacher_gain"] == pytest.approx(np.mean(teacher), abs=0.01)

    whole = tree_sha256(labels)
    assert share("--train", "--seeds", "2", *cells) == result == share()  # nothing is trained twice
    assert tree_sha256(labels) == whole

    drawn, models = tmp_path / "gain.svg", tmp_path / "models"
    share("--train", "--seeds", "1", "--keep", str(models), "--plot", str(drawn))
    assert "<svg " in drawn.read_text()
    kept, data = read_json(labels / "results" / "default" / "two-0.json")["student"], load_set(str(sets[1]))
    found = dense_run(data, load_encoder(str(models / "default" / "two-0")))
    assert list(kept.values()) == pytest.approx(per_query(found, data.qrels, ("ndcg@10",))["ndcg@10"], abs=1e-4)
