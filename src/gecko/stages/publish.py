"""What a run gives away: its model and its rows, each with a card, as folders that a model hub takes as they are.

``RUN/model`` is the model; ``RUN/dataset/fret`` holds the rows. ``gecko push`` sends one of the two.
``python -m gecko.stages.publish RUN... -o FOLDER`` writes the rows of one run or several, and of earlier releases, as one
release.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Protocol

from gecko.core.errors import GeckoError, PublishError, RunError
from gecko.core.files import CARD, digest, read_json, write_bytes
from gecko.core.records import Candidate, Passage, Query, Score
from gecko.fret.release import FILE, content_hash, read_release, write_release
from gecko.fret.view import ASKED, own_queries
from gecko.run.folder import Run
from gecko.run.shards import build_file
from gecko.stages import graph
from gecko.stages.choose import chosen_format
from gecko.stages.context import Context
from gecko.stages.evaluate import EVALUATE
from gecko.stages.generate import GENERATE
from gecko.stages.ingest import INGEST
from gecko.stages.mine import MINE
from gecko.stages.relabel import RELABEL
from gecko.stages.stage import Stage
from gecko.stages.train import TRAIN
from gecko.stages.user_queries import USER_QUERIES

Kind = Literal["model", "dataset"]
_SECRET = re.compile(r"hf_\w+|(?<=[Bb]earer )\S+")


class HubApi(Protocol):
    """What is needed of ``huggingface_hub.HfApi``."""

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> Any:
        """Make the repository if it is not there."""
        ...

    def upload_folder(self, *, repo_id: str, folder_path: str, repo_type: str, commit_message: str) -> Any:
        """Send a folder's files as one commit."""
        ...


def write_cards(context: Context) -> None:
    """Write ``RUN/dataset/fret`` and, if a model is trained on the rows that are there, ``RUN/model/README.md``."""
    dataset_folder(context)
    model = context.run.path / "model"
    trained = [context.run.manifest(folder) for folder in TRAIN.folders_of(context.config)]
    is_current = all(manifest is not None and manifest.done for manifest in trained) and not graph.stale(context.run)
    if model.exists() and is_current:
        write_bytes(model / CARD, _model_card(context).encode("utf-8"))


def _model_card(context: Context) -> str:
    from gecko.report.cards import model_card

    manifest, path = context.run.manifest(EVALUATE.name), context.run.path / EVALUATE.name / "results.json"
    result = read_json(path) if manifest is not None and manifest.done and path.exists() else None
    return model_card(context, result["form"] if result else chosen_format(context), result)


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


DATASET = Stage(
    name="dataset",
    version=1,
    make=dataset_folder,
    reads={"ingest": INGEST, "generate": GENERATE, "mine": MINE, ASKED: USER_QUERIES},
    depends=_depends,
    command="report",
)


def write_dataset(runs: Sequence[Run], folder: Path, earlier: Sequence[str] = ()) -> tuple[int, int]:
    """Write the judged queries of releases and runs, each query once, and their card.

    What one of them holds out, no other teaches: a query for training whose seed is held out elsewhere is left out.

    Args:
        runs: at least one; the card describes the first.
        folder: of the new release.
        earlier: releases whose rows come first, by name or path.

    Returns:
        the number of rows, and of those left out.

    Raises:
        RunError: a run is not relabelled.
        StorageError: the disk refuses it.
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

    Queries that people asked are not everybody's to read: they are among them with ``asked.publish`` only.

    Raises:
        RunError: nothing of the run is relabelled.
    """
    content = {passage.id: content_hash(passage) for passage in run.read("ingest", Passage)}
    scores = {(score.query_id, score.passage_id): score for score in run.read_so_far("relabel", Score)}
    candidates: dict[str, list[Candidate]] = {}
    for candidate in run.read("mine", Candidate):
        candidates.setdefault(candidate.query_id, []).append(candidate)
    return [
        _row(query, candidates[query.id], scores, content)
        for query in own_queries(run)
        if candidates.get(query.id) and (not query.asked or run.config.asked.publish)
        if all((query.id, candidate.passage_id) in scores for candidate in candidates[query.id])
    ]


def _row(
    query: Query,
    candidates: Sequence[Candidate],
    scores: Mapping[tuple[str, str], Score],
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
                "ql_sum": score.ql_sum,
                "ql_tokens": score.ql_tokens,
                "rc": score.rc,
            }
            for candidate, score in zip(ordered, judged, strict=True)
        ],
    }


