"""Test sets in the BEIR layout.

::

    NAME/corpus.jsonl       {"_id": ..., "title": ..., "text": ...} a line
    NAME/queries.jsonl      {"_id": ..., "text": ...} a line
    NAME/qrels/SPLIT.tsv    query, document, grade; with or without a header line
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gecko.errors import EvaluationError
from gecko.formats import DEFAULT_TASK
from gecko.given import spec_of
from gecko.records import Passage

DEFAULT_SPLIT = "test"

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
    judged = _read_qrels(folder, split)
    passages = [
        Passage(
            id=key, title=_text(row, "title", place, default=""), text=_text(row, "text", place), source=folder.name
        )
        for key, row, place in _rows(folder / "corpus.jsonl")
    ]
    queries = [(key, _text(row, "text", place)) for key, row, place in _rows(folder / "queries.jsonl") if key in judged]
    if not passages:
        raise EvaluationError(f"{folder / 'corpus.jsonl'} holds no passages")
    if not queries:
        raise EvaluationError(
            f"no query of {folder / 'queries.jsonl'} is judged in qrels/{split}.tsv; check that their ids match"
        )
    known = {passage.id for passage in passages}
    return RetrievalSet(
        name=folder.resolve().name,
        split=split,
        passages=passages,
        queries=queries,
        qrels={key: judged[key] for key, _ in queries},
        task=TASKS.get(folder.resolve().name.lower(), DEFAULT_TASK),
        unknown_documents=sum(document not in known for key, _ in queries for document in judged[key]),
        unknown_queries=len(judged) - len(queries),
        symmetric=folder.resolve().name.lower() in SYMMETRIC,
        exclude_own=_are_passages(queries, passages),
    )


def _are_passages(queries: Sequence[tuple[str, str]], passages: Sequence[Passage]) -> bool:
    """Whether most queries are passages of the set, as in ArguAna: equal ids can be chance, so their texts must be equal."""
    texts = {passage.id: passage.text.split() for passage in passages}
    return 2 * sum(texts.get(key) == query.split() for key, query in queries) > len(queries)


def parse_spec(spec: str, split: str | None) -> tuple[Path, str]:
    """Folder and split of ``DIR`` or ``DIR@SPLIT``; a split in the spec wins."""
    whole = Path(spec).expanduser()
    if "@" in spec and not whole.is_dir():
        name, _, named = spec.rpartition("@")
        return Path(name).expanduser(), named or split or DEFAULT_SPLIT
    return whole, split or DEFAULT_SPLIT


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(line, ``file:number``) of each line that is not blank."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as handle:
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    yield line.rstrip("\r\n"), f"{path}:{number}"
    except FileNotFoundError:
        raise EvaluationError(f"{path} is missing; a BEIR folder has corpus.jsonl, queries.jsonl and qrels/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read ({error}); it must be a UTF-8 text file") from error


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(id, object, place) of each line of a JSON-lines file."""
    seen: set[str] = set()
    for line, place in _lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise EvaluationError(f"{place}: not valid JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get("_id"), str | int):
            raise EvaluationError(f'{place}: needs an object with an "_id"')
        key = str(row["_id"])
        if key in seen:
            raise EvaluationError(f'{place}: "_id" {key!r} stands in the file twice; ids must be unique')
        seen.add(key)
        yield key, row, place


def _text(row: dict[str, Any], field: str, place: str, default: str | None = None) -> str:
    value = row.get(field)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise EvaluationError(f'{place}: "{field}" must be a string, not {value!r}')
    return value


def _read_qrels(folder: Path, split: str) -> dict[str, dict[str, int]]:
    path = folder / "qrels" / f"{split}.tsv"
    if not path.is_file():
        present = ", ".join(sorted(file.stem for file in (folder / "qrels").glob("*.tsv"))) or "none"
        raise EvaluationError(f"test set {folder} has no split {split!r}; it has: {present}")
    judged: dict[str, dict[str, int]] = {}
    for index, (line, place) in enumerate(_lines(path)):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != 3:
            raise EvaluationError(
                f"{place}: {len(cells)} columns; needs query, document and grade with tabs between them"
            )
        query, document, written = cells
        try:
            grade = int(written)
        except ValueError:
            if index == 0:  # the header
                continue
            raise EvaluationError(f"{place}: grade {written!r} is not a whole number") from None
        if judged.setdefault(query, {}).setdefault(document, grade) != grade:
            raise EvaluationError(f"{place}: document {document!r} has another grade for query {query!r} further up")
    return judged
