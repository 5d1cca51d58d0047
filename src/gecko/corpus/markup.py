"""What a part of an HTML page says: its blocks in order, as Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lxml import etree

# Never text.
NO_TEXT = {
    *("applet", "area", "audio", "canvas", "datalist", "embed", "frame", "frameset", "head", "iframe", "input", "map"),
    *("meter", "noscript", "object", "option", "progress", "rp", "rt", "script", "select", "style", "svg", "textarea"),
    *("title", "video"),
}
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
BLOCKS = {
    *("address", "article", "aside", "blockquote", "body", "button", "caption", "center", "dd", "details", "dialog"),
    *("div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "header", "hgroup", "hr", "html"),
    *("legend", "li", "main", "menu", "nav", "ol", "p", "pre", "search", "section", "summary", "table", "tbody", "td"),
    *("tfoot", "th", "thead", "tr", "ul", *HEADINGS),
}
OPENS = re.compile(r"accordion|collaps|tab-?pane|tabpanel|toggle")
_LINE = "\x0b"  # stands for a line break until white space is put in order


@dataclass
class Block:
    """A piece of text that stands for itself.

    Attributes:
        text: as Markdown.
        kind: ``text``, ``heading``, ``item`` of a list, ``row`` of a table, ``term``, ``definition`` or ``code``.
        within: the element where it begins.
        links: in it.
        linked: how many of its characters are in links.
        places: how many of its links lead to a place on the same page.
    """

    text: str
    kind: str
    within: Any
    links: int = 0
    linked: int = 0
    places: int = 0

    @cached_property
    def letters(self) -> str:
        """Its letters and digits."""
        return letters_of(self.text)

    @property
    def is_linked(self) -> bool:
        """Whether it is mostly links."""
        return self.kind != "heading" and 2 * self.linked > len(self.letters)


def letters_of(text: str) -> str:
    """What counts when texts are compared."""
    return "".join(filter(str.isalnum, text.casefold()))


@dataclass
class _Open:
    """An element that is being read and says what the text in it is.

    ``begun``: a block of it is there already. ``number``: of the items so far, in a list.
    """

    element: Any
    begun: bool = False
    number: int = 0


@dataclass
class Renderer:
    """Reads the blocks of an element, in order; with ``everything`` buttons and forms are text, too."""

    everything: bool = False
    _blocks: list[Block] = field(default_factory=list)
    _open: list[_Open] = field(default_factory=list)  # lists and their items, terms and definitions
    _parts: list[str] = field(default_factory=list)  # of the block that is being read
    _linked: list[Any] = field(default_factory=list)  # the links that are open
    _counted: list[int] = field(default_factory=lambda: [0, 0, 0])  # links, linked characters, places of that block
    _whole: Any = None  # the element whose text is one block, whatever is in it: a heading, a term, code, a cell
    _cells: list[str] = field(default_factory=list)  # of the row that is being read
    _layouts: dict[Any, bool] = field(default_factory=dict)  # of each table: whether it only arranges text
    _level: int = 1  # of the last heading

    def blocks(self, root: Any) -> list[Block]:
        """What is read below ``root``."""
        walk = etree.iterwalk(root, events=("start", "end"))
        for event, element in walk:
            if event == "start":
                if self._is_no_text(element):
                    walk.skip_subtree()
                    if element.tag == "math":
                        self._add(_formula(element))
                    continue
                self._start(element)
                self._add(element.text)
            else:
                if not self._is_no_text(element):
                    self._end(element)
                if element is not root:
                    self._add(element.tail)
        self._flush(root)
        return self._blocks

    def _is_no_text(self, element: Any) -> bool:
        tag = element.tag
        if tag == "button":
            return self._whole is None and not self.everything and not _is_topic(element)
        return tag in NO_TEXT or tag == "math" or (tag == "template" and not element.get("shadowrootmode"))

    def _start(self, element: Any) -> None:
        tag = element.tag
        if tag == "br":
            self._parts.append("\n" if self._is_code() else _LINE)
        elif tag == "a":
            self._linked.append(element)
            if self._whole is None and opens_text(element):
                self._flush(element.getparent())
                self._whole = element
            elif _is_link_text(element):
                self._counted[0] += 1
                self._counted[2] += element.get("href", "").startswith("#")
        if tag not in BLOCKS and "-" not in tag:
            return
        if self._whole is not None:
            self._parts.append("\n" if self._is_code() else " ")
            return
        self._flush(element.getparent())
        if tag in ("ul", "ol", "menu", "li", "dt", "dd"):
            if tag == "li" and self._open:
                self._open[-1].number += 1
            self._open.append(_Open(element))
        if (
            tag in HEADINGS
            or tag in ("dt", "pre")
            or (tag == "button" and not self.everything)
            or (tag == "summary" and next(element.iter(*HEADINGS), None) is None)
            or (tag in ("td", "th") and not self._only_arranges(element))
        ):
            self._whole = element

    def _end(self, element: Any) -> None:
        tag = element.tag
        if tag == "a":
            self._linked.pop()
        if self._whole is not element and tag not in BLOCKS and "-" not in tag:
            return
        if self._whole is not None and self._whole is not element:
            self._parts.append("\n" if self._is_code() else " ")
            return
        if tag in ("td", "th") and self._whole is element:
            self._cells.append(_ordered(self._parts).replace("\n", " ").replace("|", "\\|"))
            self._parts.clear()
        elif tag == "tr" and self._cells:
            self._row(element)
        else:
            self._flush(element)
        self._whole = None
        if self._open and self._open[-1].element is element:
            self._open.pop()

    def _only_arranges(self, cell: Any) -> bool:
        table = next(cell.iterancestors("table"), None)
        if table not in self._layouts:
            self._layouts[table] = table is None or is_layout(table)
        return self._layouts[table]

    def _is_code(self) -> bool:
        return self._whole is not None and self._whole.tag == "pre"

    def _add(self, text: str | None) -> None:
        if text:
            self._parts.append(text)
            if self._linked and _is_link_text(self._linked[-1]):
                self._counted[1] += len(letters_of(text))

    def _take(self, text: str, kind: str, within: Any) -> None:
        self._blocks.append(Block(text, kind, within, *self._counted))
        self._counted = [0, 0, 0]
        for above in self._open:
            above.begun = True

    def _row(self, element: Any) -> None:
        text = f"| {' | '.join(self._cells)} |"
        names = all(child.tag == "th" for child in element) or element.getparent().tag == "thead"
        if names and not (self._blocks and self._blocks[-1].kind == "row"):
            text += "\n|" + "---|" * len(self._cells)
        if any(self._cells):
            self._take(text, "row", element)
        self._cells = []

    def _flush(self, within: Any) -> None:
        """End a block."""
        parts, self._parts = self._parts, []
        if self._is_code():
            if text := "".join(parts).strip("\n").rstrip():
                self._take(_fenced(text), "code", within)
        elif text := _ordered(parts):
            self._block(text, within)
        else:
            self._counted = [0, 0, 0]

    def _block(self, text: str, within: Any) -> None:
        tag = "" if self._whole is None else self._whole.tag
        above = self._open[-1] if self._open else None
        if tag in HEADINGS:
            self._level = int(tag[1])
            self._take(f"{'#' * self._level} {_one_line(text)}", "heading", within)
        elif tag in ("a", "button", "summary"):
            self._take(f"{'#' * min(6, self._level + 1)} {_one_line(text)}", "heading", within)
        elif above is None or above.element.tag in ("ul", "ol", "menu"):
            self._take(text, "text", within)
        elif above.element.tag == "li":
            self._item(text, above, within)
        elif above.element.tag == "dt":
            self._take(_one_line(text), "term", within)
        elif above.begun:
            self._take(text, "text", within)
        else:
            self._take(f": {text}", "definition", within)

    def _item(self, text: str, item: _Open, within: Any) -> None:
        lists = [entry for entry in self._open if entry.element.tag in ("ul", "ol", "menu")]
        mark = f"{lists[-1].number}. " if lists and lists[-1].element.tag == "ol" else "- "
        indent = "  " * (len(lists) - 1)
        if item.begun and self._blocks[-1].kind != "item":  # text below the heading of a card
            self._take(text, "text", within)
            return
        mark = " " * len(mark) if item.begun else mark
        self._take(indent + mark + text.replace("\n", f"\n{indent}{' ' * len(mark)}"), "item", within)


def _is_link_text(link: Any) -> bool:
    """Whether a link's text is no more than its name; a card may be one link as a whole."""
    return next(link.iter(*BLOCKS), None) is None or size(link) < 60


