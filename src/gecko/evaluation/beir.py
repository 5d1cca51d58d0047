"""Test sets in the BEIR layout.

::

    NAME/corpus.jsonl       {"_id": ..., "title": ..., "text": ...} a line
    NAME/queries.jsonl      {"_id": ..., "text": ...} a line
    NAME/qrels/SPLIT.tsv    query, document, grade; see ``qrels.py``
"""

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gecko.core.arguments import spec_of
from gecko.core.errors import EvaluationError
from gecko.core.formats import DEFAULT_TASK
from gecko.core.records import Passage
from gecko.core.text import half_of_pair
from gecko.corpus.delimited import BadRow
from gecko.corpus.tables import json_rows, numbered_lines
from gecko.evaluation.qrels import read_qrels

DEFAULT_SPLIT = "test"
CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels"

# Appendix D of the paper; every other set is a search result.
TASKS = {
    "scifact": "fact checking",
    "nfcorpus": "fact checking",
    "nq": "question answering",
    "fiqa": "question answering",
    "fiqa2018": "question answering",  # mteb's name of it
    "msmarco": "question answering",
}
SYMMETRIC = {"quora", "quoraretrieval"}  # questions are looked for by questions


@dataclass(frozen=True)
class RetrievalSet:
    """Passages, queries and judgements.

    Attributes:
        name: the folder's name.
        split: which judgements.
        passages: the corpus, in file order.
        queries: (id, text) of the queries that have judgements, in file order.
        qrels: grade by query id and passage id, in the order of ``queries``; 0 is a judgement too.
        task: what the unified form tells the model.
        unknown_documents: judgements of documents the corpus lacks; they stay in ``qrels``, where they count against
            every ranking alike.
        unknown_queries: judged queries without a text; they are left out.
        symmetric: passages are of the queries' sort, and the unified form shows them as such.
        exclude_own: a passage with the query's own id is left out of its ranking, as in sets where queries are passages.
    """

    name: str
    split: str
    passages: list[Passage]
    queries: list[tuple[str, str]]
    qrels: dict[str, dict[str, int]]
    task: str = DEFAULT_TASK
    unknown_documents: int = 0
    unknown_queries: int = 0
    symmetric: bool = False
    exclude_own: bool = False

    @property
    def gaps(self) -> str:
        """What the judgements name and the set lacks, in words; empty: nothing."""
        return gaps(self.unknown_documents, self.unknown_queries)

    def asking(self, keys: Container[str]) -> "RetrievalSet":
        """The set with the queries of these ids alone, in file order."""
        queries = [query for query in self.queries if query[0] in keys]
        return replace(self, queries=queries, qrels={key: self.qrels[key] for key, _ in queries})


def gaps(documents: int, queries: int) -> str:
    """``4 judged documents missing, 6 queries without text``; empty where both are 0."""
    said = []
    if documents:
        said.append(f"{documents:,} judged document{'s' * (documents > 1)} missing")
    if queries:
        said.append(f"{queries:,} {'queries' if queries > 1 else 'query'} without text")
    return ", ".join(said)


def load_beir(spec: str | os.PathLike[str], split: str | None = None) -> RetrievalSet:
    """Read a BEIR folder.

    Args:
        spec: ``DIR`` or ``DIR@SPLIT``, as text or as a path.
        split: the split where ``spec`` names none; none: ``test``.

    Raises:
        EvaluationError: a file or the split is missing (those present are listed), a line is broken (file and number
            are given), or no query is judged.
    """
    folder, split = parse_spec(spec_of(spec, "test set"), split)
    if not folder.is_dir():
        raise EvaluationError(f"test set {folder} is not a folder; give DIR or DIR@SPLIT in the BEIR layout")
    if not (folder / QRELS).is_dir() and (below := sorted(path.parent for path in folder.glob("**/qrels/"))):
        raise EvaluationError(f"{folder} is no test set, but sets are below it: give {' '.join(map(str, below))}")
    _refuse_gaps(folder, split)
    passages = [
        Passage(
            id=key, title=_text(row, "title", place, default=""), text=_text(row, "text", place), source=folder.name
        )
        for key, row, place in _rows(folder / CORPUS)
    ]
    if not passages:
        raise EvaluationError(f"{folder / CORPUS} holds no passages")
    known = {passage.id for passage in passages}
    qrels = folder / QRELS / f"{split}.tsv"
    lines = ((line.rstrip("\r\n"), f"{qrels}:{number}") for number, line in _lines(qrels) if line.strip())
    judged = read_qrels(qrels, lines, {key for key, _, _ in _rows(folder / QUERIES)}, known)
    queries = [(key, _text(row, "text", place)) for key, row, place in _rows(folder / QUERIES) if key in judged]
    if not queries:
        raise EvaluationError(
            f"no query of {folder / QUERIES} is judged in {QRELS}/{split}.tsv; check that their ids match"
        )
    if not any(judged[key].keys() & known for key, _ in queries):
        raise EvaluationError(f"no document that {qrels} judges is in {folder / CORPUS}; check that their ids match")
    if not any(max(judged[key].values()) > 0 for key, _ in queries):
        raise EvaluationError(f"{qrels} calls no document relevant; at least one grade must be above 0")
    # In some sets, as in ArguAna, most queries are passages. Equal ids can be chance, so their texts must be equal.
    texts = {passage.id: passage.text.split() for passage in passages}
    own = sum(texts.get(key) == query.split() for key, query in queries)
    return judged_set(folder.resolve().name, split, passages, queries, judged, exclude_own=2 * own > len(queries))


