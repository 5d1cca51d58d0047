"""FRet as a file that can be given away: queries, tasks, candidates and every score, but no passage.

A row names its passages by id and by a hash of title and text. Whoever has the corpus reads them there::

    released = gecko.load_release("fret-stdlib")  # against the running Python's standard library
    rows = released.examples(SelectConfig())

A row whose seed or p_1 is missing or reads otherwise is skipped and counted; another such candidate only leaves the row's
list. Ranks stay those among all the candidates that the teacher judged, so the others keep their places.

``python -m gecko.stages.publish RUN... -o FOLDER`` makes one from runs.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gecko.config.stages import CorpusConfig, SelectConfig
from gecko.core.arguments import spec_of
from gecko.core.counts import Counts
from gecko.core.errors import ConfigError, RunError
from gecko.core.files import digest, file_sha256, write_table
from gecko.core.records import Candidate, Example, Grade, Judged, Passage, Place, Query, Score
from gecko.corpus import ingest
from gecko.fret.fuse import Label, fuse
from gecko.fret.select import select

FILE = "fret.parquet"
STDLIB = "fret-stdlib"
STDLIB_LOG = "stdlib-log"  # of a simulated log

_CANDIDATE: list[tuple[str, pa.DataType]] = [
    ("passage_id", pa.string()),
    ("content", pa.string()),
    ("cosine", pa.float32()),
    ("ql_sum", pa.float32()),
    ("ql_tokens", pa.int32()),
    ("rc", pa.float32()),
]
# Fields of a candidate that a release has where a teacher judged by answers; the three above are then empty.
_ANSWERED: list[tuple[str, pa.DataType]] = [
    ("grade", pa.int32()),
    ("first", pa.int32()),
    ("second", pa.int32()),
    ("relevant", pa.bool_()),
]


def _schema(more: Sequence[tuple[str, pa.DataType]] = ()) -> pa.Schema:
    return pa.schema(
        [
            *((name, pa.string()) for name in ("query_id", "task", "query", "split", "seed_id")),
            *((name, pa.string()) for name in ("llm", "teacher", "prompt_hash")),
            ("candidates", pa.list_(pa.struct([*_CANDIDATE, *more]))),
        ]
    )


SCHEMA = _schema()
COLUMNS = {
    "query_id": "made from the seed's id, the prompt's hash and the run's random seed, or from what somebody asked",
    "task": "the retrieval task as the teacher worded it, or as it was given for what people asked",
    "query": "the query that the teacher wrote for the seed, or that somebody asked",
    "split": "`train`, or `heldout` for the agreement test; a neighbourhood of seeds is in one of them as a whole",
    "seed_id": "the passage that the query was written for; empty for a query that somebody asked",
    "llm": "name of the teacher that wrote the query; empty for a query that somebody asked",
    "teacher": "hash of the weights of the teacher that judged the candidates",
    "prompt_hash": "hash of the prompts that judged",
    "candidates": "the initial embedder's nearest passages, nearest first, with the seed among them if there is one: "
    "`passage_id`; `content`, hash of title and text; `cosine` of the embedder; `ql_sum`, log-probability of the query's "
    "tokens given the passage, and their number `ql_tokens`; `rc`, log-odds of relevant against not; of a teacher that "
    "judged by answers, in place of these three, its `grade` from 0 to 3, or the places `first` and `second` that it gave "
    "the candidate among all of them, shown in order and the other way round, and of the best one whether it is `relevant`",
}


def content_hash(passage: Passage) -> str:
    """What a release knows of a passage's title and text; 16 hexadecimal digits."""
    return digest(passage.title, passage.text)


@dataclass(frozen=True)
class Released:
    """What a release holds for one corpus.

    Attributes:
        name: as it was asked for.
        passages: the corpus by id.
        queries: those whose seed and p_1 are there and unchanged.
        labels: by query id, the candidates that are there, in fused order.
        counts: rows skipped, by reason (``drops``), and candidates left out of a list (``notes``).
    """

    name: str
    passages: Mapping[str, Passage]
    queries: list[Query] = field(default_factory=list)
    labels: dict[str, list[Label]] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)

    def examples(self, config: SelectConfig, seed: int = 0) -> list[Example]:
        """Training rows of it, chosen as ``select`` would; what is dropped is counted in ``counts``."""
        return list(select(self.queries, self.labels, self.passages, config, seed, self.counts))


def shipped() -> list[str]:
    """Names of the releases that this installation holds."""
    folder = Path(str(files("gecko"))) / "data"
    return sorted(file.parent.name for file in folder.glob(f"*/{FILE}"))


def release_path(spec: str | os.PathLike[str]) -> Path:
    """The parquet file of a release: a shipped one by name, or a folder or file by path.

    Raises ConfigError: there is none.
    """
    spec = spec_of(spec, "released rows")
    path = Path(str(files("gecko"))) / "data" / spec if spec in shipped() else Path(spec).expanduser()
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        here = ", ".join(shipped()) or "none"
        raise ConfigError(f"released rows {spec!r}: {path} does not exist; shipped with this version: {here}")
    return path


