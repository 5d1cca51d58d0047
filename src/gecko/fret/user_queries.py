"""Queries that people asked, without labels: judged and taught as those that the teacher writes.

::

    asked.sources ─read_asked─▶ RUN/asked ─┐
    seeds ────────generate────▶ RUN/generate ─┴─▶ mine ─▶ relabel ─▶ select

They have no seed (``Query.asked``). Nothing else differs: the start model finds their candidates, the teacher scores these,
and the fused order chooses positive and negative; where the teacher does not find its first relevant, ``select.min_rc``
drops the row. The paper has no such step.

Their order is by a hash of the text, so whatever of them a budget or ``asked.limit`` takes is a random draw, and more of
them begin with fewer.

=====================================  =======================================================
``.txt``, ``.txt.gz``                  a query a line
a table, as in ``corpus/tables.py``    the column ``asked.field``
``hf:NAME[:CONFIG][@SPLIT]``, SQL      rows, as of a corpus (``corpus/readers.py``)
=====================================  =======================================================
"""

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gecko.config.stages import AskedConfig
from gecko.core.counts import Counts
from gecko.core.errors import CorpusError, TrainingError
from gecko.core.files import digest, file_sha256, hash_fraction
from gecko.core.records import Query
from gecko.core.text import whole_characters
from gecko.corpus.remote import read_rows as read_remote
from gecko.corpus.remote import rows_identity
from gecko.corpus.sources import is_remote
from gecko.corpus.tables import ENDINGS, ending_of, numbered_lines, read_rows, text_of

LINES = (".txt", ".txt.gz")
FIELDS = ("query", "question", "text")
MAX_CHARS = 1000
NAME = "asked"


def likeness(query: str) -> str:
    """What two queries share that differ in case, white space and the mark at the end alone."""
    return " ".join(query.split()).casefold().rstrip(" .?!")


def asked_id(query: str) -> str:
    """The id of a query that was written for no passage: a hash of its text."""
    return f"a-{digest(query)[:12]}"


def asked_identity(config: AskedConfig) -> str:
    """A hash of what the sources hold. Raises CorpusError: one is missing, or of another kind."""
    return digest(*(rows_identity(spec) if is_remote(spec) else file_sha256(_file(spec)) for spec in config.sources))


def read_asked(config: AskedConfig, heldout: float, heldout_max: int, seed: int, counts: Counts) -> list[Query]:
    """The queries of all sources, each once, in the order in which they are to be judged.

    White space within a query counts as one space; null is an empty one. What has no letter or digit, is longer than
    1,000 characters or is like another one (:func:`likeness`) is dropped and counted. The share ``heldout``, at most
    ``heldout_max`` and the first in the order, is kept for the agreement test; which ones is decided by their text.
    Raises CorpusError: a source is missing, of another kind, or cannot be read. TrainingError: a table is empty, or not
    readable at some row.
    """
    found: dict[str, str] = {}
    for text in _texts(config):
        query = " ".join(whole_characters(text).split())
        same = likeness(query)
        if not re.search(r"[^\W_]", query):
            counts.drop("no letter or digit", query)
        elif len(query) > MAX_CHARS:
            counts.drop(f"longer than {MAX_CHARS:,} characters", query)
        elif same in found:
            counts.drop("asked before", query)
            found[same] = min(found[same], query)  # whichever comes first
        else:
            found[same] = query
    order = sorted(found.values(), key=lambda query: digest(str(seed), query))
    if len(order) > config.limit:
        counts.drops[f"more than {config.limit:,}"] += len(order) - config.limit
    queries = []
    for query in order[: config.limit]:
        held = heldout_max > 0 and hash_fraction("heldout", str(seed), query) < heldout
        heldout_max -= held
        queries.append(Query(asked_id(query), config.task, query, "", "", "heldout" if held else "train"))
    return queries


def _file(spec: str) -> Path:
    path = Path(spec).expanduser()
    kinds = f"{', '.join((*LINES, *ENDINGS))}, hf:NAME or a SQL query"
    if not path.exists():
        raise CorpusError(f"{NAME}.sources: {spec} does not exist; give a file ({kinds})")
    if path.is_dir():  # it may well hold a corpus
        raise CorpusError(f"{NAME}.sources: {spec} is a folder; name the file with the queries in it")
    if not path.name.endswith(LINES) and not ending_of(path):
        raise CorpusError(f"{NAME}.sources: {spec} is of another kind; give {kinds}")
    return path


def _texts(config: AskedConfig) -> Iterator[str]:
    for spec in config.sources:
        rows: Iterable[tuple[str, Mapping[str, Any]]]
        if is_remote(spec):
            rows = ((place, row) for place, row, _ in read_remote(spec))
        elif (file := _file(spec)).name.endswith(LINES):
            yield from _lines(file)
            continue
        else:
            rows = read_rows(NAME, spec)
        for place, row in rows:
            yield text_of(dict(row), _field(row, config.field, place), place, optional=True, halves=True)


def _lines(path: Path) -> Iterator[str]:
    number = 0
    try:
        for place, line in numbered_lines(path):
            number = place
            if text := line.strip():
                yield text
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise CorpusError(
            f"{NAME}.sources: line {number + 1} of {path} cannot be read ({error}); mend the file"
        ) from error


def _field(row: Mapping[str, Any], wanted: str | None, place: str) -> str:
    for name in (wanted,) if wanted else FIELDS:
        if name in row:
            return name
    raise TrainingError(
        f"{place}: no column {wanted or ', '.join(FIELDS)}, and there are {', '.join(map(str, row))}; name the one with the "
        "queries in asked.field"
    )
