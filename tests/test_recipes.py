"""Every recipe that is shipped can be read."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gecko.config import change_config, load_config

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid(path: Path) -> None:
    config = load_config(path)
    assert config.budget is not None or config.generate.queries is not None


def test_the_two_stages_are_one_command(tmp_path: Path) -> None:
    """The script against a command that writes down what it is told and makes the folders it would make."""
    shell = tmp_path / "gecko"
    shell.write_text('#!/bin/sh\necho "$@" >> "$LOG"\ncase $1 in train) ;; *) mkdir -p "$4";; esac\n')
    shell.chmod(0o755)
    for folder in ("data/pairs", "data/passages", "paid/select"):
        (tmp_path / folder).mkdir(parents=True)
    script = Path(__file__).parent.parent / "recipes" / "two-stage.sh"
    out = tmp_path / "out"

    def told(*more: str) -> list[list[str]]:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        environment = {**os.environ, "GECKO": str(shell), "LOG": str(log)}
        subprocess.run(["sh", str(script), "small", "data", "out", *more], cwd=tmp_path, env=environment, check=True)
        return [line.split() for line in log.read_text().splitlines()]

    recipe, student = str(script.parent / "two-stage-small.toml"), f"student={out}/stage1/model"
    stage1, fret, gecko = told()
    assert stage1 == ["pretrain", "pairs", "-o", f"{out}/stage1", "-c", recipe, "--backbone", "smollm2"]
    assert fret == [
        "distill",
        "passages",
        "-o",
        f"{out}/fret",
        "-c",
        recipe,
        "--set",
        student,
        "--set",
        "mixture.sets=[]",
    ]
    assert gecko == ["train", f"{out}/gecko", "-c", recipe, "--set", student]

    shutil.rmtree(out)
    stage1, fret, gecko = told("paid")
    assert (out / "fret" / "select").is_dir()
    assert (out / "gecko" / "select").is_dir()
    assert fret == ["train", f"{out}/fret", "-c", f"{out}/stage2.toml", "--set", student, "--set", "mixture.sets=[]"]
    assert gecko == ["train", f"{out}/gecko", "-c", f"{out}/stage2.toml", "--set", student]
    run = change_config(load_config(overrides=["generate.queries=5"]), out / "stage2.toml", ["mixture.task_dropout=0"])
    small = load_config(Path(recipe))
    assert (run.train, run.mixture.sets) == (small.train, small.mixture.sets)
    assert (run.generate.queries, run.budget) == (5, None)
    assert run.pretrain != small.pretrain