def opens_text(element: Any) -> bool:
    """Whether a link or a button says that it opens a part of the page."""
    kind: str | None = element.get("data-bs-toggle") or element.get("data-toggle")
    if kind is None and not element.get("aria-haspopup"):
        return bool(element.get("aria-expanded")) or is_named(element, OPENS)
    return kind == "collapse"


def _is_topic(button: Any) -> bool:
    """Whether a button names the text after it."""
    if opens_text(button):
        return True
    words, after = button.text_content().split(), button.getnext()
    return len(words) > 1 and button.getprevious() is None and after is not None and size(after) > size(button)


def is_layout(table: Any) -> bool:
    """Whether a table's cells are no values: it puts parts of the page side by side."""
    if table.get("role") in ("presentation", "none"):
        return True
    if next(table.iterdescendants("table", "pre", *HEADINGS), None) is not None:
        return True
    return all(len([part for part in row if part.tag in ("td", "th")]) < 2 for row in table.iter("tr"))


def _formula(element: Any) -> str:
    """The LaTeX source of a formula, or what is written in it."""
    source = next((part for part in element.iter("annotation") if part.get("encoding") == "application/x-tex"), None)
    text = element.get("alttext", "") if source is None else source.text_content()
    return f"${text.strip()}$" if text.strip() else "".join(element.text_content().split())


