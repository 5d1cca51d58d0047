"""What a run gives away: its model and its rows, each with a card, as folders that a model hub takes as they are.

``RUN/model`` is the model; ``RUN/dataset/fret`` holds the rows. ``gecko push`` sends one of the two.
``python -m gecko.stages.publish RUN... -o FOLDER`` writes the rows of one run or several, and of earlier releases, as one
release.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Protocol

from gecko.core.errors import GeckoError, PublishError, RunError
from gecko.core.files import CARD, read_json, write_bytes
from gecko.fret.release import FILE, read_release
from gecko.run.folder import Run
from gecko.stages import graph
from gecko.stages.choose import chosen_format
from gecko.stages.context import Context
from gecko.stages.dataset import dataset_folder, write_dataset
from gecko.stages.evaluate import EVALUATE
from gecko.stages.train import TRAIN

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


def push(
    source: Context | Path,
    repo: str,
    kind: Kind = "model",
    *,
    private: bool = False,
    dry_run: bool = False,
    api: HubApi | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Send the model or the rows of a run to a hub, or a data set that is there as a folder.

    Args:
        source: of the run, or the folder of a data set with its card.
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
    if isinstance(source, Path):
        folder = _carded(source, kind)
    else:
        folder = _current_model(source) if kind == "model" else _publishable_rows(source, say)
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


def _carded(folder: Path, kind: Kind) -> Path:
    """The folder of a data set, if it has a card."""
    if kind != "dataset":
        raise PublishError(f"{folder} is a data set and no run; give --dataset")
    if not (folder / CARD).is_file():
        raise PublishError(f"{folder} has no card ({CARD}), which says what its rows are; make it again")
    return folder


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
