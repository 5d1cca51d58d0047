"""HTML, PDF and Word files as Markdown, in a process of its own: ``python -m gecko.corpus.extract MEGABYTES``.

Such files come from anywhere, and their parsers have endless loops and memory bombs. So they run where they can be
killed: :mod:`gecko.corpus.documents` sends one JSON line (``path``, ``ending``, ``html``) a document and gets two frames,
each 8 bytes of length and a JSON object: an empty one once the parser is loaded, which is not the document's time, and
one with ``title`` and ``text``, or with ``error``. Nothing in a document is executed or fetched.
"""

import contextlib
import importlib
import json
import logging
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Literal

from gecko.corpus.bounds import EXPANSION, EXPANSION_FLOOR
from gecko.text import whole_characters

HTML_ENDINGS = (".html", ".htm", ".xhtml")


class Unreadable(Exception):
    """A document that holds no text that can be had; the message says why."""


def extract(path: Path, ending: str, html: Literal["main", "all"]) -> tuple[str, str]:
    """Title (empty where the document names none) and text, as Markdown where it has headings."""
    if ending in HTML_ENDINGS:
        return _html(path.read_bytes(), html)
    return _pdf(path) if ending == ".pdf" else _docx(path)


def _html(data: bytes, mode: Literal["main", "all"]) -> tuple[str, str]:
    import trafilatura

    found = trafilatura.extract_metadata(data)
    title = (found.title if found is not None else None) or ""
    if mode == "all":
        return title, trafilatura.html2txt(data)
    return title, trafilatura.extract(data, output_format="markdown", include_comments=False) or ""


def _pdf(path: Path) -> tuple[str, str]:
    from pypdf import PdfReader

    reader = PdfReader(path)
    if reader.is_encrypted and not reader.decrypt(""):
        raise Unreadable("it is locked with a password")
    title = reader.metadata.title if reader.metadata else None
    text = "\n\n".join(page.extract_text() for page in reader.pages)
    if not text.strip():
        raise Unreadable("its pages hold no text (scanned, perhaps)")
    return str(title or ""), text


def _docx(path: Path) -> tuple[str, str]:
    from docx import Document
    from docx.table import Table

    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > max(EXPANSION_FLOOR, EXPANSION * path.stat().st_size):
        raise Unreadable(f"it expands more than {EXPANSION} times")
    document = Document(str(path))
    blocks = []
    for block in document.iter_inner_content():
        if isinstance(block, Table):
            blocks += [" | ".join(cell.text.strip() for cell in row.cells) for row in block.rows]
            continue
        style = (block.style.name if block.style is not None else "") or ""
        level = style.removeprefix("Heading ")
        depth = 1 if style == "Title" else int(level) if style.startswith("Heading ") and level.isdigit() else 0
        blocks.append(f"{'#' * min(depth, 6)} {block.text}" if depth and block.text.strip() else block.text)
    return document.core_properties.title or "", "\n\n".join(block for block in blocks if block.strip())


def _bound_memory(megabytes: int) -> None:
    with contextlib.suppress(ImportError):
        import resource

        with contextlib.suppress(ValueError, OSError):  # a system that has no such limit
            resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))


def load(ending: str) -> dict[str, str]:
    """Import the parser of one kind of document; empty, or what is ``missing``."""
    try:
        importlib.import_module("trafilatura" if ending in HTML_ENDINGS else {".pdf": "pypdf", ".docx": "docx"}[ending])
    except ImportError as error:
        return {"missing": str(error)}
    return {}


def answer(request: dict[str, Any]) -> dict[str, str]:
    """The reply to one request; whatever a parser does becomes an ``error``."""
    try:
        title, text = extract(Path(request["path"]), request["ending"], request["html"])
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Unreadable as error:
        return {"error": str(error)}
    except (Exception, RecursionError) as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    return {"title": whole_characters(title), "text": whole_characters(text)}


def _send(out: BinaryIO, value: dict[str, str]) -> None:
    frame = json.dumps(value).encode("utf-8")
    out.write(len(frame).to_bytes(8, "little") + frame)
    out.flush()


def main() -> None:
    """Answer requests until standard input ends."""
    out = sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints must not get between the frames
    logging.disable(logging.CRITICAL)
    _bound_memory(int(sys.argv[1]))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _send(out, load(request["ending"]))
        _send(out, answer(request))


if __name__ == "__main__":
    main()
