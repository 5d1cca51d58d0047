"""HTML pages as Markdown: all text, or the main text.

A page that marks its main text (``<main>``, ``role=main``, ``<article>``) is read as it marks it. In any other page
trafilatura says where the main text lies, and the smallest element that holds what it found is read whole: it may lose
headings, answers, code and cells between the paragraphs that it keeps. Menus, footers, sidebars and the like are left out
of both, and so is what is mostly links and was not found by trafilatura either.
"""

import codecs
import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from lxml import etree
from lxml import html as parser

from gecko.corpus.bounds import NO_MAIN_TEXT, Unreadable

# Never text.
_NO_TEXT = {
    *("applet", "area", "audio", "canvas", "datalist", "embed", "frame", "frameset", "head", "iframe", "input", "map"),
    *("meter", "noscript", "object", "option", "progress", "rp", "rt", "script", "select", "style", "svg", "textarea"),
    *("title", "video"),
}
_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
_BLOCKS = {
    *(
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "button",
        "caption",
        "center",
        "dd",
        "details",
        "dialog",
        "div",
    ),
    *(
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "header",
        "hgroup",
        "hr",
        "html",
        "legend",
        "li",
    ),
    *("main", "menu", "nav", "ol", "p", "pre", "search", "section", "summary", "table", "tbody", "td", "tfoot", "th"),
    *("thead", "tr", "ul", *_HEADINGS),
}
# Beside the main text.
_BESIDE = {"aside", "dialog", "footer", "form", "menu", "nav", "search"}
_BESIDE_ROLES = {
    *(
        "alertdialog",
        "banner",
        "complementary",
        "contentinfo",
        "dialog",
        "menu",
        "menubar",
        "navigation",
        "search",
        "toolbar",
    )
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
_OPENS = re.compile(r"accordion|collaps|tab-?pane|tabpanel|toggle")
_DECLARED = re.compile(
    rb"<(?:meta|\?xml)\b[^>]{0,300}?(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.IGNORECASE
)
_WRAPPERS = re.compile(r"</?(?:(b|big|em|font|i|small|span|strong|u)|center|div|section)\b[^>]*>", re.IGNORECASE)
_NO_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")
_LINE = "\x0b"  # stands for a line break until white space is put in order

FEW = 0.4  # of a text's characters: so few say nothing about the rest
COMMENTED = 1000  # characters: where no more are outside of the comments, these are the answers of a forum


def read_page(data: bytes, mode: Literal["main", "all"]) -> tuple[str, str]:
    """Title (empty where the page names none) and text of an HTML page.

    Raises:
        Unreadable: it has no such text, or is no page.
    """
    import trafilatura

    tree = _parsed(data)
    _drop(_marks(tree))
    body = tree if (found := tree.find(".//body")) is None else found
    blocks = _Renderer(everything=True).blocks(body) if mode == "all" else []
    _drop_what_is_beside(body)
    marked = _marked(body)
    if any(next(part.iter("h1"), None) is not None for part in marked):  # the others name the site
        _drop(heading for heading in body.iter("h1") if not any(_is_below(heading, part) for part in marked))
    metadata = trafilatura.extract_metadata(copy.deepcopy(tree), extensive=False)  # no search for the page's date
    title = (metadata.title if metadata is not None else None) or ""
    if mode == "all":
        if not blocks:
            raise Unreadable("it holds no text")
        return title, _joined(blocks)
    if not (text := _main_text(body, marked, _by_trafilatura(tree))):
        raise Unreadable("--set corpus.html=all keeps all text of a page", NO_MAIN_TEXT)
    return title, text


def _by_trafilatura(tree: Any) -> str:
    import trafilatura

    # It fails on trees that are only strange; then the page is read without it.
    with suppress(AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError, etree.LxmlError):
        return trafilatura.extract(copy.deepcopy(tree), output_format="markdown", include_comments=False) or ""
    return ""


def _parsed(data: bytes) -> Any:
    text = _NO_CHARACTERS.sub("", _decoded(data))
    # lxml refuses a string that declares an encoding.
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    if not text.strip():
        raise Unreadable("it is empty")
    for _ in range(2):
        maker = parser.HTMLParser(remove_comments=True, remove_pis=True, huge_tree=True, encoding="utf-8")
        try:
            tree = parser.document_fromstring(text.encode("utf-8"), parser=maker)
        except etree.ParserError as error:  # nothing but comments
            raise Unreadable("it holds no text") from error
        # Behind the deepest element the parser reads nothing more; what is never closed nests without end.
        if not any(entry.type == etree.ErrorTypes.ERR_RESOURCE_LIMIT for entry in maker.error_log):
            return tree
        text = _WRAPPERS.sub(lambda found: "" if found[1] else "<p>", text)
    raise Unreadable("its elements are nested too deep")


def _decoded(data: bytes) -> str:
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    declared = (found[1].decode("ascii") if (found := _DECLARED.search(data[:4096])) else "").lower()
    if declared in ("iso-8859-1", "latin1", "latin-1", "us-ascii", "ascii"):
        declared = "windows-1252"  # as browsers read them
    # A page in UTF-8 is one whatever it says; only what is made of ASCII, too, must be taken at its word.
    for encoding in (declared if declared.startswith(("iso-2022", "hz")) else "", "utf-8-sig", declared):
        with suppress(LookupError, UnicodeDecodeError):
            if encoding:
                return data.decode(encoding)
    from charset_normalizer import from_bytes

    if (best := from_bytes(data).best()) is None:
        raise Unreadable("its encoding is not known; save it as UTF-8")
    return str(best)


# --- what is left out


def _drop(elements: Iterable[Any]) -> None:
    """Take elements out of the tree; what comes after them stays."""
    for element in list(elements):
        if element.getparent() is not None:
            element.drop_tree()


def _marks(tree: Any) -> Iterator[Any]:
    """What serves to copy the address of a heading, and says nothing: links without a word, and buttons beside its text."""
    for link in tree.iter("a"):
        if "#" in link.get("href", "") and not any(character.isalnum() for character in link.text_content()):
            yield link
    for heading in tree.iter(*_HEADINGS):
        buttons = list(heading.iter("button"))
        if _size(heading) > sum(map(_size, buttons)):
            yield from buttons


def _size(element: Any) -> int:
    """Characters of the text that an element holds, without white space and scripts."""
    walk = etree.iterwalk(element, events=("start",))
    size = 0
    for _, part in walk:
        if part.tag in _NO_TEXT:
            walk.skip_subtree()
        else:
            size += len("".join((part.text or "").split()))
        if part is not element:
            size += len("".join((part.tail or "").split()))
    return size


def _names(element: Any) -> list[str]:
    return f"{element.get('class', '')} {element.get('id', '')}".lower().split()


def _is_named(element: Any, names: re.Pattern[str]) -> bool:
    return any(names.search(name) for name in _names(element))


def _is_in(element: Any, *tags: str) -> bool:
    return next(element.iterancestors(*tags), None) is not None


def _is_linked(element: Any) -> bool:
    """Whether more than half of its text is links."""
    return 2 * sum(_size(link) for link in element.iter("a") if not _opens_text(link)) > _size(element)


def _drop_what_is_beside(body: Any) -> None:
    _drop(element for element in body.iter("template") if not element.get("shadowrootmode"))
    _drop(body.iter("nav", "noscript"))
    _drop(element for element in body.iter("div", "pre", "span", "td") if _is_named(element, _LINE_NUMBERS))
    opened = _opened(body)
    whole = _size(body)
    comments = []
    walk = etree.iterwalk(body, events=("start",))
    found = []
    for _, element in walk:
        if element is body:
            continue
        if element.tag in _NO_TEXT or element.tag == "pre":
            walk.skip_subtree()
        elif _is_beside(element) or _is_hidden(element, opened):
            if 2 * _size(element) <= whole or element.tag == "footer":  # else it holds the main text, whatever its name
                found.append(element)
                walk.skip_subtree()
        elif element.tag in _BOXES and _is_named(element, _COMMENTS):
            comments.append(element)
            walk.skip_subtree()
    _drop(found)
    if _size(body) - sum(map(_size, comments)) > COMMENTED:
        _drop(comments)


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
    return hidden and not (
        element.get("id") in opened or element.get("role") == "tabpanel" or _is_named(element, _OPENS)
    )


def _is_beside(element: Any) -> bool:
    tag, role = element.tag, element.get("role", "").lower()
    if tag == "aside" and (role == "note" or role.startswith("doc-") or _is_named(element, _NOTES)):
        return False
    if tag == "footer" and _is_in(element, "blockquote"):
        return False
    if tag in _BESIDE or role in _BESIDE_ROLES:
        return True
    if tag == "header" and not _is_in(element, "article", "main", "section"):
        return next(element.iter("a", "button", "form"), None) is not None  # of the site, not of the text
    if tag not in _BOXES:
        return False
    return _is_named(element, _BESIDE_NAMES) or (_is_named(element, _MENU_NAMES) and _is_linked(element))


# --- which part is the main text


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
        """What counts when texts are compared."""
        return _letters(self.text)

    @property
    def is_linked(self) -> bool:
        """Whether it is mostly links."""
        return self.kind != "heading" and 2 * self.linked > len(self.letters)


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _main_text(body: Any, marked: Sequence[Any], found: str) -> str:
    blocks = [block for part in marked or [body] for block in _Renderer().blocks(part)]
    kept = _kept(blocks, _letters(found))
    if not marked:
        within = _container(body, blocks, kept)
        chosen = [place for place, block in enumerate(blocks) if _is_below(block.within, within)]
        blocks, kept = [blocks[place] for place in chosen], [kept[place] for place in chosen]
    text = [len(block.letters) for block in blocks if not block.is_linked]
    told = sum(
        len(block.letters) for block, is_kept in zip(blocks, kept, strict=True) if is_kept and not block.is_linked
    )
    trusted = told >= FEW * sum(text)
    blocks = [
        block
        for place, block in enumerate(blocks)
        if not block.is_linked
        or _is_title(blocks, place)
        or (not _is_contents(block) and (_is_worth(block, kept[place]) if not marked else kept[place] or not trusted))
    ]
    own = _joined(blocks) if any(block.kind != "heading" for block in blocks) or not found else ""
    # A page may hold its text as data for a script, where only trafilatura finds it.
    return own if 2 * len(_letters(own)) >= len(_letters(found)) else found


def _marked(body: Any) -> list[Any]:
    """The elements that the page itself calls its main text, in order; none: it does not say."""

    def outermost(elements: Iterable[Any]) -> list[Any]:
        chosen: dict[Any, None] = {}
        for element in elements:
            if not any(above in chosen for above in element.iterancestors()) and _has_text(element):
                chosen[element] = None
        return list(chosen)

    if found := outermost(part for part in body.iter("*") if part.tag == "main" or part.get("role") == "main"):
        return found
    articles = outermost(body.iter("article"))
    return articles if 2 * sum(map(_size, articles)) >= _size(body) else []


def _has_text(element: Any) -> bool:
    """Whether it holds more than headings."""
    return _size(element) > sum(_size(part) for part in element.iter(*_HEADINGS))


def _kept(blocks: Sequence[Block], found: str) -> list[bool]:
    """Which blocks trafilatura has found, too; most come in the same order."""
    kept, at = [], 0
    for block in blocks:
        letters = block.letters
        place = found.find(letters, at)
        if place < 0:
            place = found.find(letters)
        kept.append(place >= 0)
        if place >= at and len(letters) > 20:
            at = place
    return kept


def _container(body: Any, blocks: Sequence[Block], kept: Sequence[bool]) -> Any:
    """The smallest element with nearly all that was found; the body, where that is little of the page."""
    sizes: Counter[Any] = Counter()
    for block, is_kept in zip(blocks, kept, strict=True):
        if is_kept:
            size = len(block.letters)
            sizes[block.within] += size
            for above in block.within.iterancestors():
                sizes[above] += size
    within, most = body, 0.9 * sizes[body]
    while (inner := next((child for child in within if sizes[child] >= most > 0), None)) is not None:
        within = inner
    plain = [block for block in blocks if not block.is_linked]
    held = sum(len(block.letters) for block in plain if _is_below(block.within, within))
    return within if held >= FEW * sum(len(block.letters) for block in plain) else body


def _is_below(element: Any, above: Any) -> bool:
    return element is above or any(parent is above for parent in element.iterancestors())


def _is_title(blocks: Sequence[Block], place: int) -> bool:
    """Whether a link names the text after it, as on a card."""
    if place + 1 == len(blocks) or blocks[place].links != 1 or blocks[place].kind != "text":
        return False
    here, after = blocks[place].within, blocks[place + 1]
    beside = after.within.getparent() is here.getparent() or _is_below(after.within, here)
    return not after.is_linked and here.tag != "body" and beside


def _is_contents(block: Block) -> bool:
    """Whether it is an entry of a table of contents."""
    return block.links > 0 and block.links == block.places


def _is_worth(block: Block, is_kept: bool) -> bool:
    """Whether links on a page that does not mark its main text are long enough to be no menu."""
    return is_kept and block.linked >= 40 * block.links


# --- what a part says


@dataclass
class _Open:
    """An element that is being read and says what the text in it is.

    Attributes:
        element: the one.
        begun: whether a block of it is there already.
        number: of the items so far, in a list.
    """

    element: Any
    begun: bool = False
    number: int = 0


@dataclass
class _Renderer:
    """Reads the blocks of an element, in order.

    Attributes:
        everything: whether buttons and forms are text, too.
    """

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
        return tag in _NO_TEXT or tag == "math" or (tag == "template" and not element.get("shadowrootmode"))

    def _start(self, element: Any) -> None:
        tag = element.tag
        if tag == "br":
            self._parts.append("\n" if self._is_code() else _LINE)
        elif tag == "a":
            self._linked.append(element)
            if self._whole is None and _opens_text(element):
                self._flush(element.getparent())
                self._whole = element
            elif _is_link_text(element):
                self._counted[0] += 1
                self._counted[2] += element.get("href", "").startswith("#")
        if tag not in _BLOCKS and "-" not in tag:
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
            tag in _HEADINGS
            or tag in ("dt", "pre")
            or (tag == "button" and not self.everything)
            or (tag == "summary" and next(element.iter(*_HEADINGS), None) is None)
            or (tag in ("td", "th") and not self._only_arranges(element))
        ):
            self._whole = element

    def _end(self, element: Any) -> None:
        tag = element.tag
        if tag == "a":
            self._linked.pop()
        if self._whole is not element and tag not in _BLOCKS and "-" not in tag:
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
            self._layouts[table] = table is None or _is_layout(table)
        return self._layouts[table]

    def _is_code(self) -> bool:
        return self._whole is not None and self._whole.tag == "pre"

    def _add(self, text: str | None) -> None:
        if text:
            self._parts.append(text)
            if self._linked and _is_link_text(self._linked[-1]):
                self._counted[1] += len(_letters(text))

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
        if tag in _HEADINGS:
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
    return next(link.iter(*_BLOCKS), None) is None or _size(link) < 60


