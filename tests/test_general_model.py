"""The recipe that trains one model on many corpora, with the rows that ship and a tiny model."""

import json
from pathlib import Path

import pytest

from gecko.core.files import tree_sha256

from .conftest import load_script

SCRIPT = Path(__file__).parents[1] / "recipes" / "general_model.py"

pytestmark = pytest.mark.slow


def test_it_trains_once_and_measures_where_it_was_not_trained(
    sets: list[Path],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = load_script(SCRIPT)
    monkeypatch.setenv("GECKO_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    settings = [f"backbone={tiny_model}", "train.freeze=passages", "train.epochs=1", "train.min_steps=0"]
    settings += ["train.batch=8", "train.max_tokens=32", "train.loss.distill=1", "select.targets=standardized"]

    def run(*options: str) -> tuple[str, dict]:
        more = [word for one in settings for word in ("--set", one)]
        recipe.main([str(out), *map(str, sets), "--most", "3", "--seeds", "2", *more, *options])
        printed = capsys.readouterr().out
        return printed, json.loads(printed.strip().splitlines()[-1])

    printed, first = run()
    assert "git-docs: 3 of" in printed and list(first["sets"]) == ["one", "two"]
    assert first["gain"] == pytest.approx(sum(of[0] for of in first["sets"].values()) / 2, abs=0.01)
    trained = [tree_sha256(out / f"seed-{seed}") for seed in (0, 1)]
    assert trained[0] != trained[1]
    assert run()[1] == first and trained == [tree_sha256(out / f"seed-{seed}") for seed in (0, 1)]
    for other in ("train.learning_rate=1e-3", "select.targets=fused"):
        with pytest.raises(SystemExit, match="other rows or with other settings; name another OUT"):
            run("--set", other)
    with pytest.raises(SystemExit):
        recipe.main([str(out), "stdlib-questions", "--released", "fret-stdlib"])
    assert "asks about the corpus of fret-stdlib" in capsys.readouterr().err
