"""Every recipe that is shipped can be read."""

from dataclasses import replace
from pathlib import Path

import pytest

from gecko.config.load import load_config
from gecko.evaluation.teacher.answers import load_form
from gecko.fret.quality import kind
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


def test_a_generation_prompt_to_copy_has_examples_of_one_kind() -> None:
    prompt = load_prompt(str(RECIPES[0].parent / "generation" / "claims.toml"))
    assert {kind(example["task"]) for example in prompt.examples} == {"claim"}
    assert not any(example["query"].endswith("?") for example in prompt.examples)
