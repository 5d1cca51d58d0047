"""What stands beside the main text of an HTML page, or is never seen: it is taken out of the tree."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from lxml import etree

from gecko.corpus.markup import HEADINGS, NO_TEXT, OPENS, is_in, is_named, letters_of, opens_text, size

# Beside the main text.
_BESIDE = {"aside", "dialog", "footer", "form", "menu", "nav", "search"}
_BESIDE_ROLES = {
    *("alertdialog", "banner", "complementary", "contentinfo", "dialog"),
    *("menu", "menubar", "navigation", "search", "toolbar"),
}
_BOXES = {"aside", "details", "div", "dl", "form", "header", "ol", "p", "section", "table", "ul"}
_BESIDE_NAMES = re.compile(
    r"(?:^|[-_])(?:sidebar|share|sharing|social|related|recommended|recommendations|newsletter|subscribe|consent|gdpr|"
    r"advert|adverts|advertisement|ads|sponsored|promo|popup|modal|skip-link)(?:[-_]|$)|"
    r"^(?:site|page|main|global)?[-_]?footer|cookies?[-_]?(?:banner|bar|notice|law|popup|policy)|^(?:onetrust|cookiebot)"
)
_MENU_NAMES = re.compile(
    r"(?:^|[-_])(?:nav|navbar|navigation|menu|breadcrumbs?|pagination|pager|toc|topbar|toolbar|tags|tabs)(?:[-_]|$)|"
    r"^(?:site|page|main|global)?[-_]?header"
)
_LINE_NUMBERS = re.compile(r"^(?:line-?nos?|line-?numbers?|gutter)$")
_COMMENTS = re.compile(r"(?:^|[-_])comments?(?:[-_]|$)|^disqus")
_NOTES = re.compile(
    r"(?:^|[-_])(?:admonition|callout|caution|danger|footnotes?|hint|important|info|note|tip|warning)(?:[-_]|$)"
)
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)

COMMENTED = 1000  # characters: where no more are outside of the comments, these are the answers of a forum


def drop(elements: Iterable[Any]) -> None:
    """Take elements out of the tree; what comes after them stays."""
    for element in list(elements):
        if element.getparent() is not None:
            element.drop_tree()


def marks(tree: Any) -> Iterator[Any]:
    """What serves to copy the address of a heading, and says nothing: links without a word, and buttons beside its text."""
    for link in tree.iter("a"):
        if "#" in link.get("href", "") and not any(character.isalnum() for character in link.text_content()):
            yield link
    for heading in tree.iter(*HEADINGS):
        buttons = list(heading.iter("button"))
        if size(heading) > sum(map(size, buttons)):
            yield from buttons


def _is_linked(element: Any) -> bool:
    """Whether more than half of its text is links."""
    return 2 * sum(size(link) for link in element.iter("a") if not opens_text(link)) > size(element)


def drop_what_is_beside(body: Any) -> None:
    """Take menus, footers, sidebars, comments and hidden parts out of a page; none of them is most of its text."""
    drop(element for element in body.iter("template") if not element.get("shadowrootmode"))
    drop(body.iter("nav", "noscript"))
    drop(element for element in body.iter("div", "pre", "span", "td") if is_named(element, _LINE_NUMBERS))
    opened = _opened(body)
    whole = size(body)
    comments = []
    walk = etree.iterwalk(body, events=("start",))
    found = []
    for _, element in walk:
        if element is body:
            continue
        if element.tag in NO_TEXT or element.tag == "pre":
            walk.skip_subtree()
        elif _is_beside(element) or _is_hidden(element, opened):
            if 2 * size(element) <= whole or element.tag == "footer":  # else it holds the main text, whatever its name
                found.append(element)
                walk.skip_subtree()
        elif element.tag in _BOXES and _is_widget(element, _COMMENTS):
            comments.append(element)
            walk.skip_subtree()
    drop(found)
    if size(body) - sum(map(size, comments)) > COMMENTED:
        drop(comments)


def _opened(body: Any) -> set[str]:
    """The ids that something on the page opens."""
    ids: set[str] = set()
    for element in body.iter("*"):
        for name in ("aria-controls", "data-bs-target", "data-target", "href"):
            if value := element.get(name, ""):
                ids.update(word.removeprefix("#") for word in value.split() if name != "href" or word.startswith("#"))
    return ids


def _is_hidden(element: Any, opened: set[str]) -> bool:
    """Whether a reader never sees it: a panel that can be opened is no such thing."""
    hidden = (
        element.get("hidden", "until-found").lower() != "until-found"
        or element.get("aria-hidden", "").lower() == "true"
        or _HIDDEN_STYLE.search(element.get("style", "")) is not None
    )
    return hidden and not (element.get("id") in opened or element.get("role") == "tabpanel" or is_named(element, OPENS))


def _is_beside(element: Any) -> bool:
    tag, role = element.tag, element.get("role", "").lower()
    if tag == "aside" and (role == "note" or role.startswith("doc-") or is_named(element, _NOTES)):
        return False
    if tag == "footer" and is_in(element, "blockquote"):
        return False
    if tag in _BESIDE or role in _BESIDE_ROLES:
        return True
    if tag == "header" and not is_in(element, "article", "main", "section"):
        return next(element.iter("a", "button", "form"), None) is not None  # of the site, not of the text
    if tag not in _BOXES:
        return False
    return _is_widget(element, _BESIDE_NAMES) or (is_named(element, _MENU_NAMES) and _is_linked(element))


def _is_widget(element: Any, names: re.Pattern[str]) -> bool:
    """Whether it has such a name; the id that a section got from its heading is none."""
    if not is_named(element, names):
        return False
    return any(map(names.search, element.get("class", "").lower().split())) or not _is_section(element)


def _is_section(element: Any) -> bool:
    """Whether its id repeats its heading, and it is neither a list of links nor of comments."""
    heading = next(element.iter(*HEADINGS, "summary"), None)
    if element.tag not in ("details", "div", "section") or heading is None:
        return False
    name, title = (
        letters_of(unicodedata.normalize("NFKD", text)) for text in (element.get("id", ""), heading.text_content())
    )
    return name.rstrip("0123456789") in title and not _is_linked(element) and not _holds_comments(element)


def _holds_comments(element: Any) -> bool:
    boxes = element.iterdescendants("article", "div", "li", "ol", "section", "ul")
    return any("comment" in box.get("class", "").lower() for box in boxes)
