"""A page from its template. All that comes from the corpus or the teacher is foreign text, and nothing in it may act.

Everything is escaped, characters that a terminal or a browser would obey are written out, and a name that a template uses and
is not given is an error.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gecko.core.text import difference, duration, points
from gecko.report.text import cut, known_words, shown

if TYPE_CHECKING:
    from jinja2 import Environment


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
