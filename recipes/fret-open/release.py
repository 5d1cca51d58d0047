"""The rows of a corpus's run with their passages, as parquet, and the card of the data set.

::

    OUT/train/NAME.parquet      rows that select keeps
    OUT/heldout/NAME.parquet    judged queries whose seeds no row for training was written for
    OUT/dropped/NAME.parquet    judged queries that select drops, with the reason: most have no relevant passage
    OUT/corpora/NAME.json       where the passages are from, what was dropped and why, and the hashes of the files
    OUT/README.md               the card
"""

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from corpora import Corpus, Made
from testsets import TestTexts, repeated

import gecko
from gecko.core.counts import Counts
from gecko.core.files import CARD, file_sha256, read_json, write_bytes, write_json
from gecko.core.records import Candidate, Example, Passage, Query, Score
from gecko.corpus.language import likeliest_of
from gecko.fret.select import select
from gecko.fret.variables import LANGUAGE, draw
from gecko.prompts import KIND
from gecko.stages.runner import Pipeline

SPLITS = ("train", "heldout", "dropped")
CANDIDATE = pa.struct(
    [
        *((name, pa.string()) for name in ("passage_id", "title", "text", "source", "licence")),
        ("cosine", pa.float32()),
        ("cosine_rank", pa.int32()),
        ("ql_sum", pa.float64()),
        ("ql_tokens", pa.int32()),
        ("rc", pa.float64()),
        ("fused", pa.float64()),
        ("fused_rank", pa.int32()),
    ]
)
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("query_id", "corpus", "kind", "language", "task", "query")),
        *(
            (name, pa.string())
            for name in ("positive", "negative", "reason", "seed_id", "writer", "teacher", "prompt_hash")
        ),
        ("candidates", pa.list_(CANDIDATE)),
    ]
)
COLUMNS = {
    "query_id": "made from the seed's id, the prompt's hash and the run's random seed",
    "corpus": "which of the corpora below",
    "kind": "what kind of query was asked for: question, how-to, claim, keywords, problem, sentence, word",
    "language": "of the query, as far as can be told",
    "task": "the retrieval task as the teacher worded it, in English",
    "query": "the query that the teacher wrote for the seed",
    "positive": "title and text of the passage that the teacher ranks first",
    "negative": "title and text of the one that it ranks last: a hard negative",
    "reason": "in the split `dropped`: why the row is not in `train`; empty elsewhere",
    "seed_id": "the passage that the query was written for",
    "writer": "name of the teacher that wrote the query",
    "teacher": "hash of the weights of the teacher that judged the candidates",
    "prompt_hash": "hash of the prompts of query likelihood and relevance",
    "candidates": "the start model's nearest passages and the seed, in the teacher's order: `passage_id`, `title`, `text`, "
    "`source` (package, version, file) and `licence`; `cosine` of the start model and `cosine_rank`; `ql_sum`, "
    "log-probability of the query's tokens given the passage, and their number `ql_tokens`; `rc`, log-odds of relevant "
    "against not; `fused`, 1/r_QL + 1/r_RC, and `fused_rank`",
}


def write_corpus(pipeline: Pipeline, corpus: Corpus, made: Made, tests: TestTexts, out: Path) -> dict[str, int]:
    """Write the rows of a corpus's run; the number of rows by split.

    Args:
        pipeline: of the run, whose rows are selected.
        corpus: which.
        made: its passages.
        tests: what no query may repeat.
        out: the folder of the data set.
    """
    run, drops = pipeline.run, Counts()
    queries = [query for query in pipeline.queries if query.id in pipeline.labels]
    why = repeated([query.text for query in queries], tests)
    for query, reason in zip(queries, why, strict=True):
        if reason:
            drops.drop(reason, query.text)
    queries = [query for query, reason in zip(queries, why, strict=True) if not reason]
    rows = _rows(pipeline, corpus, made, queries)
    hashes = {}
    for split, part in rows.items():
        path = out / split / f"{corpus.name}.parquet"
        if part:
            write_rows(part, path)
            hashes[f"{split}/{path.name}"] = file_sha256(path)
        else:
            path.unlink(missing_ok=True)
    counts = {split: len(part) for split, part in rows.items()}
    stages = {stage: dict(run.finished(stage).drops.most_common()) for stage in ("generate", "select")}
    everything = [row for part in rows.values() for row in part]
    facts = {
        "name": corpus.name,
        "passages": {key: value for key, value in made.facts.items() if key != "key"},
        "rows": counts,
        "drops": {**stages, "release": dict(drops.drops.most_common())},
        "dropped": dict(Counter(row["reason"] for row in rows["dropped"]).most_common()),
        "kinds": dict(Counter(row["kind"] for row in everything).most_common()),
        "languages": dict(Counter(row["language"] for row in everything).most_common()),
        "moved": sum(row["candidates"][0]["passage_id"] != row["seed_id"] for row in rows["train"]),
        "writers": sorted({row["writer"] for row in everything}),
        "start": run.config.backbone,
        "prompts": {role: prompt.hash for role, prompt in pipeline.prompts.items()},
        "tests": {"sets": list(tests.names), "texts": len(tests.texts)},
        "made_with": {"gecko": gecko.__version__, "python": platform.python_version()},
        "files": hashes,
    }
    write_json(out / "corpora" / f"{corpus.name}.json", facts)
    return counts