def judged_set(
    name: str,
    split: str,
    passages: list[Passage],
    queries: list[tuple[str, str]],
    judged: Mapping[str, dict[str, int]],
    *,
    exclude_own: bool,
) -> RetrievalSet:
    """A set of that name; ``judged`` may name documents and queries that it lacks."""
    known = {passage.id for passage in passages}
    return RetrievalSet(
        name=name,
        split=split,
        passages=passages,
        queries=queries,
        qrels={key: judged[key] for key, _ in queries},
        task=TASKS.get(name.lower(), DEFAULT_TASK),
        unknown_documents=sum(document not in known for key, _ in queries for document in judged[key]),
        unknown_queries=len(judged) - len(queries),
        symmetric=name.lower() in SYMMETRIC,
        exclude_own=exclude_own,
    )


def parse_spec(spec: str, split: str | None) -> tuple[Path, str]:
    """Folder and split of ``DIR`` or ``DIR@SPLIT``; a split in the spec wins."""
    whole = Path(spec).expanduser()
    if "@" in spec and not whole.is_dir():
        name, _, named = spec.rpartition("@")
        return Path(name).expanduser(), named or split or DEFAULT_SPLIT
    return whole, split or DEFAULT_SPLIT


def is_beir(folder: Path) -> bool:
    """Whether a folder is in the BEIR layout, or is meant to be and lacks a part of it."""
    return (folder / QRELS).is_dir() or any(folder.glob(f"{CORPUS}*")) or any(folder.glob(f"{QUERIES}*"))


def _refuse_gaps(folder: Path, split: str) -> None:
    for name in (CORPUS, QUERIES, QRELS):
        if not (folder / name).exists():
            there = sorted(path.name for path in folder.iterdir())
            packed = [other for other in there if other.startswith(f"{name}.")]
            raise EvaluationError(
                f"{folder / name} is missing; a BEIR folder has {CORPUS}, {QUERIES} and {QRELS}/, and "
                + (f"there are {_named(there)}" if there else "the folder is empty")
                + (f"; unpack {packed[0]}" if packed else "")
            )
    if not (folder / QRELS / f"{split}.tsv").is_file():
        files = sorted((folder / QRELS).glob("*"))
        present = ", ".join(path.stem for path in files if path.suffix == ".tsv") or "none"
        others = [path.name for path in files if path.suffix != ".tsv"]
        raise EvaluationError(
            f"test set {folder} has no split {split!r}; it has: {present}"
            + (f"; judgements are read from SPLIT.tsv, and {QRELS}/ holds {_named(others)}" if others else "")
        )


def _named(names: Sequence[str]) -> str:
    """At most ten names."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of a file."""
    try:
        yield from numbered_lines(path)
    except FileNotFoundError:
        raise EvaluationError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read ({error}); it must be a UTF-8 text file") from error


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, value) of each line of a JSON-lines file.

    Raises EvaluationError: it cannot be read; the message names the line.
    """
    try:
        yield from json_rows(_lines(path))
    except BadRow as error:
        raise EvaluationError(f"{path}:{error.line}: {error.what}") from error


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(id, object, place) of each line of a JSON-lines file."""
    seen: set[str] = set()
    for number, row in json_lines(path):
        place = f"{path}:{number}"
        if not isinstance(row, dict) or "_id" not in row:
            there = f"an object with {_named(list(row)) or 'nothing'}" if isinstance(row, dict) else f"{row!r:.80}"
            raise EvaluationError(f'{place}: needs an object with an "_id", and is {there}')
        if not isinstance(row["_id"], str | int) or isinstance(row["_id"], bool):
            raise EvaluationError(f'{place}: the "_id" is {row["_id"]!r:.80}; write a string or a whole number')
        key = str(row["_id"])
        if half := half_of_pair(key):
            raise EvaluationError(f'{place}: the "_id" holds {half}')
        if key in seen:
            raise EvaluationError(f'{place}: "_id" {key!r} stands in the file twice; ids must be unique')
        seen.add(key)
        yield key, row, place


def _text(row: dict[str, Any], field: str, place: str, default: str | None = None) -> str:
    value = row.get(field)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise EvaluationError(f'{place}: "{field}" must be a string, not {value!r:.80}')
    if half := half_of_pair(value):
        raise EvaluationError(f"{place}: the {field} holds {half}")
    return value
