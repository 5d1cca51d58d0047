"""The records that stages hand to each other: one dataclass and one Arrow schema each, declared here and nowhere else.

=========  ==========================================================================================
Passage    what the corpus holds
Query      what the teacher wrote for one passage, its seed (Section 3.2 of the paper, step 1), or what somebody asked
Candidate  one of the N passages that the initial embedder ranks first for a query
Score      what the teacher says of one (query, candidate): query likelihood and relevance
Grade      what a teacher that can only answer says of one (query, candidate): a grade from 0 to 3
Place      where such a teacher puts one candidate among all of its query's, asked twice
Example    one training row, raw: only ``formats.py`` turns it into the text an encoder reads
=========  ==========================================================================================
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar, get_type_hints

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage of the corpus; ``id`` is unique in a run, ``title`` may be empty, ``source`` names its origin."""

    id: str
    title: str
    text: str
    source: str = ""

    @property
    def content(self) -> str:
        """Title and text as one string: what a reader without a title field (a teacher, a plain embedder) is shown."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class Query:
    """A generated task and query; ``split`` is ``train``, or ``heldout`` for the agreement test.

    Of a query that somebody asked, ``seed_id`` and ``llm`` are empty.
    """

    id: str
    task: str
    text: str
    seed_id: str
    llm: str
    split: str = "train"

    @property
    def asked(self) -> bool:
        """Whether it was written for no passage."""
        return not self.seed_id


@dataclass(frozen=True, slots=True)
class Candidate:
    """Passage ``passage_id`` at place ``rank`` (from 1) of ``query_id``; ``score`` is the embedder's cosine.

    ``natural`` is False for a seed that was not retrieved and was given the last place.
    """

    query_id: str
    passage_id: str
    rank: int
    score: float
    natural: bool = True


@dataclass(frozen=True, slots=True)
class _OfPair:
    """What is said of one candidate of a query, by whom; ``prompt_hash`` is that of the prompts that were used."""

    query_id: str
    passage_id: str
    teacher: str
    prompt_hash: str


@dataclass(frozen=True, slots=True)
class Score(_OfPair):
    """What one teacher says of one pair. Natural logarithms.

    Attributes:
        ql_sum: log-probability of the query's tokens given the passage, summed; ``ql_tokens`` is their number.
        rc: log-odds of "relevant" against "not relevant".
    """

    ql_sum: float
    ql_tokens: int
    rc: float


@dataclass(frozen=True, slots=True)
class Grade(_OfPair):
    """What one teacher answers about one pair: ``grade`` from 0 (of another subject) to 3 (answers the query in full)."""

    grade: int


@dataclass(frozen=True, slots=True)
class Place(_OfPair):
    """Where one teacher puts a candidate among those of its query.

    Attributes:
        first: its place from 1 where the candidates were shown in the retriever's order.
        second: its place where they were shown the other way round.
        relevant: what the teacher answers about this pair alone; it is asked for the first by mean place, else None.
    """

    first: int
    second: int
    relevant: bool | None = None


Judged = Score | Grade | Place  # one candidate of one query, judged in one of three forms
Pair = TypeVar("Pair", bound="Candidate | Judged")


def by_query(rows: Iterable[Pair]) -> dict[str, list[Pair]]:
    """The rows of each query, in order."""
    found: dict[str, list[Pair]] = {}
    for row in rows:
        found.setdefault(row.query_id, []).append(row)
    return found


@dataclass(frozen=True, slots=True)
class Text:
    """A passage inside a training row, without its source; ``id`` identifies equal texts in a batch."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Example:
    """One training row in the unified format's raw parts (Section 3.3 of the paper).

    Attributes:
        dataset: the set the row came from; batches are drawn from one set at a time where that is asked for.
        task: the task description, free-form.
        query: the query's text.
        positive: the passage that should rank first.
        negatives: hard negatives, the hardest use first; may be empty.
        symmetric: both sides are queries (similarity, classification).
        group: rows of one group never serve as each other's negatives (the positive's id, or a class).
        weight: the row's weight in the loss.
        query_id: the query this row was made from.
        seed_id: the passage the query was written for; empty for one that somebody asked.
        candidates: ids of the passages that were scored, in the fused order, first to last.
        fused: what the teacher's listwise target is made of, in the same order: the fused scores, or what
            ``select.targets`` names.
    """

    dataset: str
    task: str
    query: str
    positive: Text
    negatives: tuple[Text, ...] = ()
    symmetric: bool = False
    group: str = ""
    weight: float = 1.0
    query_id: str = ""
    seed_id: str = ""
    candidates: tuple[str, ...] = ()
    fused: tuple[float, ...] = ()


_TEXT = pa.struct([("id", pa.string()), ("title", pa.string()), ("text", pa.string())])
_ARROW: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int32(),
    float: pa.float64(),
    bool: pa.bool_(),
    bool | None: pa.bool_(),
    Text: _TEXT,
    tuple[Text, ...]: pa.list_(_TEXT),
    tuple[str, ...]: pa.list_(pa.string()),
    tuple[float, ...]: pa.list_(pa.float64()),
}


def _schema(kind: type, **narrower: pa.DataType) -> pa.Schema:
    return pa.schema([(name, narrower.get(name, _ARROW[hint])) for name, hint in get_type_hints(kind).items()])


SCHEMAS: dict[type, pa.Schema] = {
    **{kind: _schema(kind) for kind in (Passage, Query, Score, Grade, Place)},
    Candidate: _schema(Candidate, score=pa.float32()),
    Example: _schema(Example, weight=pa.float32()),
}

R = TypeVar("R")


def to_table(kind: type, rows: Sequence[Any]) -> pa.Table:
    """Records of one kind as an Arrow table with that kind's schema."""
    schema = SCHEMAS[kind]
    if kind is Example:  # records within a record
        return pa.Table.from_pylist([asdict(row) for row in rows], schema=schema)
    return pa.Table.from_pydict({name: [getattr(row, name) for row in rows] for name in schema.names}, schema=schema)


def from_table(kind: type[R], table: pa.Table) -> Iterable[R]:
    """The records of an Arrow table made by :func:`to_table`."""
    rows = table.to_pylist()
    if kind is Example:
        return (_example(row) for row in rows)  # type: ignore[misc]
    return (kind(**row) for row in rows)


def _example(values: dict[str, Any]) -> Example:
    values["positive"] = Text(**values["positive"])
    values["negatives"] = tuple(Text(**text) for text in values["negatives"])
    values["candidates"] = tuple(values["candidates"])
    values["fused"] = tuple(values["fused"])
    return Example(**values)
