"""Judgements: a file of them with tabs or spaces, with or without a header line.

::

    query-id  corpus-id  score          BEIR: three columns; a header that names them may name them in any order
    query     0          document  grade  TREC: four columns, the second of which says nothing

The first line says which: its columns, what is between them, and whether it is a header. A first line is a judgement where
its grade is a number, or where it names a query or a document of the set.
"""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from gecko.core.errors import EvaluationError

Qrels = dict[str, dict[str, int]]

GREATEST = 1_000_000  # trec_eval keeps a counter for each grade
_NAMES = {  # a column's names, in lower case, letters alone
    "query": {"query", "queryid", "qid", "topic", "topicid"},
    "document": {
        "corpus",
        "corpusid",
        "doc",
        "docid",
        "docno",
        "document",
        "documentid",
        "passage",
        "passageid",
        "pid",
    },
    "grade": {"score", "grade", "rel", "relevance", "label", "judgement", "judgment", "rating"},
}
_USUAL = {3: (0, 1, 2), 4: (0, 2, 3)}  # places of query, document and grade


def read_qrels(
    path: Path, lines: Iterable[tuple[str, str]], queries: Collection[str], documents: Collection[str]
) -> Qrels:
    """The grades of a file by query and document, from its lines that are not blank, each with its place.

    ``queries`` and ``documents`` are the ids of the set's. Raises EvaluationError: a line has another number of columns
    than the first, a grade is no whole number, a document has two grades for one query, or there is no judgement.
    """
    judged: Qrels = {}
    first: dict[tuple[str, str], str] = {}
    columns: tuple[int, ...] | None = None
    tabs, width = True, 3
    for line, place in lines:
        header = columns is None
        if header:
            tabs = "\t" in line
        cells = [cell.strip() for cell in line.split("\t")] if tabs else line.split()
        if columns is None:
            width = len(cells)
            columns = _named(cells, place) or _USUAL.get(width)
        if columns is None or len(cells) != width:
            needed = f"the {width} of the first line" if columns else "query, document and grade, or TREC's four"
            between = "tabs" if tabs else "spaces"
            raise EvaluationError(f"{place}: {len(cells)} columns with {between} between them; needs {needed}")
        query, document, written = (cells[column] for column in columns)
        if header and not _is_number(written) and query not in queries and document not in documents:
            continue
        grade = _grade(written, place)
        if judged.setdefault(query, {}).setdefault(document, grade) != grade:
            raise EvaluationError(
                f"{place}: document {document!r} has another grade for query {query!r} further up, "
                f"{judged[query][document]} at {first[query, document]}; keep one of the two lines"
            )
        first.setdefault((query, document), place)
    if not judged:
        raise EvaluationError(f"{path} holds no judgement; each line is a query, a document and a grade")
    return judged


def _named(cells: Sequence[str], place: str) -> tuple[int, ...] | None:
    """Where a header that names its columns has query, document and grade; none: they are where they usually are."""
    plain = [re.sub(r"[^a-z]", "", cell.lower()) for cell in cells]
    found = [[number for number, name in enumerate(plain) if name in names] for names in _NAMES.values()]
    if all(len(places) == 1 for places in found):
        return tuple(places[0] for places in found)
    usual = _USUAL.get(len(cells), (0, 1, 2))
    if sum(map(bool, found)) > 1 and any(places and places != [at] for places, at in zip(found, usual, strict=True)):
        raise EvaluationError(
            f"{place}: the header is {', '.join(cells)}; call its columns query-id, corpus-id and score"
        )
    return None


def _is_number(written: str) -> bool:
    try:
        float(written.replace(",", "."))
    except ValueError:
        return False
    return True


def _grade(written: str, place: str) -> int:
    value = float(written) if _is_number(written) and "," not in written else math.nan
    if not value.is_integer():
        mend = "multiply all grades of the file, so that each is whole" if math.isfinite(value) else "write 0, 1, 2, …"
        raise EvaluationError(f"{place}: grade {written!r} is not a whole number; {mend}")
    if abs(value) > GREATEST:
        raise EvaluationError(f"{place}: grade {written!r} is beyond {GREATEST:,}; write smaller ones")
    return int(value)
