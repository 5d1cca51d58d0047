"""Every recipe that is shipped can be read."""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from gecko.config import change_config, load_config
from gecko.evaluation.teacher_value import load_form
from gecko.fret.relabel import judge, relevance_logit
from gecko.llm.base import Group
from gecko.llm.fake import FakeLM
from gecko.prompts import load_prompt

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid(path: Path) -> None:
    config = load_config(path)
    assert config.budget is not None or config.generate.queries is not None


PROMPTS = sorted((RECIPES[0].parent / "prompts").glob("*.toml"))


@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: path.stem)
def test_a_form_of_the_prompts_can_judge(path: Path) -> None:
    assert len(PROMPTS) > 10
    found = load_form(str(path) if load_prompt(str(path)).labels else f"{path}+relevance")
    groups = [Group("the red river runs", ("red river", "old bridge"))]
    [[right, wrong]] = judge(groups, FakeLM(), found.likelihood, found.relevance)
    assert right.ql_sum > wrong.ql_sum
    assert relevance_logit(found.relevance, right.labels) > relevance_logit(found.relevance, wrong.labels)


def test_forms_differ_in_what_they_are_named_after() -> None:
    found = {path.stem: load_prompt(str(path)) for path in PROMPTS}
    shots = {name: [example["label"] for example in found[name].examples] for name in found if name.startswith("shots")}
    assert [len(shots[f"shots_{count}"]) for count in (2, 4, 6)] == [2, 4, 6]
    assert shots["shots_4_no_last"][-2:] == ["No", "No"] and shots["shots_4_yes_last"][-2:] == ["Yes", "Yes"]
    assert sorted(shots["shots_4"]) == sorted(shots["shots_4_no_last"]) == sorted(shots["shots_4_yes_last"])
    plain = replace(load_prompt("relevance"), name="", hash="", neutral="N/A")
    assert replace(found["calibrated"], name="", hash="") == plain
    assert replace(found["calibrated_shots_4"], name="", hash="", neutral="") == replace(
        found["shots_4"], name="", hash=""
    )


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
