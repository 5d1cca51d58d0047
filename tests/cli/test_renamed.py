"""Former names of options: they work, are not shown, and say what to write."""

import pytest
import typer
from typer.testing import CliRunner

from gecko.cli.main import app
from gecko.cli.options import RENAMED


def parsed(command: str, *arguments: str) -> dict[str, object]:
    context = typer.main.get_command(app).commands[command].make_context(command, list(arguments))
    return context.params


@pytest.mark.parametrize("command", ["demo", "distill", "pretrain", "check-teacher"])
def test_backbone_is_start(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    rest = {"distill": ["x", "-o", "y"], "pretrain": ["-o", "y"], "check-teacher": ["x"]}.get(command, [])
    for words in (["--backbone", "hf:a"], ["--backbone=hf:a"]):
        assert parsed(command, *words, *rest)["start"] == "hf:a"
        assert capsys.readouterr().err == "--backbone is now --start; write that\n"
    assert parsed(command, "--start", "hf:a", *rest)["start"] == "hf:a"
    assert capsys.readouterr().err == ""


def test_force_is_two_options_or_the_one_that_a_command_has(capsys: pytest.CaptureFixture[str]) -> None:
    found = parsed("distill", "x", "-o", "y", "--force")
    assert found["accept_teacher"] is found["restart"] is True
    assert capsys.readouterr().err == "--force is now --accept-teacher and --restart; write that\n"
    assert parsed("generate", "x", "--force")["accept_teacher"] is True
    assert parsed("pretrain", "-o", "y", "--force")["restart"] is True
    found = parsed("distill", "x", "-o", "y", "--restart")
    assert (found["accept_teacher"], found["restart"]) == (False, True)


def test_one_meaning_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed("check-teacher", "x", "--queries", "5")["limit"] == 5
    assert parsed("embed", "minilm", "x", "--split")["chunk"] is True
    assert capsys.readouterr().err == "--queries is now --limit; write that\n--split is now --chunk; write that\n"
    assert parsed("testset", "x", "-o", "y", "--queries", "log.txt")["queries"] == "log.txt"
    assert parsed("check-teacher", "x", "--split", "dev")["split"] == "dev"
    assert capsys.readouterr().err == ""


def test_an_argument_may_be_called_so() -> None:
    assert parsed("distill", "-o", "y", "--", "--force")["corpus"] == ["--force"]


def test_former_names_are_not_shown() -> None:
    own = {"distill": {"--queries"}, "check-teacher": {"--split"}}  # names that mean something else there
    for command in ("demo", "distill", "generate", "pretrain", "check-teacher", "embed"):
        shown = CliRunner().invoke(app, [command, "--help"]).output
        assert not any(name in shown for name in RENAMED.keys() - own.get(command, set()))
