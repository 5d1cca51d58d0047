"""Word files (.docx) as Markdown: one walk over the XML in the order of the document.

The text is that of the document once all tracked changes are accepted: insertions and what was moved here are read,
deletions and what was moved away are not. Content controls, text boxes, nested tables, equations, footnotes and endnotes
are read where they stand. Field codes, hidden text, comments, an automatic table of contents, headers and footers are
not. A box that is stored in two forms is read once, and so is a merged cell.
"""

import posixpath
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lxml import etree

from gecko.corpus.bounds import EXPANSION, EXPANSION_FLOOR, LOCKED, Unreadable

# Both forms of the standard, transitional and strict.
_PREFIXES = {
    "http://schemas.openxmlformats.org/wordprocessingml/2006/main": "w",
    "http://purl.oclc.org/ooxml/wordprocessingml/main": "w",
    "http://schemas.openxmlformats.org/officeDocument/2006/math": "m",
    "http://purl.oclc.org/ooxml/officeDocument/math": "m",
    "http://schemas.openxmlformats.org/markup-compatibility/2006": "mc",
}
_LEFT_OUT = {"w:del", "w:moveFrom", "w:rt", "w:pPr", "w:rPr", "w:tblPr", "w:trPr", "w:tcPr", "w:sectPr", "w:sdtPr"}
_SIGNS = {
    "w:tab": "\t",
    "w:ptab": "\t",
    "w:br": "\n",
    "w:cr": "\n",
    "w:noBreakHyphen": "-",
    # An equation on one line.
    "m:sup": "^",
    "m:sub": "_",
    "m:den": "/",
}
_OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_PRIVATE = range(0xE000, 0xF900)  # characters that only mean something in one font

Block = tuple[int, str]  # level of the heading, 0 for other text; text


def read_word(path: Path) -> tuple[str, str]:
    """Title (empty where the document names none) and text of a Word file.

    Raises Unreadable: it is locked, a bomb, or no Word file.
    """
    with path.open("rb") as handle:
        if handle.read(8) == _OLD_OFFICE:
            if "EncryptedPackage".encode("utf-16-le") in handle.read():
                raise Unreadable("it is locked with a password; save it without one", LOCKED)
            raise Unreadable("it is a file of Word 97 to 2003; save it as .docx")
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > max(EXPANSION_FLOOR, EXPANSION * path.stat().st_size):
            raise Unreadable(f"it expands more than {EXPANSION} times")
        package = _Package(archive)
        main = next(package.related("", "officeDocument"), "word/document.xml")
        if (document := package.xml(main)) is None:
            raise Unreadable("it is no Word file: it holds no document")
        notes = {
            (kind, note.get(_attribute(note, "id"))): note
            for kind in ("footnote", "endnote")
            for part in package.related(main, f"{kind}s")
            for note in _children(package.xml(part), f"w:{kind}")
        }
        styles = [
            style for part in package.related(main, "styles") for style in _children(package.xml(part), "w:style")
        ]
        core = next((part for part in package.related("", "core-properties")), "")
        title = next((found.text or "" for found in _all(package.xml(core), "title")), "")
    walk = _Walk(_levels(styles), notes)
    blocks = [(level, text) for level, text in walk.blocks(document) if text.strip()]
    return title, "\n\n".join(f"{'#' * level} {' '.join(text.split())}" if level else text for level, text in blocks)


