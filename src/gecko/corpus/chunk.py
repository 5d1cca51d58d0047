"""Long passages cut at headings, paragraphs and sentences, by ``semantic_text_splitter``.

The splitter's time grows with the square of a long line: 500,000 Chinese characters without a newline take it 43
seconds. So it is shown a window of a few pieces at a time, and the next window starts at the last piece it made,
which is the only one that the window's end can have cut short. Time is then linear in the text.
"""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from gecko.core.errors import ConfigError
from gecko.core.records import Passage
from gecko.corpus.markdown import HEADING, with_prose
from gecko.corpus.sources import ending_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A window holds so many pieces. Fewer: more borders are seen twice, and Markdown loses sight of its structure more
# often. More: a text without newlines becomes slow.
WINDOW_PIECES = 8
TOKEN_CHARS = 4  # only for the size of a window
MARKDOWN = (".md", ".html", ".htm", ".docx")
TITLE_CHARS = 300


@dataclass(frozen=True)
class Chunking:
    """How long passages are cut.

    Attributes:
        longest: a passage up to this length stays whole.
        size: the largest piece.
        overlap: how much of the end of a piece the next one repeats, at most.
        tokenizer: lengths are its tokens; none: characters.
        section_titles: the headings above a piece are added to its title.
    """

    longest: int
    size: int
    overlap: int = 0
    tokenizer: "Tokenizer | None" = None
    section_titles: bool = False

    def is_short(self, text: str) -> bool:
        """Whether the text is not to be cut."""
        if self.tokenizer is None:
            return len(text) <= self.longest
        if len(text.encode("utf-8")) <= self.longest:  # no token is shorter than a byte
            return True
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids) <= self.longest


def load_tokenizer(model: str) -> "Tokenizer":
    """The tokenizer of a model (a folder or a hub name), to count a text's tokens in full.

    Raises:
        ConfigError: the model has none that can count outside of Python.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    backend = getattr(AutoTokenizer.from_pretrained(model), "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ConfigError(f"model {model} has no fast tokenizer; unset corpus.chunk_tokens and use corpus.chunk_chars")
    counting = Tokenizer.from_str(backend.to_str())
    counting.no_truncation()
    counting.no_padding()
    return counting


class _Splitter(Protocol):
    def chunk_indices(self, text: str) -> list[tuple[int, str]]: ...


def is_markdown(source: str) -> bool:
    """Whether a file of this name is read as Markdown, compressed or not."""
    return ending_of(source) in MARKDOWN


def split_long(passage: Passage, how: Chunking) -> list[Passage]:
    """Cut a long passage into pieces ``ID#1``, ``ID#2`` and so on.

    No piece is longer than ``how.size`` or ``how.longest``. Together they hold every character but the white space
    between them. Markdown (also from HTML and Word files) is cut along its structure. A passage that is short enough is
    returned as it is. This function raises no errors.
    """
    if how.is_short(passage.text):
        return [passage]
    size = min(how.size, how.longest)
    markdown = is_markdown(passage.source)
    window = WINDOW_PIECES * size * (1 if how.tokenizer is None else TOKEN_CHARS)
    sections = _Sections(passage.text, passage.title) if markdown and how.section_titles else None
    return [
        replace(
            passage,
            id=f"{passage.id}#{number}",
            title=sections.title_at(start, text) if sections else passage.title,
            text=text,
        )
        for number, (start, text) in enumerate(_pieces(_splitter(markdown, size, how), passage.text, window), start=1)
    ]


def _splitter(markdown: bool, size: int, how: Chunking) -> _Splitter:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    kind = MarkdownSplitter if markdown else TextSplitter
    overlap = min(how.overlap, size - 1)
    made: _Splitter = (
        kind(size, overlap) if how.tokenizer is None else kind.from_huggingface_tokenizer(how.tokenizer, size, overlap)
    )
    return made


def _pieces(splitter: _Splitter, text: str, window: int) -> Iterator[tuple[int, str]]:
    start = 0
    while start < len(text):
        end = start + window
        found = splitter.chunk_indices(text[start:end])
        if end < len(text) and len(found) > 1:
            end = start + found.pop()[0]
        yield from ((start + offset, piece) for offset, piece in found)
        start = end


class _Sections:
    """The headings of a Markdown text, to name the section that a piece is from."""

    def __init__(self, text: str, title: str) -> None:
        self.title = title
        self._starts: list[int] = []
        self._paths: list[tuple[str, ...]] = []
        path: list[tuple[int, str]] = []
        offset = 0
        for line, prose in with_prose(text.splitlines(keepends=True)):
            if prose and (heading := HEADING.match(line.rstrip("\r\n"))):
                path = [(level, name) for level, name in path if level < len(heading[1])]
                path.append((len(heading[1]), heading[2].strip()))
                self._starts.append(offset)
                self._paths.append(tuple(name for _, name in path))
            offset += len(line)

    def title_at(self, start: int, text: str) -> str:
        """The title with the headings above the piece; a piece that begins with its heading is under that one."""
        lead = len(text) - len(text.lstrip())
        index = bisect.bisect_right(self._starts, start + lead) - 1
        headings = [name for name in self._paths[index] if name != self.title] if index >= 0 else []
        joined = " › ".join([*([self.title] if self.title else []), *headings])
        return joined if len(joined) <= TITLE_CHARS else f"{joined[: TITLE_CHARS - 1]}…"
