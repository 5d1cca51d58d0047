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
from pathlib import Path
from typing import Any, BinaryIO, Literal

from gecko.core.text import whole_characters
from gecko.corpus.bounds import LOCKED, Unreadable

HTML_ENDINGS = (".html", ".htm", ".xhtml")
PARSERS = dict.fromkeys(HTML_ENDINGS, ("trafilatura", "charset_normalizer")) | {".pdf": ("pypdf",), ".docx": ("lxml",)}


class Missing(Exception):
    """A package that a document needs is not installed; the message names it."""


def extract(path: Path, ending: str, html: Literal["main", "all"]) -> tuple[str, str]:
    """Title (empty where the document names none) and text, as Markdown where it has headings."""
    if ending in HTML_ENDINGS:
        from gecko.corpus.page import read_page

        return read_page(path.read_bytes(), html)
    if ending == ".pdf":
        return _pdf(path)
    from gecko.corpus.word import read_word

    return read_word(path)


def _pdf(path: Path) -> tuple[str, str]:
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    reader = PdfReader(path)
    try:
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("it is locked with a password; save it without one", LOCKED)
        title = reader.metadata.title if reader.metadata else None
        text = "\n\n".join(page.extract_text() for page in reader.pages)
    except DependencyError as error:
        if "cryptography" in str(error):  # what else there is, hardly any PDF needs
            raise Missing("cryptography, for a PDF that is encrypted with AES") from error
        raise
    if not text.strip():
        raise Unreadable("its pages hold no text (scanned, perhaps)")
    return str(title or ""), text


def _bound_memory(megabytes: int) -> None:
    with contextlib.suppress(ImportError):
        import resource

        with contextlib.suppress(ValueError, OSError):  # a system that has no such limit
            resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))


def load(ending: str) -> dict[str, str]:
    """Import what parses one kind of document; empty, or what is ``missing``."""
    try:
        for package in PARSERS[ending]:
            importlib.import_module(package)
    except ImportError as error:
        return {"missing": str(error)}
    return {}


def answer(request: dict[str, Any]) -> dict[str, str]:
    """The reply to one request; whatever a parser does becomes an ``error``."""
    try:
        title, text = extract(Path(request["path"]), request["ending"], request["html"])
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Missing as error:
        return {"missing": str(error)}
    except Unreadable as error:
        return {"error": str(error), "reason": error.reason}
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
