"""The help: panels, examples that can be typed, a short start."""

import shlex

import pytest
import typer
from typer.testing import CliRunner

from gecko.cli.help import EXAMPLES, START
from gecko.cli.main import PANELS, app

NAMES = [name for commands in PANELS.values() for name in commands]


def test_the_help_has_panels_and_gecko_alone_a_short_start() -> None:
    shown = CliRunner().invoke(app, ["-h"])
    assert shown.exit_code == 0
    places = [shown.output.index(f" {panel} ─") for panel in ("Start", "Stages", "Measure", "Use", "Share")]
    assert places == sorted(places)
    assert all(f"│ {name} " in shown.output for name in NAMES)
    alone = CliRunner().invoke(app, [])
    assert (alone.exit_code, alone.output) == (0, f"{START}\n")
    assert len(START.splitlines()) < 10


def test_each_command_has_examples() -> None:
    assert EXAMPLES.keys() == set(NAMES)
    assert all(1 <= len(lines) <= 2 for lines in EXAMPLES.values())


@pytest.mark.parametrize("command", NAMES)
def test_examples_are_shown_and_can_be_typed(command: str) -> None:
    group = typer.main.get_command(app)
    for help_option in ("-h", "--help"):
        shown = CliRunner().invoke(app, [command, help_option], terminal_width=200)
        assert shown.exit_code == 0 and "Examples:" in shown.output
    for line in EXAMPLES[command]:
        assert line in " ".join(shown.output.split())
        name, *arguments = shlex.split(line.partition("gecko ")[2])
        assert name == command
        group.commands[command].make_context(command, arguments)  # an unknown option is an error


def test_completion_can_be_installed() -> None:
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output
