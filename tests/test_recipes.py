"""Every recipe that is shipped can be read."""

from pathlib import Path

import pytest

from gecko.config import load_config

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid(path: Path) -> None:
    config = load_config(path)
    assert config.budget is not None or config.generate.queries is not None
