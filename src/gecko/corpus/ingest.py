"""From sources to the passages of a run: cleaned, split, each id and each text once.

What is left out is counted by reason in ``counts.drops``, what is changed in ``counts.notes``. Of the passages seen
only hashes are kept, so that a corpus need not fit into memory; where an error has to name an earlier place, the
sources are read again.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace

from gecko.config import CorpusConfig
from gecko.corpus.chunk import split_long
from gecko.corpus.readers import content_id, normal, read_placed
from gecko.errors import CorpusError
from gecko.records import Passage
from gecko.store import Counts

EMPTY = "empty"
TOO_SHORT = "too short"
SAME_TEXT = "duplicate text"
SAME_ID = "duplicate id"
SPLIT = "split"
CONTROL = "control characters removed"

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def ingest(config: CorpusConfig, counts: Counts) -> Iterator[Passage]:
    """Yield the passages of all sources, in order.

    Control characters other than tab and newline are removed, and outer white space; nothing else is changed. A
    passage is dropped that is ``empty``, ``too short``, or says what an earlier one of the same title says
    (``duplicate text``, or ``duplicate id`` if the id is the same, too; white space does not count). A long one
    is split, and its pieces are held to the same rules.

    Args:
        config: sources and lengths, in characters.
        counts: gets the drops, and the notes ``split`` (passages that were split) and
            ``control characters removed``.

    Raises:
        CorpusError: a source cannot be read, two different passages have the same id, or no passage is left.
    """
    # Hashes as whole numbers, which take the least memory.
    contents: dict[int, int] = {}
    texts: set[int] = set()
    kept = 0
    for place, whole in _cleaned(config, counts):
        if not _is_new(whole, place, config, contents, texts, counts):
            continue
        pieces = split_long(whole, config.max_chars, config.chunk_chars)
        if pieces == [whole]:
            kept += 1
            yield whole
            continue
        counts.notes[SPLIT] += 1
        for piece in pieces:
            if _is_long_enough(piece, config, counts) and _is_new(piece, place, config, contents, texts, counts):
                kept += 1
                yield piece
    if not kept:
        dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.drops.items()))
        raise CorpusError(
            f"no passage in {', '.join(config.sources) or 'an empty list of sources'}"
            f"{f' (dropped: {dropped})' if dropped else ''}; give files with text, or lower corpus.min_chars "
            f"(now {config.min_chars})"
        )


def _cleaned(config: CorpusConfig, counts: Counts) -> Iterator[tuple[str, Passage]]:
    for spec in config.sources:
        for place, passage in read_placed(spec, counts.notes):
            title, in_title = _CONTROL.subn("", passage.title)
            text, in_text = _CONTROL.subn("", passage.text)
            if in_title or in_text:
                counts.notes[CONTROL] += in_title + in_text
            clean = replace(passage, title=title.strip(), text=text.strip())
            if _is_long_enough(clean, config, counts):
                yield place, clean


def _is_long_enough(passage: Passage, config: CorpusConfig, counts: Counts) -> bool:
    if not passage.text:
        counts.drops[EMPTY] += 1
    elif len(passage.text) < config.min_chars:
        counts.drops[TOO_SHORT] += 1
    else:
        return True
    return False


def _is_new(
    passage: Passage, place: str, config: CorpusConfig, contents: dict[int, int], texts: set[int], counts: Counts
) -> bool:
    key = _hash(passage.id)
    content = _hash(normal(passage.title), normal(passage.text))
    known = contents.get(key)
    if known is None:
        contents[key] = content
    elif known != content:
        raise _clash(passage.id, place, config)
    if content not in texts:
        texts.add(content)
        return True
    made = passage.id == content_id(passage.title, passage.text)  # such an id says no more than the text does
    counts.drops[SAME_TEXT if known is None or made else SAME_ID] += 1
    return False


def _hash(*parts: str) -> int:
    # NUL separates: an id is hashed alone, and titles and texts hold none any more.
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode("utf-8"), digest_size=16).digest())


def _clash(clashing: str, place: str, config: CorpusConfig) -> CorpusError:
    """The error for an id of two different passages; finds the first by reading the sources again."""
    first = "an earlier place"
    for earlier, whole in _cleaned(config, Counts()):
        ids = {piece.id for piece in split_long(whole, config.max_chars, config.chunk_chars)}
        if clashing in ids | {whole.id}:
            first = earlier
            break
    return CorpusError(
        f"id {clashing!r} names two different passages: {first} and {place}; give each passage an id of its own "
        "(without one it gets an id made from its content), or use one source at a time"
    )
