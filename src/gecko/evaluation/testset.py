"""A test set without labels: pooled candidates, graded by a teacher, in the BEIR layout (:mod:`gecko.evaluation.beir`).

::

    OUT/corpus.jsonl, queries.jsonl, qrels/test.tsv    as any BEIR set; a judgement of grade 0 is written, too
    OUT/unanswered.jsonl                               queries for which the teacher finds no pooled passage relevant
    OUT/judgements.parquet                             what the teacher said of every pair, for other cuts
    OUT/README.md                                      the numbers and what they cannot say

Pooling is TREC's (Sparck Jones and van Rijsbergen 1975): the union of the first passages of several rankings is judged.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gecko.core.disk import disk_errors
from gecko.core.errors import ConfigError, EvaluationError
from gecko.core.files import CARD, made_aside, write_bytes, write_table
from gecko.core.records import Grade, Passage, Query, Score, to_table
from gecko.evaluation.beir import CORPUS, DEFAULT_SPLIT, QRELS, QUERIES

UNANSWERED, JUDGEMENTS = "unanswered.jsonl", "judgements.parquet"
CUTS = (0.5, 0.75, 0.9)  # the probability of "relevant" from which on a pair has grade 1, 2, 3
Rankings = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Judged:
    """Queries with the teacher's grades of their pool: those that a passage answers, and those that none of it does.

    ``grades`` has the grade by query and passage id. ``refused`` pairs were pooled and not judged. ``systems`` are what
    was pooled, each with the number of relevant pairs that it alone found.
    """

    queries: list[Query]
    unanswered: list[Query]
    grades: dict[str, dict[str, int]]
    refused: int
    systems: dict[str, int]

    @property
    def pairs(self) -> int:
        """Judged pairs of the queries that are answered."""
        return sum(map(len, self.grades.values()))


def pool(rankings: Rankings, depth: int) -> dict[str, list[str]]:
    """The first ``depth`` passages of every ranking, by query id; each passage once, in the order of the rankings.

    Rankings are by system and query id: score by passage id, best first. Raises ConfigError: no query has more than one
    candidate.
    """
    pooled: dict[str, dict[str, None]] = {}
    for by_query in rankings.values():
        for query, ranked in by_query.items():
            pooled.setdefault(query, {}).update(dict.fromkeys(list(ranked)[:depth]))
    if all(len(found) < 2 for found in pooled.values()):
        raise ConfigError(
            f"pooled {depth} deep from {', '.join(rankings)}, no query has more than one candidate, so all models would "
            "score alike; pool deeper (--depth), or give a larger corpus"
        )
    return {query: list(found) for query, found in pooled.items()}


def grade(said: Score | Grade) -> int:
    """The grade of a pair: how many of ``CUTS`` its probability exceeds; of answered grades, those above "on the subject"."""
    if isinstance(said, Grade):
        return max(0, said.grade - 1)
    return sum(said.rc > math.log(cut / (1 - cut)) for cut in CUTS)


def judged(
    queries: Sequence[Query],
    pooled: Mapping[str, Sequence[str]],
    scores: Sequence[Score | Grade],
    rankings: Rankings,
    depth: int,
) -> Judged:
    """Grades of the pairs of :func:`pool`, from what the teacher said of them.

    Raises EvaluationError: no query has a relevant passage.
    """
    said: dict[str, dict[str, int]] = {query.id: {} for query in queries}
    for score in scores:
        said[score.query_id][score.passage_id] = grade(score)
    answered = [query for query in queries if any(said[query.id].values())]
    if not answered:
        raise EvaluationError(
            f"the teacher finds no pooled passage relevant for any of {len(queries):,} queries, so there is no test set; "
            "take queries that the corpus answers, another teacher, or pool deeper (--depth); its judgements are kept"
        )
    grades = {
        query.id: {key: said[query.id][key] for key in pooled[query.id] if key in said[query.id]} for query in answered
    }
    alone = Counter[str](dict.fromkeys(rankings, 0))
    for query_id, row in grades.items():
        for passage in (key for key, value in row.items() if value):
            finders = [name for name, found in rankings.items() if passage in list(found.get(query_id, {}))[:depth]]
            alone.update(finders if len(finders) == 1 else ())
    return Judged(
        queries=answered,
        unanswered=[query for query in queries if not any(said[query.id].values())],
        grades=grades,
        refused=sum(map(len, pooled.values())) - len(scores),
        systems=dict(alone),
    )


def write_testset(
    folder: Path, passages: Sequence[Passage], found: Judged, scores: Sequence[Score | Grade], about: Sequence[str]
) -> None:
    """Write the folder, which is not there yet, whole or not at all.

    ``about`` has the lines of the card on where queries, teacher and rankings come from. Raises EvaluationError: an id
    cannot stand in a file of judgements. StorageError: the disk refuses it.
    """
    for identifier in {key for row in found.grades.values() for key in row} | found.grades.keys():
        if identifier != identifier.strip() or any(mark in identifier for mark in "\t\n\r") or not identifier:
            raise EvaluationError(
                f"the id {identifier!r} has white space that a file of judgements cannot hold; give the passage another id"
            )
    with disk_errors(folder), made_aside(folder) as aside:
        rows = ({"_id": one.id, "title": one.title, "text": one.text} for one in passages)
        _write_lines(aside / CORPUS, [json.dumps(row, ensure_ascii=False) for row in rows])
        for name, queries in ((QUERIES, found.queries), (UNANSWERED, found.unanswered)):
            lines = [json.dumps({"_id": one.id, "text": one.text}, ensure_ascii=False) for one in queries]
            _write_lines(aside / name, lines)
        pairs = [f"{query}\t{key}\t{value}" for query, row in found.grades.items() for key, value in row.items()]
        _write_lines(aside / QRELS / f"{DEFAULT_SPLIT}.tsv", ["query-id\tcorpus-id\tscore", *pairs])
        write_table(aside / JUDGEMENTS, to_table(type(scores[0]), scores))
        write_bytes(aside / CARD, _card(folder.absolute().name, len(passages), found, about).encode())


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))


_CAVEATS = f"""\
- The judgements are a language model's, and no human has checked them.
- If this teacher also taught a model, the set may flatter that model: both share the teacher's mistakes.
- A passage outside the pool counts as not relevant.
  A model that was not pooled can find relevant passages that nobody judged; add it with `--model` before you compare it.
