"""How text and times are written for people.

Passages and generated queries are foreign text. HTML escaping is the template's work; this is about the characters that
escaping leaves alone: those that a terminal or a browser obeys instead of showing.
"""

import re
from collections.abc import Sequence

from gecko.core.text import shown

__all__ = ["cut", "known_words", "markdown_table", "shown"]

_WORD = re.compile(r"\w+")


def cut(text: str, length: int) -> str:
    """At most ``length`` characters of ``text``, with an ellipsis where something is missing."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the header first, as a Markdown table."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def known_words(text: str, query: str) -> list[tuple[str, bool]]:
    """``text`` in pieces, each with whether it is a word that ``query`` has, too, of three letters or more."""
    asked = {word for word in map(str.lower, _WORD.findall(query)) if len(word) >= 3}
    pieces: list[tuple[str, bool]] = []
    end = 0
    for match in _WORD.finditer(text):
        if match[0].lower() in asked:
            pieces += [(text[end : match.start()], False), (match[0], True)]
            end = match.end()
    return [*pieces, (text[end:], False)]