class _Package:
    """The parts of a Word file, found by what they are to each other; names differ between programs."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._names = {name.replace("\\", "/").lower(): name for name in archive.namelist()}

    def xml(self, part: str) -> Any:
        """The root of a part; None where there is none."""
        if (name := self._names.get(part.lower())) is None:
            return None
        parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True, remove_comments=True)
        return etree.fromstring(self._archive.read(name), parser)

    def related(self, part: str, kind: str) -> Iterator[str]:
        """The parts that ``part`` (the package, where it is empty) names as its ``kind``."""
        folder, name = posixpath.split(part)
        for relation in _all(self.xml(posixpath.join(folder, "_rels", f"{name}.rels")), "Relationship"):
            if relation.get("Type", "").endswith(f"/{kind}") and relation.get("TargetMode") != "External":
                yield posixpath.normpath(posixpath.join("/", folder, relation.get("Target", ""))).lstrip("/")


def _all(root: Any, name: str) -> Iterator[Any]:
    return iter(()) if root is None else root.iter(f"{{*}}{name}")


def _name(element: Any) -> str:
    """``w:p`` for a paragraph, whatever prefix the file has; empty for what has no meaning here."""
    found = etree.QName(element)
    prefix = _PREFIXES.get(found.namespace or "")
    return f"{prefix}:{found.localname}" if prefix else ""


def _children(element: Any, name: str) -> Iterator[Any]:
    return iter(()) if element is None else (child for child in element.iterchildren("*") if _name(child) == name)


def _first(element: Any, *path: str) -> Any:
    """The element at the end of a path of children; None where there is none."""
    for name in path:
        element = next(_children(element, name), None)
    return element


def _attribute(element: Any, name: str) -> str:
    """The attribute's name in the element's own namespace."""
    return f"{{{etree.QName(element).namespace}}}{name}"


def _value(element: Any, *path: str) -> str | None:
    """The value of a property; None where it is not set, empty where it is set without one."""
    found = _first(element, *path)
    return None if found is None else found.get(_attribute(found, "val"), "")


def _is_on(element: Any, *path: str) -> bool:
    return (_value(element, *path) or "on").lower() not in ("0", "false", "off") and _first(element, *path) is not None


def _number(value: str | None, otherwise: int) -> int:
    return int(value) if value is not None and value.isascii() and value.isdigit() else otherwise


def _levels(styles: list[Any]) -> dict[str, int]:
    """The level of the heading that each style makes; a style has that of the one it is based on."""
    own: dict[str, tuple[int | None, str]] = {}
    for style in styles:
        name = (_value(style, "w:name") or "").lower()
        found = re.fullmatch(r"heading ([1-9])", name)
        level = 1 if name == "title" else int(found[1]) if found else _outline(style)
        own[style.get(_attribute(style, "styleId"), "")] = level, _value(style, "w:basedOn") or ""
    levels = {}
    for style in own:
        at, seen = style, set[str]()
        while at in own and at not in seen and own[at][0] is None:
            seen.add(at)
            at = own[at][1]
        levels[style] = (own[at][0] if at in own else None) or 0
    return levels


def _outline(element: Any) -> int | None:
    """The level that a paragraph's or a style's outline level stands for; 0: it says that it is no heading."""
    value = _value(element, "w:pPr", "w:outlineLvl")
    return None if value is None else (_number(value, 9) + 1) % 10


@dataclass
class _Paragraph:
    """One that is being read, with the notes that it refers to.

    Its text will stand in ``into`` at place ``at``: a text box in it comes after it.
    """

    into: list[Block]
    at: int
    parts: list[str]
    notes: list[Any] = field(default_factory=list)


@dataclass
class _Row:
    """One that is being read: its cells, and the column where the next one begins."""

    column: int
    cells: list[list[Block]] = field(default_factory=list)


class _Walk:
    """Reads one story of a document: its body, or a note."""

    def __init__(self, levels: dict[str, int], notes: dict[tuple[str, str], Any]) -> None:
        self._levels, self._notes = levels, notes
        self._into: list[list[Block]] = [[]]  # the body, and each cell that is open
        self._paragraphs: list[_Paragraph] = []
        self._rows: list[_Row] = []
        self._merged: list[dict[int, str]] = []  # of each open table: the text of the merged cell that covers a column
        self._fields: list[bool] = []  # of each open field: whether its result has begun
        self._carried = ""  # of a paragraph whose mark is deleted: the next one goes on with it

    def blocks(self, root: Any) -> list[Block]:
        """What is read below ``root``."""
        walk: Any = etree.iterwalk(root, events=("start", "end"), tag="{*}*")
        skipped = None
        for event, element in walk:
            name = _name(element)
            if event == "end":
                if element is not skipped:
                    self._end(element, name)
            elif _is_left_out(element, name):
                walk.skip_subtree()
                skipped = element
            else:
                self._start(element, name)
        self._flush()
        return self._into[0]

    def _start(self, element: Any, name: str) -> None:
        match name:
            case "w:p":
                self._into[-1].append((0, ""))
                self._paragraphs.append(_Paragraph(self._into[-1], len(self._into[-1]) - 1, [self._carried]))
                self._carried = ""
            case "w:tbl":
                self._merged.append({})
            case "w:tr":
                self._rows.append(_Row(_number(_value(element, "w:trPr", "w:gridBefore"), 0)))
            case "w:tc":
                self._into.append([])
            case "w:fldChar":
                self._field(element.get(_attribute(element, "fldCharType")))
            case "w:t" | "m:t":
                self._add(element.text or "")
            case "w:sym":
                self._add(_symbol(element.get(_attribute(element, "char"), "")))
            case "w:footnoteReference" | "w:endnoteReference":
                note = self._notes.get((name[2:].removesuffix("Reference"), element.get(_attribute(element, "id"))))
                if note is not None and self._paragraphs and all(self._fields):
                    self._paragraphs[-1].notes.append(note)
            case _:
                self._add(_SIGNS.get(name, ""))

    def _end(self, element: Any, name: str) -> None:
        match name:
            case "w:p":
                self._end_paragraph(element)
            case "w:tbl":
                self._flush()
                self._merged.pop()
            case "w:tr":
                self._end_row(self._rows.pop())
            case "w:tc":
                self._flush()
                self._end_cell(element, [block for block in self._into.pop() if block[1].strip()])

    def _add(self, text: str) -> None:
        if text and self._paragraphs and all(self._fields):
            self._paragraphs[-1].parts.append(text)

    def _field(self, kind: str | None) -> None:
        if kind == "begin":
            self._fields.append(False)
        elif kind == "separate" and self._fields:
            self._fields[-1] = True
        elif kind == "end" and self._fields:
            self._fields.pop()

    def _end_paragraph(self, element: Any) -> None:
        paragraph = self._paragraphs.pop()
        self._fields = [True] * len(self._fields)  # a damaged field must not take the rest of the document with it
        text, properties = "".join(paragraph.parts), _first(element, "w:pPr")
        if any(_first(properties, "w:rPr", mark) is not None for mark in ("w:del", "w:moveFrom")):
            self._carried = text
        else:
            level = _outline(element)
            if level is None:
                level = self._levels.get(_value(properties, "w:pStyle") or "", 0)
            paragraph.into[paragraph.at] = (min(level, 6), text)
        for note in paragraph.notes:
            paragraph.into += _Walk(self._levels, {}).blocks(note)

    def _end_cell(self, element: Any, blocks: list[Block]) -> None:
        if not self._rows or not self._merged:  # a cell outside of a table
            self._into[-1] += blocks
            return
        row, merged = self._rows[-1], self._merged[-1]
        text, merge = _text(blocks), _value(element, "w:tcPr", "w:vMerge")
        if merge == "restart":
            merged[row.column] = text
        elif merge is None:
            merged.pop(row.column, None)
        elif text == merged.get(row.column):
            blocks = []
        row.cells.append(blocks)
        row.column += max(1, _number(_value(element, "w:tcPr", "w:gridSpan"), 1))

    def _end_row(self, row: _Row) -> None:
        filled = [cell for cell in row.cells if cell]
        if len(filled) > 1:
            self._into[-1].append((0, " | ".join(map(_text, row.cells))))
        else:  # a table that only arranges text
            self._into[-1] += [block for cell in filled for block in cell]

    def _flush(self) -> None:
        if self._carried.strip():
            self._into[-1].append((0, self._carried))
        self._carried = ""


def _text(blocks: list[Block]) -> str:
    return "\n".join(text.strip() for _, text in blocks)


def _symbol(code: str) -> str:
    try:
        number = int(code, 16)
        return "" if number in _PRIVATE else chr(number)
    except ValueError:
        return ""


def _is_left_out(element: Any, name: str) -> bool:
    if name in _LEFT_OUT:
        return True
    match name:
        case "w:r":
            return _is_on(element, "w:rPr", "w:vanish")
        case "w:tr":
            return _first(element, "w:trPr", "w:del") is not None
        case "w:tc":
            return _first(element, "w:tcPr", "w:cellDel") is not None
        case "w:sdt":
            gallery = _value(element, "w:sdtPr", "w:docPartObj", "w:docPartGallery") or ""
            return gallery.lower() == "table of contents"
        case "mc:Choice" | "mc:Fallback":
            return element is not _chosen(element.getparent())
    return False


def _chosen(alternatives: Any) -> Any:
    """The form that is read, of several of the same content: the first with text."""
    forms = [form for form in alternatives.iterchildren("*") if _name(form) in ("mc:Choice", "mc:Fallback")]
    return next((form for form in forms if any(_name(part) in ("w:t", "m:t") for part in form.iter("*"))), None)
