"""The main job: from passages to a model, its data set and a report."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gecko.cli.options import (
    HERE,
    AcceptTeacher,
    AsJson,
    Budget,
    EngineOptions,
    Evals,
    Freeze,
    Llm,
    PriceIn,
    PriceOut,
    Recipe,
    Restart,
    RunArg,
    RunOptions,
    Sets,
    Start,
    named,
)
from gecko.cli.output import print_closing
from gecko.cli.stages import leaving_no_empty, on_run
from gecko.core.progress import Terminal

if TYPE_CHECKING:
    from gecko.config.run import RunConfig

DEMO = Path("runs/demo")
DEMO_BUDGET = "3m"


def demo(
    budget: Budget = None,
    llm: Llm = None,
    start: Start = None,
    sets: Sets = None,
    accept_teacher: AcceptTeacher = False,
    restart: Restart = False,
    as_json: AsJson = False,
) -> None:
    """The main job on the embedded default: the standard library's documentation, a 1.5B teacher, MiniLM."""
    from gecko.config.load import load_config
    from gecko.fret.release import STDLIB_LOG

    # The rows that ship teach, and what three minutes of the teacher add shows how rows are made. Of both formats native was
    # measured to be kept: MiniLM has never seen the other.
    base: dict[str, Any] = {
        "corpus": {"sources": ["stdlib"]},
        "select": {"released": [STDLIB_LOG]},
        "train": {"formats": ["native"]},
        "evaluate": {"sets": ["stdlib-questions"]},
    }
    settings = load_config(None, sets or (), named(base, budget=budget, llm=llm, backbone=start), DEMO_BUDGET)
    _distil(DEMO, settings, HERE, accept_teacher=accept_teacher, restart=restart, as_json=as_json)


def distill(
    corpus: Annotated[list[str], typer.Argument(help="Files, folders, or `stdlib`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The run folder.")],
    config: Recipe = None,
    sets: Sets = None,
    llm: Llm = None,
    start: Start = None,
    budget: Budget = None,
    evals: Evals = None,
    queries: Annotated[
        list[str] | None,
        typer.Option(help="Queries that people asked, without labels: a text file of one a line, or a table."),
    ] = None,
    freeze: Freeze = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and embed the corpus, say what each stage would cost, and stop.")
    ] = False,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    accept_teacher: AcceptTeacher = False,
    restart: Restart = False,
    as_json: AsJson = False,
    *,
    engine: EngineOptions,
) -> None:
    """From your passages to a better embedding model, the dataset that taught it, and a report."""
    from gecko.config.load import load_config

    base: dict[str, Any] = {"corpus": {"sources": corpus}}
    if evals:
        base["evaluate"] = {"sets": evals}
    if queries:
        base["asked"] = {"sources": queries}
    if freeze:
        base["train"] = {"freeze": freeze, "formats": ["native"]}
    if prices := named({}, input=price_in, output=price_out):
        base["price"] = prices
    settings = load_config(config, sets or (), named(base, budget=budget, llm=llm, backbone=start))
    _distil(out, settings, engine, accept_teacher=accept_teacher, restart=restart, as_json=as_json, dry_run=dry_run)


def _distil(
    folder: Path,
    config: "RunConfig",
    engine: EngineOptions,
    *,
    accept_teacher: bool,
    restart: bool,
    as_json: bool,
    dry_run: bool = False,
) -> None:
    from gecko.run.folder import Run
    from gecko.stages.runner import Pipeline
    from gecko.stages.runner import distill as run_all

    ui, began = Terminal(), time.perf_counter()
    with (
        leaving_no_empty(folder),
        engine.executor(ui) as used,
        Run(folder, config, force=restart, keep=not dry_run, say=ui.say) as run,
    ):
        if dry_run:
            said = Pipeline(run, ui, force=accept_teacher, engine=used).estimate()
            print(json.dumps({"run": str(folder), "estimate": said}) if as_json else said)
            return
        result = run_all(run, ui, force=accept_teacher, engine=used)
        print_closing(run, result, as_json=as_json, pointers=True)
        ui.say(f"{time.perf_counter() - began:.0f} s")


def report(
    run: RunArg,
    figures: Annotated[
        Path | None, typer.Option("--plots", help="A folder for its plots, an SVG file each.", metavar="DIR")
    ] = None,
) -> None:
    """Write the report of a run again."""
    with on_run(RunOptions(run)) as pipeline:
        print(pipeline.report(figures))