def _opens_text(element: Any) -> bool:
    """Whether a link or a button says that it opens a part of the page."""
    kind: str | None = element.get("data-bs-toggle") or element.get("data-toggle")
    if kind is None and not element.get("aria-haspopup"):
        return bool(element.get("aria-expanded")) or _is_named(element, _OPENS)
    return kind == "collapse"


def _is_topic(button: Any) -> bool:
    """Whether a button names the text after it."""
    if _opens_text(button):
        return True
    words, after = button.text_content().split(), button.getnext()
    return len(words) > 1 and button.getprevious() is None and after is not None and _size(after) > _size(button)


def _is_layout(table: Any) -> bool:
    """Whether a table's cells are no values: it puts parts of the page side by side."""
    if table.get("role") in ("presentation", "none"):
        return True
    if next(table.iterdescendants("table", "pre", *_HEADINGS), None) is not None:
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


def _joined(blocks: Sequence[Block]) -> str:
    """The blocks as one text: what belongs together without a blank line between."""
    text = ""
    for place, block in enumerate(blocks):
        before = blocks[place - 1].kind if place else ""
        close = (block.kind in ("item", "row") and block.kind == before) or (
            block.kind == "definition" and before == "term"
        )
        text += ("" if not place else "\n" if close else "\n\n") + block.text
    return text
