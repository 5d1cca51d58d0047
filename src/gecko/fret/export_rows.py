"""The rows of a run with their texts, in the form that another library's trainer reads: ``gecko export-rows``.

=====================  ====================================================================================================
sentence-transformers  ``anchor``, ``positive`` and the hard negatives, for a loss with in-batch negatives
cross-encoder          ``query``, ``passage`` and ``score`` on 0–1 of every judged pair, for binary cross-entropy
pylate                 ``query_id``, ``document_ids`` and ``scores`` of every judged query, and the texts in two files beside
=====================  ====================================================================================================

A score is the teacher's probability that the passage is relevant, from its RC log-odds or its grade. Each form has the file
``train.parquet`` and, of the queries that no model of the run was trained on, ``heldout.parquet``.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from gecko.core.arguments import one_of
from gecko.core.disk import disk_errors
from gecko.core.errors import ConfigError, RunError
from gecko.core.files import CARD, write_bytes, write_table
from gecko.core.records import Example, Passage, Query
from gecko.fret.view import RunView

Library = Literal["sentence-transformers", "cross-encoder", "pylate"]
_READ_ALL = """from datasets import load_dataset

rows = load_dataset("parquet", data_dir="{folder}", data_files="train.parquet", split="train")
"""


def export_rows(view: RunView, folder: Path, library: str) -> dict[str, int]:
    """Write the selected rows of a run for the trainer of a library (see above) into a new folder; their number by file.

    Raises ConfigError: there is no such library, or the folder is there already. RunError: the run has no rows.
    StorageError: the disk refuses it.
    """
    make = _FORMS[one_of("--for", library, get_args(Library))]
    if folder.exists():
        raise ConfigError(f"{folder} is there already; name a folder that is not")
    rows = view.run.read("select", Example)
    if not rows:
        raise RunError(f"{view.run.path}: no row was selected; lower select.min_rc, or raise the budget")
    # With a candidate of which nothing is known but its place.
    unknown = next((key for key, ranked in view.labels.items() if any(math.isnan(label.rc) for label in ranked)), "")
    if library != "sentence-transformers" and unknown:
        raise RunError(
            f"{view.run.path}: the teacher put the candidates of query {unknown} in order (relabel.judge=listwise) and says "
            f"of the first alone whether it is relevant, so there are no scores for {library}; take sentence-transformers"
        )
    tables = {name: table for name, table in make(view, rows).items() if table}
    with disk_errors(folder):
        folder.mkdir(parents=True)
    for name, table in tables.items():
        write_table(folder / f"{name}.parquet", pa.Table.from_pylist(table))
    counts = {name: len(table) for name, table in tables.items()}
    write_bytes(folder / CARD, _card(view, folder, library, counts).encode())
    return counts


def _triplets(view: RunView, rows: Sequence[Example]) -> dict[str, list[dict[str, Any]]]:
    """As many negatives as every row has; a trainer wants the same columns of all."""
    common = min(len(row.negatives) for row in rows)
    names = ["negative"] if common == 1 else [f"negative_{number}" for number in range(1, common + 1)]

    def triplet(query: str, positive: str, negatives: Iterable[str]) -> dict[str, str]:
        return {"anchor": query, "positive": positive} | dict(zip(names, negatives, strict=True))

    def content(identifier: str) -> str:
        return view.by_id[identifier].content

    heldout = [
        triplet(query.text, content(ranked[0].passage_id), (content(label.passage_id) for label in last))
        for query, ranked in _judged(view, view.heldout)
        if ranked[0].rc > 0 and len(last := ranked[len(ranked) - common :]) == common
    ]
    train = [triplet(row.query, _content(row.positive), map(_content, row.negatives[:common])) for row in rows]
    return {"train": train, "heldout": heldout}


def _pairs(view: RunView, rows: Sequence[Example]) -> dict[str, list[dict[str, Any]]]:
    def pairs(queries: Iterable[Query]) -> list[dict[str, Any]]:
        return [
            {"query": query.text, "passage": view.by_id[label.passage_id].content, "score": _probability(label.rc)}
            for query, ranked in _judged(view, queries)
            for label in ranked
        ]

    return {"train": pairs(_trained(view, rows)), "heldout": pairs(view.heldout)}


def _lists(view: RunView, rows: Sequence[Example]) -> dict[str, list[dict[str, Any]]]:
    passages: dict[str, Passage] = {}
    queries: dict[str, str] = {}

    def lists(chosen: Iterable[Query]) -> list[dict[str, Any]]:
        found = []
        for query, ranked in _judged(view, chosen):
            queries[query.id] = query.text
            passages.update({label.passage_id: view.by_id[label.passage_id] for label in ranked})
            identifiers = [label.passage_id for label in ranked]
            scores = [_probability(label.rc) for label in ranked]
            found.append({"query_id": query.id, "document_ids": identifiers, "scores": scores})
        return found

    tables = {"train": lists(_trained(view, rows)), "heldout": lists(view.heldout)}
    tables["queries"] = [{"query_id": identifier, "text": text} for identifier, text in queries.items()]
    tables["documents"] = [
        {"document_id": identifier, "text": passage.content} for identifier, passage in passages.items()
    ]
    return tables


_FORMS: Mapping[str, Callable[[RunView, Sequence[Example]], dict[str, list[dict[str, Any]]]]] = {
    "sentence-transformers": _triplets,
    "cross-encoder": _pairs,
    "pylate": _lists,
}


def _trained(view: RunView, rows: Sequence[Example]) -> list[Query]:
    """The queries that became a row."""
    chosen = {row.query_id for row in rows}
    return [query for query in view.queries if query.id in chosen]


def _judged(view: RunView, queries: Iterable[Query]) -> Iterable[tuple[Query, Any]]:
    """Each query with its candidates in fused order, those whose passage is in the corpus."""
    for query in queries:
        ranked = [label for label in view.labels.get(query.id, ()) if label.passage_id in view.by_id]
        if ranked:
            yield query, ranked


def _content(text: Any) -> str:
    return Passage(text.id, text.title, text.text).content


def _probability(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0


def _card(view: RunView, folder: Path, library: str, counts: Mapping[str, int]) -> str:
    files = "".join(f"| `{name}.parquet` | {count:,} |\n" for name, count in counts.items())
    return (
        f"# Rows for {library}\n\n"
        f"Written by `gecko export-rows` from a run over {len(view.passages):,} passages.\n"
        "Queries and scores are a language model's, without a human's check.\n"
        "The files hold the passages' texts: whoever passes them on needs the right to.\n\n"
        f"| file | rows |\n|---|---|\n{files}\n```python\n{_READ_ALL.format(folder=folder.name)}```\n"
    )
