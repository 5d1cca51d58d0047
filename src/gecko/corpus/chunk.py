"""Long passages cut at headings, paragraphs and sentences, by ``semantic_text_splitter``.

The splitter's time grows with the square of a long line: 500,000 Chinese characters without a newline take it 43
seconds. So it is shown a window of a few pieces at a time, and the next window starts at the last piece it made,
which is the only one that the window's end can have cut short. Time is then linear in the text.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from gecko.records import Passage

# A window holds so many pieces. Fewer: more borders are seen twice, and Markdown loses sight of its structure more
# often. More: a text without newlines becomes slow.
WINDOW_PIECES = 8


class _Splitter(Protocol):
    def chunk_indices(self, text: str) -> list[tuple[int, str]]: ...


def split_long(passage: Passage, max_chars: int, chunk_chars: int) -> list[Passage]:
    """Cut a passage longer than ``max_chars`` characters into pieces ``ID#1``, ``ID#2``, … of the same title.

    No piece is longer than ``chunk_chars`` or ``max_chars``. Pieces do not overlap, and together they hold every
    character but the white space between them. A source that ends in ``.md`` is cut along its Markdown structure.
    A passage that is short enough is returned as it is. This function raises no errors.
    """
    if len(passage.text) <= max_chars:
        return [passage]
    size = min(chunk_chars, max_chars)
    pieces = _pieces(_splitter(passage.source, size), passage.text, WINDOW_PIECES * size)
    return [replace(passage, id=f"{passage.id}#{number}", text=text) for number, text in enumerate(pieces, start=1)]


def _splitter(source: str, size: int) -> _Splitter:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    splitter: _Splitter = (MarkdownSplitter if source.lower().endswith(".md") else TextSplitter)(size)
    return splitter


def _pieces(splitter: _Splitter, text: str, window: int) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = start + window
        found = splitter.chunk_indices(text[start:end])
        if end < len(text) and len(found) > 1:
            end = start + found.pop()[0]
        yield from (piece for _, piece in found)
        start = end