def release_identity(spec: str | os.PathLike[str]) -> str:
    """Hash of a release, for fingerprints."""
    return file_sha256(release_path(spec))


def read_release(spec: str | os.PathLike[str], columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a release as they are in the file, of :data:`SCHEMA`.

    Raises ConfigError: there is no such release. RunError: the file is none.
    """
    path = release_path(spec)
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"{path} is no release ({error}); make one with: python -m gecko.stages.publish RUN -o DIR"
        ) from error
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def heldout_seeds(spec: str | os.PathLike[str]) -> set[str]:
    """The passages whose queries a release keeps from training: no other row should be written for them."""
    return {row["seed_id"] for row in read_release(spec, ["seed_id", "split"]) if row["split"] == "heldout"} - {""}


def load_release(
    spec: str | os.PathLike[str] = STDLIB,
    passages: Mapping[str, Passage] | None = None,
    config: SelectConfig | None = None,
    heldout: Collection[str] = (),
) -> Released:
    """The rows of a release, held against a corpus.

    Args:
        spec: a shipped release by name, or a folder or file by path.
        passages: the corpus by id; none: the documentation of the running Python's standard library.
        config: how scores become ranks; none: as in the default preset.
        heldout: passages that are held out elsewhere: rows for training whose seed or p_1 is one of them are skipped.

    Raises:
        ConfigError: there is no such release.
        RunError: the file is none.
    """
    spec, config = spec_of(spec, "released rows"), config or SelectConfig()
    if passages is None:
        passages = {passage.id: passage for passage in ingest(CorpusConfig(), Counts())}
    known = {identifier: content_hash(passage) for identifier, passage in passages.items()}
    held = frozenset(heldout)
    released = Released(spec, passages)
    for row in read_release(spec):
        ranked = ranked_labels(row, config)
        content = {entry["passage_id"]: entry["content"] for entry in row["candidates"]}
        there = {identifier for identifier, value in content.items() if known.get(identifier) == value}
        needed = {row["seed_id"], ranked[0].passage_id} - {""}
        if gone := needed - there:
            missing = any(identifier not in known for identifier in gone)
            released.counts.drop(f"{spec}: seed or positive {'missing' if missing else 'changed'}", row["query"])
            continue
        if row["split"] == "train" and needed & held:
            released.counts.drop(f"{spec}: of a held-out neighbourhood", row["query"])
            continue
        released.counts.notes[f"{spec}: candidates missing or changed"] += len(content) - len(there)
        released.queries.append(
            Query(row["query_id"], row["task"], row["query"], row["seed_id"], row["llm"], row["split"])
        )
        released.labels[row["query_id"]] = [label for label in ranked if label.passage_id in there]
    return released


def ranked_labels(row: Mapping[str, Any], config: SelectConfig) -> list[Label]:
    """All candidates of a release's row in fused order, by their stored scores."""
    candidates: list[Candidate] = []
    scores: dict[str, Judged] = {}
    for rank, entry in enumerate(row["candidates"], start=1):
        identifier = entry["passage_id"]
        candidates.append(Candidate(row["query_id"], identifier, rank, entry["cosine"]))
        scores[identifier] = judged_pair((row["query_id"], identifier, row["teacher"], row["prompt_hash"]), entry)
    return fuse(candidates, scores, config.fusion, config.rrf_constant)


def judged_pair(of: tuple[str, str, str, str], entry: Mapping[str, Any]) -> Judged:
    """What a release says of a pair; ``of`` is query id, passage id, teacher and hash of its prompts."""
    if entry.get("grade") is not None:
        return Grade(*of, entry["grade"])
    if entry.get("first") is not None:
        return Place(*of, entry["first"], entry["second"], entry["relevant"])
    return Score(*of, entry["ql_sum"], entry["ql_tokens"], entry["rc"])


def judged_fields(judged: Judged) -> dict[str, Any]:
    """What a candidate of a release says of its judgement; those of another form are left out."""
    of_pair = ("query_id", "passage_id", "teacher", "prompt_hash")
    return {name: value for name, value in asdict(judged).items() if name not in of_pair}


def write_release(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows of :data:`SCHEMA` as one parquet file; equal rows give equal bytes.

    Where a candidate was judged by answers, the candidates have the fields of that form, too. Raises StorageError: the
    disk refuses it.
    """
    there = {name for row in rows for entry in row["candidates"] for name, value in entry.items() if value is not None}
    more = {"grade"} & there | ({"first", "second", "relevant"} if "first" in there else set())
    schema = _schema([entry for entry in _ANSWERED if entry[0] in more])
    write_table(path, pa.Table.from_pylist(list(rows), schema=schema), level=19)
