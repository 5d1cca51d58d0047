"""Stage ``dataset``: the rows of a run as a release, with its card, as it is sent to a hub: ``RUN/dataset/fret``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gecko.core.files import CARD, digest, write_bytes
from gecko.core.records import Candidate, Judged, Passage, Query, by_query
from gecko.fret.release import FILE, content_hash, judged_fields, read_release, write_release
from gecko.fret.view import ASKED, judged_form, judgements, own_queries
from gecko.run.folder import Run
from gecko.run.shards import build_file
from gecko.stages.context import Context
from gecko.stages.generate import GENERATE
from gecko.stages.ingest import INGEST
from gecko.stages.mine import MINE
from gecko.stages.relabel import RELABEL
from gecko.stages.stage import Stage
from gecko.stages.user_queries import USER_QUERIES


def dataset_folder(context: Context) -> Path:
    """The run's rows as a release with its card; written anew only if they changed."""

    def make(path: Path) -> None:
        write_dataset([context.run], path)

    return build_file(context.run, DATASET.name, DATASET.parts(context), "fret", make)


def _depends(context: Context) -> dict[str, str]:
    run = context.run
    return {
        "relabel": run.finished(RELABEL.name).identity,  # a release holds the scores of the first teacher
        "settings": digest(run.config.model_dump_json(exclude={"train", "evaluate"})),
    }


def write_dataset(runs: Sequence[Run], folder: Path, earlier: Sequence[str] = ()) -> tuple[int, int]:
    """Write the judged queries of releases and runs, each query once, and their card, which describes the first run.

    What one of them holds out, no other teaches: a query for training whose seed is held out elsewhere is left out. The
    rows of ``earlier`` releases, by name or path, come first. Returns the number of rows, and of those left out.

    Raises RunError: a run is not relabelled. StorageError: the disk refuses it.
    """
    from gecko.report.cards import dataset_card

    found: dict[str, dict[str, Any]] = {}
    for source in (*map(read_release, earlier), *map(released_rows, runs)):
        for row in source:
            found.setdefault(row["query_id"], row)
    heldout = {row["seed_id"] for row in found.values() if row["split"] == "heldout"} - {""}
    rows = [row for row in found.values() if row["split"] == "heldout" or row["seed_id"] not in heldout]
    write_release(rows, folder / FILE)
    card = dataset_card(rows, runs[0].config, _prompt_hashes(runs[0]))
    write_bytes(folder / CARD, card.encode("utf-8"))
    return len(rows), len(found) - len(rows)


def released_rows(run: Run) -> list[dict[str, Any]]:
    """The judged queries of a run, as rows of a release; those of which every candidate is judged, if it was stopped.

    Queries that people asked are not everybody's to read: they are among them with ``asked.publish`` only. Raises
    RunError: nothing of the run is relabelled.
    """
    content = {passage.id: content_hash(passage) for passage in run.read("ingest", Passage)}
    scores = {(one.query_id, one.passage_id): one for one in judgements(run, "relabel", so_far=True)}
    candidates = by_query(run.read("mine", Candidate))
    return [
        _row(query, candidates[query.id], scores, content)
        for query in own_queries(run)
        if candidates.get(query.id) and (not query.asked or run.config.asked.publish)
        if all((query.id, candidate.passage_id) in scores for candidate in candidates[query.id])
    ]


def _row(
    query: Query,
    candidates: Sequence[Candidate],
    scores: Mapping[tuple[str, str], Judged],
    content: Mapping[str, str],
) -> dict[str, Any]:
    ordered = sorted(candidates, key=lambda candidate: candidate.rank)
    judged = [scores[query.id, candidate.passage_id] for candidate in ordered]
    return {
        "query_id": query.id,
        "task": query.task,
        "query": query.text,
        "split": query.split,
        "seed_id": query.seed_id,
        "llm": query.llm,
        "teacher": judged[0].teacher,
        "prompt_hash": judged[0].prompt_hash,
        "candidates": [
            {
                "passage_id": candidate.passage_id,
                "content": content[candidate.passage_id],
                "cosine": candidate.score,
                **judged_fields(score),
            }
            for candidate, score in zip(ordered, judged, strict=True)
        ],
    }


def _prompt_hashes(run: Run) -> dict[str, str]:
    settings = {"likelihood": "query_likelihood"}  # what a role is called there, where it is not its name
    roles = [settings.get(role, role) for role in ("generate", *judged_form(run).roles)]
    return {Path(getattr(run.config.prompts, role)).name: run.prompt(role).hash for role in roles}


DATASET = Stage(
    name="dataset",
    version=1,
    make=dataset_folder,
    reads={"ingest": INGEST, "generate": GENERATE, "mine": MINE, ASKED: USER_QUERIES},
    depends=_depends,
    command="report",
)
