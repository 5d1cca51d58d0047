"""Long passages cut at headings, paragraphs and sentences, by ``semantic_text_splitter``.

The splitter's time grows with the square of a long line: 500,000 Chinese characters without a newline take it 43
seconds. So it is shown a window of a few pieces at a time, and the next window starts at the last piece it made,
which is the only one that the window's end can have cut short. Time is then linear in the text.
"""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from gecko.config.stages import CorpusConfig
from gecko.core.errors import ConfigError
from gecko.core.formats import render_passage
from gecko.core.records import Passage
from gecko.corpus.markdown import HEADING, with_prose
from gecko.corpus.sources import DOCUMENT_ENDINGS, ending_of, is_remote

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
        titled: a passage is as long as its title and text together, in the unified format, which is the longer one. Of a
            piece at least half is left to the text; a title that takes more is cut short.
    """

    longest: int
    size: int
    overlap: int = 0
    tokenizer: "Tokenizer | None" = None
    section_titles: bool = False
    titled: bool = False

    def is_short(self, passage: Passage) -> bool:
        """Whether the passage is not to be cut."""
        text = render_passage(passage, "unified") if self.titled else passage.text
        if self.tokenizer is None:
            return len(text) <= self.longest
        if len(text.encode("utf-8")) <= self.longest:  # no token is shorter than a byte
            return True
        return self._length(text) <= self.longest

    def shortened(self, title: str, room: int) -> str:
        """The title, or as much of its beginning as takes up ``room`` beside a text."""
        cut, end = title, len(title)
        while cut and self.beside(cut) > room:
            end = end * room // self.beside(cut) if self.beside(cut) > 2 * room else end - 1
            cut = f"{title[:end].rstrip()}…" if title[:end].strip() else ""
        return cut

    def beside(self, title: str) -> int:
        """How long what stands in front of a text with this title is."""
        return self._length(render_passage(Passage("", title, ""), "unified"))

    def _length(self, text: str) -> int:
        return len(text) if self.tokenizer is None else len(self.tokenizer.encode(text, add_special_tokens=False).ids)


def load_tokenizer(model: str) -> "Tokenizer":
    """The tokenizer of a model (a folder or a hub name), to count a text's tokens in full.

    Raises ConfigError: the model has none that can count outside of Python.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    backend = getattr(AutoTokenizer.from_pretrained(model), "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ConfigError(
            f"model {model} has no fast tokenizer; set corpus.chunk_tokens=null and use corpus.chunk_chars"
        )
    counting = Tokenizer.from_str(backend.to_str())
    counting.no_truncation()
    counting.no_padding()
    return counting


def is_markdown(source: str) -> bool:
    """Whether a file of this name is read as Markdown, compressed or not."""
    return ending_of(source) in MARKDOWN


def split_long(passage: Passage, how: Chunking) -> list[Passage]:
    """Cut a long passage into pieces ``ID#1``, ``ID#2`` and so on.

    No piece is longer than ``how.size`` or ``how.longest``. Together they hold every character but the white space
    between them. Where titles count, all pieces leave the room of the longest. Markdown (also from HTML and Word files) is
    cut along its structure. A passage that is short enough is returned as it is. This function raises no errors.
    """
    if how.is_short(passage):
        return [passage]
    size = whole = min(how.size, how.longest)
    markdown = is_markdown(passage.source)
    sections = _Sections(passage.text, passage.title) if markdown and how.section_titles else None
    titles = dict.fromkeys(sections.titles if sections else [passage.title])
    shown = {title: title for title in titles}
    if how.titled:
        size = max(whole // 2, whole - max(map(how.beside, titles)))
        shown = {title: how.shortened(title, whole - size) for title in titles}
    window = WINDOW_PIECES * size * (1 if how.tokenizer is None else TOKEN_CHARS)
    return [
        replace(
            passage,
            id=f"{passage.id}#{number}",
            title=shown[sections.title_at(start, text) if sections else passage.title],
            text=text,
        )
        for number, (start, text) in enumerate(_pieces(_splitter(markdown, size, how), passage.text, window), start=1)
    ]


def _splitter(markdown: bool, size: int, how: Chunking) -> Any:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    kind = MarkdownSplitter if markdown else TextSplitter
    overlap = min(how.overlap, size - 1)
    if how.tokenizer is None:
        return kind(size, overlap)
    return kind.from_huggingface_tokenizer(how.tokenizer, size, overlap)


def _pieces(splitter: Any, text: str, window: int) -> Iterator[tuple[int, str]]:
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
        return self._joined(self._paths[index] if index >= 0 else ())

    @property
    def titles(self) -> list[str]:
        """The titles that pieces may have."""
        return [self._joined(path) for path in dict.fromkeys([(), *self._paths])]

    def _joined(self, path: tuple[str, ...]) -> str:
        headings = [name for name in path if name != self.title]
        joined = " › ".join([*([self.title] if self.title else []), *headings])
        return joined if len(joined) <= TITLE_CHARS else f"{joined[: TITLE_CHARS - 1]}…"


class Found(NamedTuple):
    """A passage as it was read, cleaned, at a place such as ``corpus.jsonl:12``; ``made``: its id is of its content."""

    place: str
    passage: Passage
    spec: str
    made: bool


class Cutting:
    """How the settings have long passages cut, and which are longer than what is read of them.

    Where ``corpus.chunk_tokens`` is ``read``, a document is cut to what is read of it, and so is a row without an id of its
    own: its id is made from its content, so nothing else can name it. A row that has one stays whole, since judgements,
    links and databases name it. The documentation of the standard library is cut by characters: released rows and test
    questions name its passages.

    The tokenizer is needed where ``config.chunk_tokens`` is set. ``read`` is how many tokens of a passage's title and
    text are read, which ``config.chunk_tokens`` of ``read`` needs; unknown, nothing is found to be read in part. Raises
    ConfigError: pieces would repeat more than they add.
    """

    def __init__(self, config: CorpusConfig, tokenizer: "Tokenizer | None", read: int | None) -> None:
        tokens, rest = config.chunk_tokens, (config.overlap, tokenizer, config.section_titles)
        if tokens is not None and tokenizer is None:
            raise ValueError("corpus.chunk_tokens needs a tokenizer")
        self._to_read = tokens == "read"
        self._window = None if read is None or tokenizer is None else Chunking(read, read, *rest, titled=True)
        self._plain = Chunking(config.max_chars, config.chunk_chars, config.overlap, None, config.section_titles)
        if isinstance(tokens, int):
            self._plain = Chunking(tokens, tokens, *rest)
        if self._to_read and read is None:
            raise ValueError("corpus.chunk_tokens = 'read' needs to be told what is read")
        if self._to_read and read is not None and config.overlap >= read // 2:
            raise ConfigError(
                f"corpus.overlap = {config.overlap} must be less than half of the {read} tokens that are read of a passage; "
                "lower it, or set corpus.chunk_chars to count in characters"
            )

    def pieces(self, found: Found) -> list[Passage]:
        """The passage itself, or what it is cut into."""
        how = self._how(found)
        return [found.passage] if how is None else split_long(found.passage, how)

    def is_read_in_part(self, found: Found, piece: Passage) -> bool:
        """Whether a piece of a passage is longer than what is read."""
        return self._window is not None and self._how(found) is not self._window and not self._window.is_short(piece)

    def _how(self, found: Found) -> Chunking | None:
        if not self._to_read or found.spec == "stdlib":
            return self._plain
        document = ending_of(found.passage.source) in DOCUMENT_ENDINGS and not is_remote(found.spec)
        return self._window if document or found.made else None
