"""From sources to the passages of a run: cleaned, split, each id and each text once.

What is left out is counted by reason in ``counts.drops`` with a few examples, what is changed in ``counts.notes``. What
was seen is kept in an index on disk, so that a corpus need not fit into memory; where an error has to name an earlier
place, the sources are read again.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from gecko.config.stages import CorpusConfig
from gecko.core.counts import Counts, drop_words, left_out
from gecko.core.errors import CorpusError
from gecko.core.records import Passage
from gecko.corpus.chunk import Cutting, Found
from gecko.corpus.documents import Documents
from gecko.corpus.duplicates import Seen
from gecko.corpus.language import language_of
from gecko.corpus.readers import Reader, content_id, normal, read_placed

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EMPTY = "empty"
TOO_SHORT = "too short"
SAME_TEXT = "duplicate text"
SAME_ID = "duplicate id"
NEAR = "near duplicate"
LANGUAGE = "language"
SPLIT = "split"
READ_IN_PART = "read in part"
CONTROL = "control characters removed"

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def ingest(
    config: CorpusConfig,
    counts: Counts,
    *,
    tokenizer: "Tokenizer | None" = None,
    read: int | None = None,
    cache: Path | None = None,
) -> Iterator[Passage]:
    """Yield the passages of all sources, in order.

    Control characters other than tab and newline are removed, and outer white space; nothing else is changed. A
    passage is dropped that is ``empty``, ``too short``, not in one of ``config.languages``, or says what an earlier one
    of the same title says (``duplicate text``, or ``duplicate id`` if the id is the same, too; white space does not
    count) or nearly says (``near duplicate``). A long one is split, and its pieces are held to the same rules.

    Args:
        config: sources and rules.
        counts: gets the drops, and the notes ``split`` (passages that were split), ``read in part`` (that are longer than
            ``read``) and ``control characters removed``.
        tokenizer: counts tokens; needed where ``config.chunk_tokens`` is set.
        read: so many tokens of a passage's title and text are read; needed where ``config.chunk_tokens`` is ``read``.
        cache: a file that keeps what was read from HTML, PDF and Word files.

    Raises:
        CorpusError: a source cannot be read, two different passages have the same id, no passage is left, or a package
            that a setting needs is missing.
        ConfigError: ``config.overlap`` is too much of what is read.
    """
    kept, cutting = 0, Cutting(config, tokenizer, read)
    documents = Documents(config.document_seconds, config.html, cache)
    with closing(documents), closing(Seen(config.near_duplicates)) as seen:
        for place, piece in _pieces(config, Reader(config, documents, counts), cutting, seen):
            if config.near_duplicates is not None and (near := seen.near(piece.id, piece.text)):
                counts.drop(NEAR, f"{place}: {near[1]:.2f} like {near[0]}: {piece.text}")
                continue
            kept += 1
            yield piece
    if not kept:
        dropped = drop_words(dict(sorted(counts.drops.items())))
        raise CorpusError(
            f"no passage in {', '.join(config.sources) or 'an empty list of sources'}"
            f"{f' (dropped: {dropped})' if dropped else ''}; give files with text, or lower corpus.min_chars "
            f"(now {config.min_chars}){left_out(counts)}"
        )


def ingest_shards(
    config: CorpusConfig,
    *,
    tokenizer: "Tokenizer | None" = None,
    read: int | None = None,
    cache: Path | None = None,
) -> Iterator[tuple[list[Passage], Counts]]:
    """The passages of :func:`ingest` in shards, each with what was counted on the way to it.

    From ``config.shard_passages`` on, a shard ends at the first passage whose id says so, about a quarter as many later
    and at the latest at twice as many. So a passage that is added changes the shard it falls into, and rarely one more:
    what was made of the other shards (embeddings, say) is still valid.
    """
    counts = Counts()
    rows: list[Passage] = []
    least = config.shard_passages
    for passage in ingest(config, counts, tokenizer=tokenizer, read=read, cache=cache):
        rows.append(passage)
        ends = int.from_bytes(_hash(passage.id)[:8]) % max(1, least // 4) == 0
        if len(rows) >= least and (ends or len(rows) >= 2 * least):
            yield rows, _taken(counts)
            rows = []
    if rows or counts.drops or counts.notes:
        yield rows, _taken(counts)


def _taken(counts: Counts) -> Counts:
    """What was counted so far; the counter itself goes on from nothing."""
    taken = Counts(Counter(counts.drops), notes=Counter(counts.notes), examples=dict(counts.examples))
    counts.drops.clear()
    counts.notes.clear()
    counts.examples.clear()
    return taken


def _pieces(config: CorpusConfig, reader: Reader, cutting: Cutting, seen: Seen) -> Iterator[tuple[str, Passage]]:
    """What is long enough, of a language that is wanted, and not there yet word by word."""
    counts = reader.counts

    def is_new(passage: Passage, place: str) -> bool:
        content = _hash(normal(passage.title), normal(passage.text))
        known = seen.id_content(_hash(passage.id), content)
        if known is not None and known != content:
            raise _clash(passage.id, place, config, cutting)
        if seen.is_new(content):
            return True
        # An id that was made says no more than the text does.
        counts.drop(SAME_TEXT if known is None or _is_made(passage) else SAME_ID, f"{place}: {passage.text}")
        return False

    for found in _cleaned(config, reader):
        place, whole = found.place, found.passage
        if config.languages and (language := language_of(whole.text, "corpus.languages")) not in config.languages:
            counts.drop(f"{LANGUAGE} {language}", f"{place}: {whole.text}")
            continue
        if not is_new(whole, place):
            continue
        pieces = cutting.pieces(found)
        if cut := pieces != [whole]:
            counts.notes[SPLIT] += 1
        for piece in pieces:
            if cut and not (_is_long_enough(piece, place, config, counts) and is_new(piece, place)):
                continue
            if cutting.is_read_in_part(found, piece):
                counts.note(READ_IN_PART, f"{place}: {piece.title or piece.text}")
            yield place, piece


def _cleaned(config: CorpusConfig, reader: Reader) -> Iterator[Found]:
    counts = reader.counts
    for spec in config.sources:
        for place, passage in read_placed(spec, reader):
            title, in_title = _CONTROL.subn("", passage.title)
            text, in_text = _CONTROL.subn("", passage.text)
            if in_title or in_text:
                counts.notes[CONTROL] += in_title + in_text
            clean = replace(passage, title=title.strip(), text=text.strip())
            if _is_long_enough(clean, place, config, counts):
                yield Found(place, clean, spec, _is_made(passage))


def _is_made(passage: Passage) -> bool:
    """Whether the id was made from the content."""
    return passage.id == content_id(passage.title, passage.text)


def _is_long_enough(passage: Passage, place: str, config: CorpusConfig, counts: Counts) -> bool:
    if not passage.text:
        counts.drop(EMPTY, place)
    elif len(passage.text) < config.min_chars:
        counts.drop(TOO_SHORT, f"{place}: {passage.text}")
    else:
        return True
    return False


def _hash(*parts: str) -> bytes:
    # NUL separates: an id is hashed alone, and titles and texts hold none any more.
    return hashlib.blake2b("\0".join(parts).encode("utf-8"), digest_size=16).digest()


def _clash(clashing: str, place: str, config: CorpusConfig, cutting: Cutting) -> CorpusError:
    """The error for an id of two different passages; finds the first by reading the sources again."""
    first, document = "an earlier place", False
    documents = Documents(config.document_seconds, config.html)
    with closing(documents):
        for found in _cleaned(config, Reader(config, documents)):
            earlier, whole = found.place, found.passage
            ids = {piece.id for piece in cutting.pieces(found)}
            if clashing in ids | {whole.id}:
                first, document = earlier, earlier.endswith(whole.id) and place.endswith(whole.id)
                break
    if document:  # a row's place ends with its line
        ending = ".zip" if "!" in place else PurePosixPath(whole.id).suffix
        above = os.path.commonpath([Path(first).absolute(), Path(place).absolute()])
        return CorpusError(
            f"id {clashing!r} names two different passages: {first} and {place}. The id of a document is its path below its "
            f"source: give the folder above both ({above}), or a pattern of which the part before the first * is above both "
            f"('{above}/**/*{ending}'); then ids begin with the folders that differ"
        )
    return CorpusError(
        f"id {clashing!r} names two different passages: {first} and {place}; give each passage an id of its own "
        "(without one it gets an id made from its content), or use one source at a time"
    )