def _rows(pipeline: Pipeline, corpus: Corpus, made: Made, queries: Sequence[Query]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each split, in the order of the queries."""
    config, prompt = pipeline.config, pipeline.prompts["generate"]
    kept = {row.query_id for row in pipeline.run.read("select", Example)}
    scores = {(row.query_id, row.passage_id): row for row in pipeline.run.read("relabel", Score)}
    cosines = {(row.query_id, row.passage_id): row.score for row in pipeline.run.read("mine", Candidate)}
    origin = {row["id"]: (row["source"], row["licence"]) for row in made.rows()}
    found: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for query in queries:
        drawn = draw(prompt, query.id)
        ranked = pipeline.labels[query.id]
        counts = Counts()
        list(select([query], pipeline.labels, pipeline.by_id, config.select, config.seed, counts))
        split = "heldout" if query.split == "heldout" else "train" if query.id in kept else "dropped"
        first = scores[query.id, ranked[0].passage_id]
        candidates = [
            {
                "passage_id": label.passage_id,
                "title": pipeline.by_id[label.passage_id].title,
                "text": pipeline.by_id[label.passage_id].text,
                "source": origin[label.passage_id][0],
                "licence": origin[label.passage_id][1],
                "cosine": cosines[query.id, label.passage_id],
                "cosine_rank": label.retriever_rank,
                "ql_sum": scores[query.id, label.passage_id].ql_sum,
                "ql_tokens": scores[query.id, label.passage_id].ql_tokens,
                "rc": label.rc,
                "fused": label.fused,
                "fused_rank": rank,
            }
            for rank, label in enumerate(ranked, start=1)
        ]
        found[split].append(
            {
                "query_id": query.id,
                "corpus": corpus.name,
                "kind": drawn.get(KIND, ""),
                "language": _language(query.text, corpus, drawn),
                "task": query.task,
                "query": query.text,
                "positive": content(candidates[0]),
                "negative": content(candidates[-1]),
                "reason": next(iter(counts.drops), "") if split == "dropped" else "",
                "seed_id": query.seed_id,
                "writer": query.llm,
                "teacher": first.teacher,
                "prompt_hash": first.prompt_hash,
                "candidates": candidates,
            }
        )
    return found


def content(candidate: Mapping[str, Any]) -> str:
    """Title and text of a candidate as one string, as the teacher has read them."""
    return Passage(candidate["passage_id"], candidate["title"], candidate["text"]).content


def _language(query: str, corpus: Corpus, drawn: Mapping[str, str]) -> str:
    """The language that a query is in: of those that it may be in, English among them, the likeliest."""
    if corpus.language == "en" and not drawn.get(LANGUAGE):
        return "en"
    return likeliest_of({corpus.language, "en", drawn.get(LANGUAGE, "en")}, query, "the column language")


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as one parquet file; equal rows give equal bytes. Each passage is stored once, by a dictionary."""
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    pq.write_table(table, sink, compression="zstd", compression_level=19, dictionary_pagesize_limit=1 << 28)
    write_bytes(path, sink.getvalue().to_pybytes())


def write_card(out: Path) -> None:
    """Write the card of all corpora that are there."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    reading = here / "reading.md"
    corpora = [read_json(path) for path in sorted((out / "corpora").glob("*.json"))]
    splits = {split: sum(facts["rows"][split] for facts in corpora) for split in SPLITS}
    environment = Environment(  # noqa: S701 - Markdown
        loader=FileSystemLoader(here), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("card.md.j2").render(
        corpora=corpora,
        splits={split: count for split, count in splits.items() if count},
        total=sum(splits.values()),
        columns=COLUMNS,
        licences=_added(facts["passages"]["licences"] for facts in corpora),
        kinds=_added(facts["kinds"] for facts in corpora),
        others=any(facts["passages"]["language"] != "en" for facts in corpora),
        languages=_added(facts["languages"] for facts in corpora),
        dropped=_added(facts["dropped"] for facts in corpora),
        removed=_added(facts["drops"]["release"] for facts in corpora),
        unparsed=_added(facts["drops"]["generate"] for facts in corpora),
        writers=sorted({name for facts in corpora for name in facts["writers"]}),
        tests=max((facts["tests"] for facts in corpora), key=lambda tests: tests["texts"], default=None),
        reading=reading.read_text(encoding="utf-8") if reading.exists() else "",
    )
    write_bytes(out / CARD, text.encode("utf-8"))


def _added(counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total.most_common())
