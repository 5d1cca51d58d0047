"""The reference pages that the site makes from the code: nothing that a user can name is missing there."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from typer.main import get_command

import gecko
from gecko.cli.main import app
from gecko.config.run import RunConfig
from gecko.serving.config import ServeConfig

from .conftest import load_script

HOOKS = Path(__file__).parents[1] / "docs" / "hooks.py"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    return load_script(HOOKS)


def keys(annotation: Any, prefix: str) -> Iterator[str]:
    """Each key of a section, also of those in lists and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            below = list(keys(field.annotation, f"{prefix}{name}."))
            yield from below or [prefix + name]
    else:
        for each in get_args(annotation):
            yield from keys(each, prefix)


def test_every_command_and_option(hooks: ModuleType) -> None:
    page = hooks.cli_page()
    group: Any = get_command(app)
    shown = {name: command for name, command in group.commands.items() if not command.hidden}
    assert {"demo", "distill", "eval", "serve"} <= shown.keys()
    for name, command in shown.items():
        section = page.split(f"{{#gecko-{name}}}")[1].split("\n## ")[0]
        options = [option for each in command.params if not getattr(each, "hidden", False) for option in each.opts]
        for option in options:
            assert option == "--help" or f"`{option}`" in section or option.upper() in section.upper(), (name, option)
        assert " ".join(command.help.split())[:40] in " ".join(section.replace("`", "").split()) or "`" in command.help


def test_every_setting(hooks: ModuleType) -> None:
    page = hooks.settings_page()
    names = [*keys(RunConfig, ""), *keys(ServeConfig, "")]
    assert len(names) > 150 and {"mixture.sets.kind", "train.loss.temperature", "max_queue_tokens"} <= set(names)
    assert not [name for name in names if f"| `{name}` |" not in page]
    assert "| `mine.warmup_epochs` | whole number, ≥ 0 | `0`; *paper*: `1` |" in page
    assert "| `train.min_steps` | whole number, ≥ 0 | `30` |" in page  # what the default preset sets


def test_every_public_name(hooks: ModuleType) -> None:
    page = hooks.api_page()
    for name in gecko.__all__:
        assert f"`gecko.{name}`" in page
    assert "### `Embedder.embed()`" in page and "- `dim`: keep the first `dim` dimensions" in page
    assert " at 0x" not in page and ":class:" not in page


def test_the_pages_load_no_torch() -> None:
    code = f"import sys; sys.path.insert(0, {str(HOOKS.parent)!r}); import hooks; " + (
        "print([bool(make()) for make in hooks.PAGES.values()], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[True,", "True,", "True]", "False"]
