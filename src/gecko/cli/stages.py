"""The stages, each by itself, on a run that exists; and the paper's first stage on a run of its own."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gecko.cli.options import HERE, AsJson, EngineOptions, Evals, Recipe, Restart, RunOptions, Sets, Start, named
from gecko.cli.output import print_closing
from gecko.core.counts import drop_words
from gecko.core.progress import Terminal

if TYPE_CHECKING:
    from gecko.run.manifest import Manifest
    from gecko.stages.runner import Pipeline


@contextmanager
def on_run(
    options: RunOptions,
    engine: EngineOptions = HERE,
    *,
    recipe: Path | None = None,
    through: str | None = None,
    asks: bool = True,
) -> Iterator["Pipeline"]:
    """A pipeline on a run that exists; ``--set`` and a recipe change its settings for good.

    All is made up to the stage ``through`` that is missing or out of date; without it nothing is. ``asks`` says whether a
    teacher may be asked.
    """
    from gecko.config.load import change_config
    from gecko.run.folder import Run
    from gecko.stages import user_queries
    from gecko.stages.runner import Pipeline

    ui = Terminal()
    with engine.executor(ui) as used:
        with Run(options.run, say=ui.say) as run:
            before = run.config
            changes = options.sets or recipe
            config = change_config(before, recipe, options.sets or ()) if changes else None
        with Run(options.run, config, force=True, same_prompts=True, say=ui.say) as run:
            pipeline = Pipeline(run, ui, force=options.accept_teacher, asks=asks, engine=used)
            if run.config.asked != before.asked:
                user_queries.make(pipeline, again=True)
            if run.config.corpus != before.corpus:
                pipeline.ingest()
            if through is not None:
                pipeline.through(through)
            yield pipeline


@contextmanager
def leaving_no_empty(folder: Path) -> Iterator[None]:
    """On an error, remove the run's folder if it is new and holds nothing but settings, as after a misspelt corpus."""
    was_there = folder.exists()
    try:
        yield
    except Exception:
        if not was_there and folder.is_dir() and not _made_something(folder):
            shutil.rmtree(folder)
        raise


def _made_something(folder: Path) -> bool:
    from gecko.run.manifest import read_manifest

    for path in folder.rglob("*"):
        place = path.relative_to(folder)
        if path.is_dir() or place.parts[0] in ("config.json", ".lock", "prompts"):
            continue
        if path.name != "manifest.json" or read_manifest(path).shards:
            return True
    return False


def _make(stage: str, options: RunOptions, engine: EngineOptions) -> None:
    with on_run(options, engine, through=stage) as pipeline:
        _say_rows(pipeline.run.finished(stage))


def _say_rows(manifest: "Manifest") -> None:
    drops = drop_words(manifest.drops)
    print(f"{manifest.stage}: {manifest.rows:,} rows" + (f"; dropped: {drops}" if drops else ""))


def ingest(options: RunOptions, engine: EngineOptions) -> None:
    """Read the corpus of a run."""
    with on_run(options, engine) as pipeline:
        _say_rows(pipeline.ingest())


def generate(options: RunOptions, engine: EngineOptions) -> None:
    """Check the teacher, plan the budget and write the queries."""
    _make("generate", options, engine)


def mine(options: RunOptions, engine: EngineOptions) -> None:
    """Find the candidates of each query."""
    _make("mine", options, engine)


def relabel(options: RunOptions, engine: EngineOptions) -> None:
    """Score each candidate with the teacher."""
    _make("relabel", options, engine)


def select(options: RunOptions) -> None:
    """Choose positives and negatives from the scores; no teacher is asked, unless --set changes what it was asked."""
    with on_run(options, through="select", asks=bool(options.sets)) as pipeline:
        _say_rows(pipeline.run.finished("select"))


def train(config: Recipe = None, *, options: RunOptions) -> None:
    """Train on the rows of a run and of its mixture, if it has one, after BM25's order."""
    with on_run(options, recipe=config) as pipeline:
        print(pipeline.through("choose"))


def evaluate(evals: Evals = None, as_json: AsJson = False, *, options: RunOptions) -> None:
    """Measure the trained model of a run."""
    sets = [*(options.sets or ()), *([f"evaluate.sets={evals}"] if evals else ())]
    with on_run(RunOptions(options.run, sets, options.accept_teacher)) as pipeline:
        print_closing(pipeline.run, pipeline.through("evaluate"), as_json=as_json)


def pretrain(
    out: Annotated[Path, typer.Option("-o", "--out", help="The run folder.")],
    pairs: Annotated[
        list[str] | None, typer.Argument(help="Files of pairs (query, title, text), or folders of them.")
    ] = None,
    config: Recipe = None,
    sets: Sets = None,
    start: Start = None,
    restart: Restart = False,
) -> None:
    """The paper's first stage: train on pairs with in-batch negatives, each batch from one source."""
    from gecko.config.load import load_config
    from gecko.run.folder import Run
    from gecko.stages.pretrain import pretrain as run_all

    base: dict[str, Any] = {"pretrain": {"sources": pairs}} if pairs else {}
    settings = load_config(config, sets or (), named(base, backbone=start))
    ui = Terminal()
    with leaving_no_empty(out), Run(out, settings, force=restart, say=ui.say) as run:
        print(run_all(run, ui))
