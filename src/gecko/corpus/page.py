"""HTML pages as Markdown: all text, or the main text.

A page that marks its main text (``<main>``, ``role=main``, ``<article>``) is read as it marks it. In any other page
trafilatura says where the main text lies, and the smallest element that holds nearly all it found is read whole: it may
lose headings, answers, code and cells between the paragraphs that it keeps. What it found elsewhere is kept, too. Menus,
footers, sidebars and the like are left out of both, and so is what is mostly links and was not found by trafilatura
either.
"""

import codecs
import copy
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal

from lxml import etree
from lxml import html as parser

from gecko.corpus.beside import drop, drop_what_is_beside, marks
from gecko.corpus.bounds import NO_MAIN_TEXT, Unreadable
from gecko.corpus.markup import HEADINGS, Block, Renderer, is_layout, joined, letters_of, size

_DECLARED = re.compile(
    rb"<(?:meta|\?xml)\b[^>]{0,300}?(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.IGNORECASE
)
_WRAPPERS = re.compile(r"</?(?:(b|big|em|font|i|small|span|strong|u)|center|div|section)\b[^>]*>", re.IGNORECASE)
_NO_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")

# Parts of a text: the search for the element that holds it does not enter them.
_CONTENT = {*("blockquote", "details", "dl", "figure", "ol", "p", "pre", "ul"), *HEADINGS}

FEW = 0.4  # of a text's characters: so few say nothing about the rest
CHANCE = 20  # letters: so few may be found in any text


def read_page(data: bytes, mode: Literal["main", "all"]) -> tuple[str, str]:
    """Title (empty where the page names none) and text of an HTML page.

    Raises Unreadable: it has no such text, or is no page.
    """
    import trafilatura

    tree = _parsed(data)
    drop(marks(tree))
    body = tree if (found := tree.find(".//body")) is None else found
    blocks = Renderer(everything=True).blocks(body) if mode == "all" else []
    drop_what_is_beside(body)
    marked = _marked(body)
    if any(next(part.iter("h1"), None) is not None for part in marked):  # the others name the site
        drop(heading for heading in body.iter("h1") if not any(_is_below(heading, part) for part in marked))
    metadata = trafilatura.extract_metadata(copy.deepcopy(tree), extensive=False)  # no search for the page's date
    title = (metadata.title if metadata is not None else None) or ""
    if mode == "all":
        if not blocks:
            raise Unreadable("it holds no text")
        return title, joined(blocks)
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


# --- which part is the main text


def _main_text(body: Any, marked: Sequence[Any], found: str) -> str:
    blocks = [block for part in marked or [body] for block in Renderer().blocks(part)]
    kept = _kept(blocks, letters_of(found))
    if not marked:
        within = _container(body, blocks, kept)
        lines = {letters_of(line) for line in found.splitlines()}
        chosen = [
            place
            for place, block in enumerate(blocks)
            if _is_below(block.within, within)
            or (kept[place] and (len(block.letters) > CHANCE or block.letters in lines))
        ]
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
    own = joined(blocks) if any(block.kind != "heading" for block in blocks) or not found else ""
    # A page may hold its text as data for a script, where only trafilatura finds it.
    return own if 2 * len(letters_of(own)) >= len(letters_of(found)) else found


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
    return articles if 2 * sum(map(size, articles)) >= size(body) else []


def _has_text(element: Any) -> bool:
    """Whether it holds more than headings."""
    return size(element) > sum(size(part) for part in element.iter(*HEADINGS))


def _kept(blocks: Sequence[Block], found: str) -> list[bool]:
    """Which blocks trafilatura has found, too; most come in the same order."""
    kept, at = [], 0
    for block in blocks:
        letters = block.letters
        place = found.find(letters, at)
        if place < 0:
            place = found.find(letters)
        kept.append(place >= 0)
        if place >= at and len(letters) > CHANCE:
            at = place
    return kept


def _container(body: Any, blocks: Sequence[Block], kept: Sequence[bool]) -> Any:
    """The smallest element with nearly all that was found; the body, where that is little of the page."""
    sizes: Counter[Any] = Counter()
    for block, is_kept in zip(blocks, kept, strict=True):
        if is_kept:
            length = len(block.letters)
            sizes[block.within] += length
            for above in block.within.iterancestors():
                sizes[above] += length
    within, most = body, 0.9 * sizes[body]
    while (inner := next((child for child in within if sizes[child] >= most > 0), None)) is not None:
        if inner.tag in _CONTENT or (inner.tag == "table" and not is_layout(inner)):
            break
        within = inner
    plain = [block for block in blocks if not block.is_linked]
    held = sum(len(block.letters) for block in plain if _is_below(block.within, within))
    return within if held >= FEW * sum(len(block.letters) for block in plain) else body


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


def _is_below(element: Any, above: Any) -> bool:
    return element is above or any(parent is above for parent in element.iterancestors())
