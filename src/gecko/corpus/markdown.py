"""What of a Markdown text is prose, and what is a heading."""

import re
from collections.abc import Iterable, Iterator

HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.+?)(?:[ \t]+#+)?[ \t]*$")  # marks, name
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def with_prose(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it is neither a fence nor in a fenced block of code."""
    fence = ""
    for line in lines:
        found = _FENCE.match(line)
        yield line, not fence and not found
        if not fence:
            fence = found[1] if found else ""
        elif found and found[1].startswith(fence) and not line[found.end() :].strip():
            fence = ""
