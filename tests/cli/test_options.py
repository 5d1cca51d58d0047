from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

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
    assert [each.name for each in shown] == ["first", "run", "sets", "force", "count", "engine", "address", "workers"]
    done = CliRunner().invoke(app, ["a", "folder", "--set", "x=1", "--set", "y=2", "--count", "3", "--workers", "4"])
    assert done.exit_code == 0, done.output
    assert seen == ["a", RunOptions(Path("folder"), ["x=1", "y=2"]), 3, EngineOptions(workers=4)]


def test_an_engine_is_refused_before_anything_is_done() -> None:
    with HERE.executor(Terminal()) as executor:
        assert not executor.remote
    for options, message in (
        (EngineOptions("slurm"), "--engine slurm: give one of local, ray"),
        (EngineOptions(address="auto", workers=2), "--address, --workers: for --engine ray only"),
    ):
        with pytest.raises(ConfigError, match=message), options.executor(Terminal()):
            pass
