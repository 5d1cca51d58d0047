"""What a run holds: sent to a hub, in numbers, and as examples of a prompt."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gecko.cli.options import AsJson, Library, RunArg, RunOptions, Sets
from gecko.cli.output import print_rows
from gecko.cli.stages import on_run
from gecko.core.errors import ConfigError


def push(
    run: Annotated[Path, typer.Argument(help="A run folder, or the folder of a data set.", metavar="RUN")],
    repo: Annotated[str, typer.Argument(help="The repository on the hub, OWNER/NAME.", metavar="REPO")],
    dataset: Annotated[bool, typer.Option("--dataset", help="Send the rows instead of the model.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be sent.")] = False,
    sets: Sets = None,
) -> None:
    """Send the model of a run, or its rows, to the Hugging Face Hub, with a card; or a data set that is a folder."""
    from gecko.report.release_page import is_release
    from gecko.stages.publish import push as send

    if is_release(run):
        send(run, repo, "dataset" if dataset else "model", private=private, dry_run=dry_run)
        return
    with on_run(RunOptions(run, sets)) as pipeline:
        send(pipeline, repo, "dataset" if dataset else "model", private=private, dry_run=dry_run)


def inspect(
    run: Annotated[Path, typer.Argument(help="A run folder, or a release by folder or name.", metavar="RUN")],
    as_json: AsJson = False,
    page: Annotated[
        Path | None, typer.Option("-o", "--out", help="Of a release: the page to read it by; inspect.html.")
    ] = None,
    most: Annotated[int, typer.Option("--rows", min=1, help="Of a release: rows on the page, at most.")] = 500,
) -> None:
    """What the rows of a run are like, in numbers; of a release, a page to read them: queries with their candidates."""
    from gecko.report.inspect import lines, statistics
    from gecko.report.release_page import is_release, write_page

    if is_release(run):
        if as_json:
            raise ConfigError(f"--json: {run} is a release, and the numbers are those of a run; leave --json out")
        target = page or Path("inspect.html")
        rows, found = write_page(run, target, most)
        print(f"{target}: {rows:,} of {found:,} rows")
        return
    if page is not None:
        raise ConfigError(
            f"-o {page}: a page is made of a release, and {run} is none; gecko report makes that of a run"
        )
    with on_run(RunOptions(run)) as pipeline:
        found_of_run = statistics(pipeline)
    if as_json:
        print(json.dumps(found_of_run))
        return
    print_rows([("of the run", ""), *lines(found_of_run)])


def examples(
    run: RunArg,
    out: Annotated[Path, typer.Option("-o", "--out", help="The prompt's file, FILE.toml.")],
    count: Annotated[int, typer.Option(min=1, help="Examples in it.")] = 5,
) -> None:
    """A generation prompt whose examples are queries that people asked, for prompts.generate."""
    from gecko.core.records import Example
    from gecko.fret.example_prompt import write_prompt

    if out.suffix != ".toml":
        raise ConfigError(f"-o {out}: a prompt's file ends in .toml")
    with on_run(RunOptions(run), through="select") as pipeline:
        found = pipeline.run.read("select", Example)
        used = write_prompt(found, pipeline.labels, out, count, pipeline.config.seed)
    for row in used:
        print(f"{row.query} ← {row.positive.title or row.positive.text[:60]}")
    print(out)


def export_rows(
    run: RunArg,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder of the files; it is made.")],
    library: Annotated[Library, typer.Option("--for", help="Whose trainer reads them.")] = "sentence-transformers",
) -> None:
    """Write the rows of a run with their texts, as the trainer of another library reads them."""
    from gecko.fret.export_rows import export_rows as write

    with on_run(RunOptions(run), through="select", asks=False) as pipeline:
        for name, count in write(pipeline, out, library).items():
            print(f"{out / name}.parquet: {count:,} rows")
