"""Exit codes, and which one an error ends with. The table stands in :mod:`gecko.cli.main`."""

from gecko.core.errors import ConfigError, TeacherRefused

ERROR = 1
USAGE = 2  # typer's own code for what cannot be parsed
HARM = 3
STOPPED = 130  # as a shell says it of what Ctrl-C ends


def exit_code(error: BaseException) -> int:
    """The code that a command ends with for this error."""
    if isinstance(error, TeacherRefused):
        return HARM
    return USAGE if isinstance(error, ConfigError) else ERROR
