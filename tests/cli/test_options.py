from inspect import signature
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from typer.testing import CliRunner

from gecko.cli import measure, models, options
from gecko.cli.main import app
from gecko.cli.options import HERE, EngineOptions, RunOptions, with_groups
from gecko.core.errors import ConfigError
from gecko.core.progress import Terminal


def test_groups_are_options_in_their_place() -> None:
    seen: list[object] = []

    def command(first: str, options: RunOptions, count: int = 1, *, engine: EngineOptions) -> None:
        seen.extend((first, options, count, engine))

    app = typer.Typer(add_completion=False)
    app.command()(with_groups(command))
    shown = typer.main.get_command(app).params
    assert [each.name for each in shown] == [
        "first",
        "run",
        "sets",
        "accept_teacher",
        "count",
        "engine",
        "address",
        "workers",
    ]
    done = CliRunner().invoke(app, ["a", "folder", "--set", "x=1", "--set", "y=2", "--count", "3", "--workers", "4"])
    assert done.exit_code == 0, done.output
    assert seen == ["a", RunOptions(Path("folder"), ["x=1", "y=2"]), 3, EngineOptions(workers=4)]


def test_an_engine_is_refused_before_anything_is_done() -> None:
    with HERE.executor(Terminal()) as executor:
        assert not executor.remote
    for given, message in (
        (EngineOptions("slurm"), "--engine slurm: give one of local, ray"),
        (EngineOptions(address="auto", workers=2), "--address, --workers: for --engine ray only"),
    ):
        with pytest.raises(ConfigError, match=message), given.executor(Terminal()):
            pass


def test_choices_are_those_of_the_library() -> None:
    from gecko.core import formats
    from gecko.encoder import backend, export, gguf_export, vectors
    from gecko.fret import export_rows
    from gecko.search import index, manifest

    assert options.Precision == backend.Precision
    assert options.Output == vectors.Output
    assert get_args(options.Target) == (*get_args(export.Target), "gguf")
    assert options.Quantize == gguf_export.Quantize
    assert options.Method == index.Method
    assert (options.Kind, options.Store) == (manifest.Kind, manifest.Store)
    assert options.InputFormat == formats.InputFormat
    assert options.Library == export_rows.Library
    for command in (models.search, measure.evaluate_model):
        assert signature(command).parameters["bm25_weight"].default == index.BM25_WEIGHT


@pytest.mark.parametrize(
    ("command", "option", "values"),
    [
        ("embed", "--output", options.Output),
        ("embed", "--precision", options.Precision),
        ("embed", "--engine", options.EngineName),
        ("search", "--method", options.Method),
        ("search", "--kind", options.Kind),
        ("search", "--store", options.Store),
        ("export", "--to", options.Target),
        ("ablate", "--format", options.InputFormat),
        ("export-rows", "--for", options.Library),
    ],
)
def test_choices_stand_in_the_help_and_others_are_refused(command: str, option: str, values: Any) -> None:
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
    assert "|".join(get_args(values)) in shown
    done = CliRunner().invoke(app, [command, option, "nonsense", "x", "y"])
    assert done.exit_code == 2 and "nonsense" in done.output
