"""How pages, text and times are written for people.

Passages and generated queries are foreign text, and nothing in it may act: a page escapes everything, and characters that a
terminal or a browser would obey instead of showing are written out.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gecko.core.text import difference, duration, points, shown

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["cut", "known_words", "markdown_table", "render", "shown", "templates"]

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


def render(template: str, content: Mapping[str, Any]) -> str:
    """A page of this package from its template; everything in it is escaped."""
    environment = templates(autoescape=True, finalize=_seen)
    environment.filters.update(
        points=points, difference=difference, duration=duration, cut=cut, known_words=known_words
    )
    return environment.get_template(template).render(content)


def templates(**options: Any) -> "Environment":
    """The templates of this package; those of Markdown put foreign text through a filter of their own."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("gecko", "report")
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)  # noqa: S701


def _seen(value: Any) -> Any:
    """Every value on its way into the page; an SVG is markup already, and made of cleaned text."""
    return shown(value) if type(value) is str else value