- Queries without a relevant passage in the pool are left out.
  A relevant passage that no pooled model found would change that, so the set cannot show what all of them miss.
- Grades are cuts of the teacher's probability ({", ".join(f"{value} above {cut:g}" for value, cut in enumerate(CUTS, 1))}).
  Another teacher's probabilities have another scale; `{JUDGEMENTS}` has the log-odds for other cuts.
- Trust the sign of a difference more than its size, and check a sample by hand before a decision depends on it."""


def _card(name: str, passages: int, found: Judged, about: Sequence[str]) -> str:
    graded = Counter(value for row in found.grades.values() for value in row.values())
    counts = [
        ("passages", passages),
        ("queries", len(found.queries)),
        ("queries that no pooled passage answers", len(found.unanswered)),
        ("judged pairs", found.pairs),
        *((f"pairs of grade {value}", graded[value]) for value in range(len(CUTS) + 1)),
        ("pairs that the teacher did not judge", found.refused),
    ]
    table = "".join(f"| {what} | {count:,} |\n" for what, count in counts)
    systems = "".join(f"| {label} | {count:,} |\n" for label, count in found.systems.items())
    return (
        f"# {name}: a test set judged by a language model\n\nWritten by `gecko testset`, in the BEIR layout.\n"
        + "".join(f"{line}\n" for line in about)
        + f"\n| | |\n|---|---|\n{table}\n| pooled ranking | relevant pairs that it alone found |\n|---|---|\n{systems}\n"
        f"## What it cannot say\n\n{_CAVEATS}\n"
    )
