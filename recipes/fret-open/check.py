"""Check a FRet-open data set: ``python recipes/fret-open/check.py data/fret-open --tests FOLDER_OF_TEST_SETS``.

Each line of what is printed is a check that holds; the first that does not is an error.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))

from packages import is_allowed
from release import SCHEMA, SPLITS, content
from testsets import TestTexts, read_tests, repeated

from gecko.core.errors import GeckoError, RunError
from gecko.core.files import CARD, file_sha256, read_json
from gecko.core.records import Candidate, Score
from gecko.fret.fuse import fuse

LARGEST = 40_000_000  # bytes of all files
SCORES = ("cosine", "ql_sum", "rc", "fused")


def check(folder: Path, tests: TestTexts) -> Iterator[str]:
    """Check a data set; yields what holds, in words.

    Args:
        folder: of the data set.
        tests: texts that no query may nearly be.

    Raises:
        RunError: something does not hold; the message names the file and the row.
    """
    rows = dict(_read(folder))
    yield f"hashes and schema: {len(rows)} files"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    _need(size <= LARGEST, f"{folder} has {size:,} bytes, more than {LARGEST:,}: ship ids and scores, or fewer rows")
    yield f"size: {size / 1e6:.1f} MB"
    everything = [(name, row) for name, part in rows.items() for row in part]
    _need(bool(everything), f"{folder} holds no row")
    ids = [row["query_id"] for _, row in everything]
    _need(len(set(ids)) == len(ids), "two rows have the same query_id")
    texts: dict[str, str] = {}
    for name, row in everything:
        _check_row(f"{name}: {row['query_id']}", name.partition("/")[0], row, texts)
    yield f"scores, order, texts and licences: {len(everything):,} rows, {len(texts):,} passages"
    held = {row["seed_id"] for name, row in everything if name.startswith("heldout")}
    both = {row["seed_id"] for name, row in everything if not name.startswith("heldout")} & held
    _need(not both, f"the seed {min(both, default='')} is held out and trained on")
    yield f"held-out seeds: {len(held):,}, none of them in another split"
    near = repeated([row["query"] for _, row in everything], tests)
    found = [row["query"] for (_, row), reason in zip(everything, near, strict=True) if reason == "near a test set"]
    _need(not found, f"{len(found)} queries are nearly those of a test set, such as {found[0] if found else ''!r}")
    yield f"test sets: no query is nearly one of {len(tests.texts):,} texts of {', '.join(tests.names)}"
    _need((folder / CARD).is_file(), f"{folder} has no {CARD}")


def _read(folder: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    listed: set[str] = set()
    for path in sorted((folder / "corpora").glob("*.json")):
        facts = read_json(path)
        for name, sha256 in facts["files"].items():
            file = folder / name
            _need(file.is_file() and file_sha256(file) == sha256, f"{file} is missing or is not what {path} says")
            table = pq.read_table(file)
            _need(table.schema.equals(SCHEMA), f"{file} has other columns than a data set of this version")
            split = name.partition("/")[0]
            _need(
                table.num_rows == facts["rows"][split], f"{file} has {table.num_rows} rows, not {facts['rows'][split]}"
            )
            listed.add(name)
            yield name, table.to_pylist()
    there = {path.relative_to(folder).as_posix() for split in SPLITS for path in (folder / split).glob("*.parquet")}
    _need(there == listed, f"{folder}: no file of corpora/ speaks of {', '.join(sorted(there - listed))}")


def _check_row(place: str, split: str, row: dict[str, Any], texts: dict[str, str]) -> None:
    listed = row["candidates"]
    _need(bool(row["query"].strip()) and len(listed) > 1, f"{place} has no query, or fewer than two candidates")
    ids = [one["passage_id"] for one in listed]
    _need(len(set(ids)) == len(ids), f"{place} has a candidate twice")
    _need(row["seed_id"] in ids, f"{place}: its seed is not among the candidates")
    for one in listed:
        _need(all(math.isfinite(one[name]) for name in SCORES), f"{place}: a score of {one['passage_id']} is no number")
        _need(one["ql_sum"] <= 0 < one["ql_tokens"], f"{place}: {one['passage_id']} has no log-likelihood")
        _need(is_allowed(one["licence"]), f"{place}: {one['passage_id']} has the licence {one['licence']!r}")
        _need(bool(one["source"]), f"{place}: {one['passage_id']} has no source")
        known = texts.setdefault(one["passage_id"], content(one))
        _need(known == content(one), f"{place}: {one['passage_id']} reads otherwise in another row")
    _need([one["fused_rank"] for one in listed] == list(range(1, len(listed) + 1)), f"{place}: ranks are not 1, 2, 3 …")
    _need(_order(row) == ids, f"{place}: the candidates are not in the order of their scores")
    _need(row["positive"] == content(listed[0]) and row["negative"] == content(listed[-1]), f"{place}: other texts")
    _need(bool(row["reason"]) == (split == "dropped"), f"{place}: reason = {row['reason']!r}")


def _order(row: dict[str, Any]) -> list[str]:
    """The candidates' ids in the order that their scores give."""
    query, listed = row["query_id"], row["candidates"]
    candidates = [Candidate(query, one["passage_id"], one["cosine_rank"], one["cosine"]) for one in listed]
    scores = {
        one["passage_id"]: Score(query, one["passage_id"], "", "", one["ql_sum"], one["ql_tokens"], one["rc"])
        for one in listed
    }
    return [label.passage_id for label in fuse(candidates, scores)]


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RunError(otherwise)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tests", action="append", type=Path, default=[], metavar="FOLDER", help="test sets below it")
    options = parser.parse_args(arguments)
    for said in check(options.folder, read_tests(options.tests)):
        print(said)


if __name__ == "__main__":
    try:
        main()
    except GeckoError as failure:
        raise SystemExit(f"error: {failure}") from None
