"""Queries that people asked, without labels: judged and taught as those that the teacher writes.

::

    asked.sources ─read_asked─▶ RUN/asked ─┐
    seeds ────────generate────▶ RUN/generate ─┴─▶ mine ─▶ relabel ─▶ select

They have no seed (``Query.asked``). Nothing else differs: the start model finds their candidates, the teacher scores these,
and the fused order chooses positive and negative; one to which the teacher finds no passage relevant is dropped by
``select.min_rc``. The paper has no such step.

Their order is by a hash of the text, so whatever of them a budget or ``asked.limit`` takes is a random draw, and more of
them begin with fewer.
"""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from gecko.config import AskedConfig
from gecko.errors import TrainingError
from gecko.records import Query
from gecko.store import digest, file_sha256
from gecko.training.tables import Row, read_rows, source_identity, text_of
from gecko.work import Counts

LINES = (".txt", ".txt.gz")
FIELDS = ("query", "question", "text")
MAX_CHARS = 1000
NAME = "asked"


def likeness(query: str) -> str:
    """What two queries share that differ in case, white space and the mark at the end alone."""
    return " ".join(query.split()).casefold().rstrip(" .?!")


def asked_identity(config: AskedConfig) -> str:
    """A hash of what the sources hold.

    Raises:
        TrainingError: one is missing.
    """
    return digest(*(_source_identity(spec) for spec in config.sources))


def read_asked(config: AskedConfig, heldout: float, heldout_max: int, seed: int, counts: Counts) -> list[Query]:
    """The queries of all sources, each once, in the order in which they are to be judged.

    White space within a query counts as one space. What has no letter or digit, is longer than 1,000 characters or differs
    from an earlier one in case and the mark at its end alone is dropped and counted.

    Args:
        config: where they are.
        heldout: share that is kept for the agreement test; which ones is decided by their text.
        heldout_max: at most so many of them.
        seed: of the run.
        counts: gets the drops.

    Raises:
        TrainingError: a source is missing, empty, of another kind, or not readable at some row.
    """
    found: dict[str, str] = {}
    for text in _texts(config):
        query = " ".join(text.split())
        same = likeness(query)
        if not re.search(r"[^\W_]", query):
            counts.drop("no letter or digit", query)
        elif len(query) > MAX_CHARS:
            counts.drop(f"longer than {MAX_CHARS:,} characters", query)
        elif same in found:
            counts.drop("asked before", query)
        else:
            found[same] = query
    order = sorted(found.values(), key=lambda query: digest(str(seed), query))
    if len(order) > config.limit:
        counts.drops[f"more than {config.limit:,}"] += len(order) - config.limit
    queries = []
    for query in order[: config.limit]:
        held = heldout_max > 0 and int(digest("heldout", str(seed), query)[:8], 16) < heldout * 2**32
        heldout_max -= held
        identifier = f"a-{digest(query)[:12]}"
        queries.append(Query(identifier, config.task, query, "", "", "heldout" if held else "train"))
    return queries


def _source_identity(spec: str) -> str:
    file = _lines_file(spec)
    return file_sha256(file) if file else source_identity(NAME, spec)


def _texts(config: AskedConfig) -> Iterator[str]:
    for spec in config.sources:
        if file := _lines_file(spec):
            yield from _lines(file)
            continue
        for place, row in read_rows(NAME, spec):
            yield text_of(row, _field(row, config.field, place), place)


def _lines_file(spec: str) -> Path | None:
    path = Path(spec).expanduser()
    if path.is_dir():  # it may well hold a corpus
        raise TrainingError(f"{NAME}: {spec} is a folder; name the file with the queries in it")
    return path if path.name.endswith(LINES) and path.is_file() else None


def _lines(path: Path) -> Iterator[str]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as handle:
            for line in handle:
                number += 1
                if text := line.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                    yield text
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TrainingError(f"{NAME}: line {number} of {path} cannot be read ({error}); mend the file") from error


def _field(row: Row, wanted: str | None, place: str) -> str:
    for name in (wanted,) if wanted else FIELDS:
        if name in row:
            return name
    raise TrainingError(
        f"{place}: no column {wanted or ', '.join(FIELDS)}, and there are {', '.join(map(str, row))}; name the one with the "
        "queries in asked.field"
    )
