"""Which passages of a corpus are cut, and which are longer than what is read of them.

Where ``corpus.chunk_tokens`` is ``read``, a document is cut to what is read of it, and so is a row without an id of its
own: its id is made from its content, so nothing else can name it. A row that has one stays whole, since judgements, links
and databases name it. The documentation of the standard library is cut by characters: released rows and test questions
name its passages.
"""

from typing import TYPE_CHECKING, NamedTuple

from gecko.config.stages import CorpusConfig
from gecko.core.errors import ConfigError
from gecko.core.records import Passage
from gecko.corpus.chunk import Chunking, split_long
from gecko.corpus.sources import DOCUMENT_ENDINGS, ending_of, is_remote

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Found(NamedTuple):
    """A passage as it was read, cleaned, at a place such as ``corpus.jsonl:12``; ``made``: its id is of its content."""

    place: str
    passage: Passage
    spec: str
    made: bool


class Cutting:
    """How the settings have long passages cut.

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
