"""A page to read a release by: search, filter by corpus and kind, and each row's candidates in both orders.

One HTML file that fetches nothing. The rows are data in it, written where no markup can be read, and shown as text alone.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gecko.config.stages import CorpusConfig
from gecko.core.counts import Counts
from gecko.core.errors import RunError
from gecko.core.files import digest, write_bytes
from gecko.core.records import Candidate
from gecko.core.text import shown
from gecko.corpus import ingest
from gecko.fret.fuse import fuse
from gecko.fret.quality import kind
from gecko.fret.release import FILE, judged_pair, read_release, shipped
from gecko.report.text import render

NEEDED = frozenset({"query_id", "query", "task", "seed_id", "candidates"})
MISSING = "(the passage is not part of the release)"


def is_release(spec: Path) -> bool:
    """Whether it is a release: one that is shipped, by name, or a folder of parquet files that is no run."""
    if str(spec) in shipped():
        return True
    return spec.is_dir() and not (spec / "config.json").exists() and any(spec.rglob("*.parquet"))


def write_page(spec: Path, path: Path, most: int) -> tuple[int, int]:
    """Write the page of a release; of rows that are more than ``most``, some are drawn by their ids.

    ``spec`` is a shipped release by name, or a folder of rows: those of ``gecko push --dataset``, of
    ``recipes/fret-open``. Returns the numbers of rows on the page and in the release. Raises RunError: the folder holds
    no row, or something else than rows. StorageError: the disk refuses it.
    """
    rows = list(_rows(spec))
    if not rows:
        raise RunError(f"{spec} holds no row, so there is nothing to show; make it again")
    ids = {row["query_id"] for row in sorted(rows, key=lambda row: digest(row["query_id"]))[:most]}
    drawn = [row for row in rows if row["query_id"] in ids]
    corpus = ingest(CorpusConfig(), Counts()) if str(spec) in shipped() else ()
    known = {passage.id: (passage.title, passage.text) for passage in corpus}
    passages: dict[str, int] = {}
    texts: list[dict[str, str]] = []
    data = {"rows": [_shown_row(row, passages, texts, known) for row in drawn], "passages": texts}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    page = render("release.html.j2", {"name": spec.name, "rows": len(drawn), "all": len(rows)})
    write_bytes(path, page.replace("ROWS-AS-JSON", text, 1).encode("utf-8"))
    return len(drawn), len(rows)


def _rows(spec: Path) -> Iterator[dict[str, Any]]:
    if str(spec) in shipped() or (spec / FILE).is_file():
        yield from read_release(spec)
        return
    for path in sorted(spec.rglob("*.parquet")):
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{path} cannot be read ({error}); make the release again") from error
        if lacking := sorted(NEEDED - set(table.column_names)):
            raise RunError(f"{path} has no column {lacking[0]}, so it holds no rows of a release; name another folder")
        yield from ({"split": path.parent.name, **row} for row in table.to_pylist())


def _shown_row(
    row: Mapping[str, Any],
    passages: dict[str, int],
    texts: list[dict[str, str]],
    known: Mapping[str, tuple[str, str]],
) -> dict[str, Any]:
    """A row as the page has it: texts made harmless, passages by their number, candidates in the teacher's order."""
    listed = {one["passage_id"]: one for one in row["candidates"]}
    for identifier, one in listed.items():
        if identifier not in passages:
            passages[identifier] = len(texts)
            title, text = known.get(identifier, (one.get("title", ""), one.get("text", MISSING)))
            entry = {"id": identifier, "title": title, "text": text}
            entry |= {name: one[name] for name in ("source", "licence") if one.get(name)}
            texts.append({name: shown(value) for name, value in entry.items()})
    query = row["query_id"]
    candidates = [
        Candidate(query, identifier, one.get("cosine_rank", place), one["cosine"])
        for place, (identifier, one) in enumerate(listed.items(), start=1)
    ]
    scores = {name: judged_pair((query, name, "", ""), one) for name, one in listed.items()}
    return {
        **{
            name: shown(str(row.get(name) or "")) for name in ("query", "task", "split", "corpus", "language", "reason")
        },
        "kind": shown(str(row.get("kind") or kind(row["task"]))),
        "seed": passages.get(row["seed_id"], -1),
        "candidates": [
            [
                passages[label.passage_id],
                label.retriever_rank,
                round(listed[label.passage_id]["cosine"], 3),
                _number(label.ql),
                _number(label.rc),
            ]
            for label in fuse(candidates, scores)
        ],
    }


def _number(value: float) -> float | None:
    """As JSON has it; none for what a teacher that judges by answers does not say."""
    return None if math.isnan(value) else round(value, 2)
