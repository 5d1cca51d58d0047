"""Exit codes tell usage, errors, harm and an interrupt apart."""

import pytest
from typer.testing import CliRunner

from gecko.cli import main
from gecko.cli.exits import exit_code
from gecko.core import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.TeacherRefused("x"), 3),
        (errors.TeacherError("x"), 1),
        (errors.CorpusError("x"), 1),
        (errors.RunError("x"), 1),
        (ValueError("x"), 1),
    ],
)
def test_each_kind_of_error_ends_with_its_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(error) == code

    def fails() -> None:
        raise error

    monkeypatch.setattr(main, "app", fails)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == code
    assert capsys.readouterr().err.startswith("error: ")


def test_what_cannot_be_parsed_is_usage() -> None:
    assert CliRunner().invoke(main.app, ["distill"]).exit_code == 2
    assert CliRunner().invoke(main.app, ["distill", "x", "-o", "y", "--nonsense"]).exit_code == 2


def test_the_table_names_every_code() -> None:
    table = main.__doc__ or ""
    assert [line.split()[0] for line in table.splitlines() if line[:1].isdigit()] == ["0", "1", "2", "3", "130"]
