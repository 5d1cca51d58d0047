"""Options under their former names: they work, are not shown, and say on standard error what to write."""

import sys
from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand

RENAMED = {
    "--backbone": ("--start",),
    "--force": ("--accept-teacher", "--restart"),
    "--queries": ("--limit",),  # where it was a number
    "--split": ("--chunk",),  # where it was no name of a split
}


class Command(TyperCommand):
    """A command that takes the former names of its options for those of today."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, former names replaced by those of their new ones that this command has."""
        known = {name for option in self.params for name in option.opts}
        return super().parse_args(ctx, list(_renewed(args, known)))


def _renewed(args: list[str], known: set[str]) -> Iterable[str]:
    for place, word in enumerate(args):
        if word == "--":
            yield from args[place:]
            return
        name, sign, value = word.partition("=")
        names = [new for new in RENAMED.get(name, ()) if new in known]
        if names and name not in known:
            print(f"{name} is now {' and '.join(names)}; write that", file=sys.stderr)
            yield from (f"{new}{sign}{value}" for new in names)
        else:
            yield word
