"""Test data that ships with the package: questions on the standard library, and the reranking probe.

Both were written for this project and never by the teacher, and no stage but ``evaluate`` (the probe:
the teacher check) reads them.
"""

import json
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from gecko.core.files import digest
from gecko.core.records import Passage
from gecko.corpus.stdlib import read_stdlib
from gecko.evaluation.beir import RetrievalSet

STDLIB_QUESTIONS = "stdlib-questions"
PROBE_RESULTS = "probe-results.json"


def stdlib_questions() -> RetrievalSet:
    """460 questions as people ask them, over the documentation of the running Python's standard library.

    Half of them share no stemmed content word with the title of the passage they were written for. Grades: 2 answers
    the question, 1 helps. Judgements of passages that this Python does not have are left out and counted; a question
    without any passage of grade 2 left is left out and counted, too.
    """
    passages = list(read_stdlib())
    known = {passage.id for passage in passages}
    queries: list[tuple[str, str]] = []
    qrels: dict[str, dict[str, int]] = {}
    missing = left_out = 0
    for row in _rows("stdlib-questions.jsonl"):
        grades = {key: grade for key, grade in row["qrels"].items() if key in known}
        missing += len(row["qrels"]) - len(grades)
        if 2 not in grades.values():
            left_out += 1
            continue
        queries.append((row["id"], row["text"]))
        qrels[row["id"]] = grades
    return RetrievalSet(
        name=STDLIB_QUESTIONS,
        split="test",
        passages=passages,
        queries=queries,
        qrels=qrels,
        task="question answering",
        unknown_documents=missing,
        unknown_queries=left_out,
    )


def probe() -> list[RetrievalSet]:
    """The reranking probe: ten subjects, each with 20 passages, six queries and a grade for every pair (0 unless listed)."""
    return [
        RetrievalSet(
            name=row["topic"],
            split="test",
            passages=[Passage(source="probe", **passage) for passage in row["passages"]],
            queries=[(query["id"], query["text"]) for query in row["queries"]],
            qrels={query["id"]: query["qrels"] for query in row["queries"]},
            task="",
        )
        for row in _rows("probe.jsonl")
    ]


def probe_results() -> dict[str, dict[str, Any]]:
    """Results of the probe that ship with the package, by a hash of what each depends on."""
    found: dict[str, dict[str, Any]] = json.loads(_file(PROBE_RESULTS).read_text(encoding="utf-8"))
    return found


def data_hash(name: str) -> str:
    """Hash of a shipped file, for fingerprints."""
    return digest(_file(name).read_bytes())


def _rows(name: str) -> Iterator[Any]:
    with _file(name).open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _file(name: str) -> Traversable:
    return files("gecko.evaluation").joinpath("data", name)