def _ordered(parts: Sequence[str]) -> str:
    """Text with its white space in order, and line breaks only where the page has them."""
    lines = (" ".join(line.split()) for line in "".join(parts).replace("\xad", "").split(_LINE))
    return "\n".join(filter(None, lines))


def _one_line(text: str) -> str:
    return text.replace("\n", " ")


def _fenced(text: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def joined(blocks: Sequence[Block]) -> str:
    """The blocks as one text: what belongs together without a blank line between."""
    text = ""
    for place, block in enumerate(blocks):
        before = blocks[place - 1].kind if place else ""
        close = (block.kind in ("item", "row") and block.kind == before) or (
            block.kind == "definition" and before == "term"
        )
        text += ("" if not place else "\n" if close else "\n\n") + block.text
    return text


# --- what an element is


def size(element: Any) -> int:
    """Characters of the text that an element holds, without white space and scripts."""
    walk = etree.iterwalk(element, events=("start",))
    length = 0
    for _, part in walk:
        if part.tag in NO_TEXT:
            walk.skip_subtree()
        else:
            length += len("".join((part.text or "").split()))
        if part is not element:
            length += len("".join((part.tail or "").split()))
    return length


def _names(element: Any) -> list[str]:
    return f"{element.get('class', '')} {element.get('id', '')}".lower().split()


def is_named(element: Any, names: re.Pattern[str]) -> bool:
    """Whether a class or the id of an element is such a name."""
    return any(names.search(name) for name in _names(element))


def is_in(element: Any, *tags: str) -> bool:
    """Whether an element is in one of such tags."""
    return next(element.iterancestors(*tags), None) is not None