def _prompt_hashes(run: Run) -> dict[str, str]:
    roles = ("generate", "query_likelihood", "relevance")
    return {Path(getattr(run.config.prompts, role)).name: run.prompt(role).hash for role in roles}


def push(
    context: Context,
    repo: str,
    kind: Kind = "model",
    *,
    private: bool = False,
    dry_run: bool = False,
    api: HubApi | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Send the model or the rows of a run to a hub.

    Args:
        context: of the run.
        repo: ``OWNER/NAME``.
        kind: which of the two.
        private: make the repository private if it is made now.
        dry_run: only say what would be sent.
        api: a hub; none: the Hugging Face Hub, with the key that ``hf auth login`` has saved.
        say: where a sentence for the user goes.

    Raises:
        PublishError: the name is none, or the hub refuses.
        RunError: there is nothing to send yet.
    """
    _check_name(repo)
    folder = _current_model(context) if kind == "model" else _publishable_rows(context, say)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    for path in files:
        say(f"{path.stat().st_size:>12,}  {path.relative_to(folder)}")
    target = f"{'datasets/' if kind == 'dataset' else ''}{repo}"
    said = f"{len(files)} files, {size / 1e6:.1f} MB, {'would go' if dry_run else 'go'} to {target}"
    say(f"{said} ({'private' if private else 'public'}, if it is not there yet)")
    if dry_run:
        return
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    try:
        api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        made = api.upload_folder(
            repo_id=repo, folder_path=str(folder), repo_type=kind, commit_message=f"{kind} of a gecko run"
        )
    except Exception as error:  # the hub's client has many, and some of them quote the request
        said = _SECRET.sub("(hidden)", str(error)).strip() or type(error).__name__
        raise PublishError(
            f"{target}: the hub refused: {said}; log in with: hf auth login, and take a name that is yours"
        ) from None
    say(f"sent: {made}")


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise PublishError(f"{repo!r} is no name of a repository ({error}); write OWNER/NAME") from error


def _current_model(context: Context) -> Path:
    """The folder of the run's model with its card, if the model is of the rows that are there."""
    run = context.run
    for name in TRAIN.folders_of(context.config):
        run.finished(name)
    if stale := graph.stale(run):
        raise PublishError(
            f"{run.path}: {'; '.join(stale)}, so that the card would tell of another model than the one that is there; "
            f"run: gecko train {run.path}, then: gecko evaluate {run.path}"
        )
    write_cards(context)
    return run.path / "model"


def _publishable_rows(context: Context, say: Callable[[str], None]) -> Path:
    """The folder of the run's rows with their card, if it holds any; says how many of them are queries that people asked."""
    write_cards(context)
    folder = dataset_folder(context)
    seeds = [row["seed_id"] for row in read_release(str(folder), ["seed_id"])]
    if not seeds:
        raise PublishError(
            f"{folder} holds no row, so there is nothing to send; queries that people asked are part of it with "
            "asked.publish only"
        )
    if asked := seeds.count(""):
        say(f"{asked:,} of its {len(seeds):,} queries are what people asked; without: --set asked.publish=false")
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a release from runs."""
    parser = argparse.ArgumentParser(
        prog="python -m gecko.stages.publish", description="Write the rows of runs as a release."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run, or the folder of an earlier release")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    sources = dict.fromkeys(options.runs)
    earlier = [str(path) for path in sources if (path / FILE).is_file()]
    with ExitStack() as held:
        runs = [held.enter_context(Run(path)) for path in sources if str(path) not in earlier]
        if not runs:
            raise RunError(f"{', '.join(earlier)}: releases alone make no new one; add a run")
        count, left = write_dataset(runs, options.out, earlier)
    path = options.out / FILE
    print(f"{path}: {count:,} rows, {path.stat().st_size / 1e6:.1f} MB")
    if asked := sum(not row["seed_id"] for row in read_release(str(path), ["seed_id"])):
        print(f"{asked:,} of them are what people asked (asked.publish)")
    if left:
        print(f"{left:,} rows were left out: their seed is held out in another part")


if __name__ == "__main__":
    try:
        main()
    except GeckoError as failure:
        raise SystemExit(f"error: {failure}") from None
