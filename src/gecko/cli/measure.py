"""What is measured on labelled sets: a model, a teacher, and the settings of a run."""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gecko.cli.exits import HARM
from gecko.cli.options import AsJson, AsMarkdown, BM25Weight, Evals, InputFormat, RunOptions, Split
from gecko.cli.output import print_rows
from gecko.cli.stages import on_run
from gecko.core.errors import ConfigError
from gecko.core.progress import Terminal, Ui
from gecko.core.text import duration

if TYPE_CHECKING:
    from gecko.evaluation.ablate import Ablation, Options


def evaluate_model(
    model: Annotated[str, typer.Argument(help="A folder, hf:NAME or minilm.")],
    sets: Annotated[
        list[str],
        typer.Argument(
            help="BEIR folders or folders of task sets, DIR or DIR@SPLIT; mteb:NAME, a task or a benchmark; stdlib-questions."
        ),
    ],
    split: Split = None,
    baseline: Annotated[str | None, typer.Option(help="A model to hold it against.")] = None,
    dim: Annotated[int | None, typer.Option(help="Keep only so many dimensions of the model's vectors.")] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="What a model in the unified format is told, as SET=TASK; can be repeated."),
    ] = None,
    pad_token: Annotated[
        str,
        typer.Option(metavar="TOKEN", help="For a raw language model without padding token: one of its vocabulary."),
    ] = "",
    rerank: Annotated[
        str | None,
        typer.Option(help="A cross-encoder, a folder or hf:NAME, behind which both models are measured, too."),
    ] = None,
    top: Annotated[int, typer.Option(help="Passages of a query that it puts in order.")] = 20,
    hybrid: Annotated[
        bool, typer.Option("--hybrid", help="Measure both models beside BM25, too, as `gecko search` does.")
    ] = False,
    bm25_weight: BM25Weight = 0.3,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither use nor keep embeddings of earlier calls.")
    ] = False,
) -> None:
    """Measure any model on labelled sets, with BM25 and a baseline beside it."""
    from gecko.encoder import load_encoder
    from gecko.evaluation.cache import KeptEmbeddings
    from gecko.evaluation.rerank import Reranker
    from gecko.evaluation.sets import eval_notes, eval_table, evaluate_sets, load_sets
    from gecko.report.text import markdown_table

    ui = Terminal()
    loaded = load_sets(sets, split, tasks or ())
    if rerank is not None and not loaded.retrieval:
        raise ConfigError(f"--rerank {rerank}: none of the sets is a retrieval set; leave it out")
    if hybrid and not loaded.retrieval:
        raise ConfigError("--hybrid: none of the sets is a retrieval set; leave it out")
    reranker = None if rerank is None else Reranker(rerank, top, ui)
    folder = None if no_cache else _kept_in(ui)
    encoder = load_encoder(model, pad_token=pad_token)
    models = {"model": KeptEmbeddings(encoder.truncated(dim) if dim is not None else encoder, folder)}
    if baseline is not None:
        models["baseline"] = KeptEmbeddings(load_encoder(baseline, pad_token=pad_token), folder)
    result = evaluate_sets(loaded, models, ui, rerank=reranker, hybrid=hybrid, bm25_weight=bm25_weight)
    if as_json:
        print(json.dumps(result))
        return
    table, notes = eval_table(result), eval_notes(result)
    if as_markdown:
        print("\n\n".join([markdown_table(table), *notes]))
        return
    print_rows(table, 160, name_width=24)
    for note in notes:
        print(note)


def _kept_in(ui: Ui) -> Path | None:
    """The folder of the embeddings of earlier calls; none, and said, where there can be none."""
    from gecko.weights.cache import cache_folder

    try:
        return cache_folder() / "embeddings"
    except ConfigError as error:
        ui.say(f"embeddings are not kept: {error}")
        return None


def check_teacher(
    sets: Annotated[list[str], typer.Argument(help="BEIR folders, DIR or DIR@SPLIT, or `stdlib-questions`.")],
    llm: Annotated[str, typer.Option(help="The teacher, an LLM SPEC as for distill.")] = "default",
    start: Annotated[str, typer.Option(help="The start model, whose order is the baseline.")] = "minilm",
    forms: Annotated[
        list[str] | None,
        typer.Option(
            "--form",
            help="A prompt (name or TOML file) for both scores, P_QL+P_RC, a folder, graded or listwise. Can be repeated; "
            "none: all that the teacher can.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many queries a set, drawn at random.")] = 100,
    candidates: Annotated[int, typer.Option(min=2, help="The start model's first N passages are put in order.")] = 20,
    passage_tokens: Annotated[int, typer.Option(min=16, help="The teacher reads so much of a passage.")] = 256,
    precision: Annotated[
        Literal["auto", "int8", "full"], typer.Option(help="Of the teacher's linear layers.")
    ] = "auto",
    window: Annotated[int, typer.Option(min=2, help="Passages that are put in order in one request (listwise).")] = 20,
    thinking_tokens: Annotated[int, typer.Option(min=0, help="That a reasoning model on a server may think for.")] = 0,
    split: Split = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of queries and the intervals.")] = 0,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """What a teacher is worth: its order of the start model's candidates on labelled sets. Exit code 3 if it does harm.

    Answers are kept as they come: run a check that was stopped again, and it goes on where it was.
    """
    from gecko.evaluation.sets import load_set
    from gecko.evaluation.teacher.value import ValueConfig
    from gecko.evaluation.teacher.value import check_teacher as measure
    from gecko.report.teacher import form_rows, value_markdown, value_rows, value_verdict

    config = ValueConfig(
        forms=tuple(forms or ()),
        queries=limit,
        candidates=candidates,
        passage_tokens=passage_tokens,
        precision=precision,
        window=window,
        thinking_tokens=thinking_tokens,
        seed=seed,
    )
    result = measure([load_set(spec, split) for spec in sets], llm, start, config, Terminal())
    if as_json:
        print(json.dumps(result))
    elif as_markdown:
        print(value_markdown(result), end="")
    else:
        print_rows(value_rows(result), ends=lambda row: row[2] == "rrf+retriever")
        if len(result["forms"]) > 1:
            print_rows(form_rows(result), 160)
        print(value_verdict(result))
    if result["best"]["verdict"] == "does harm":
        raise typer.Exit(HARM)


def testset(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder of the test set; it is made.")],
    queries: Annotated[
        str | None, typer.Option(help="A log, a query a line, or a table; none: the run's held-out queries.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="Pool its ranking, too: a folder, hf:NAME or minilm. Can be repeated."),
    ] = None,
    depth: Annotated[int, typer.Option(help="Passages of each ranking that are judged.")] = 10,
    limit: Annotated[int, typer.Option(help="At most so many queries, drawn at random.")] = 300,
    *,
    options: RunOptions,
) -> None:
    """Make a test set of a run's corpus: its teacher judges what BM25, the start model and the student find.

    Judgements are kept in the run: stopped, it goes on where it was, and with another model only new pairs are judged.
    """
    from gecko.stages.testset import Request, write

    request = Request(out, queries, tuple(models or ()), depth, limit)
    with on_run(options) as pipeline:
        request = replace(request, kept=_kept_in(pipeline.ui))
        found = write(pipeline, request)
    print(
        f"{out}: {len(found.queries):,} queries, {found.pairs:,} judged pairs, kept apart as unanswered: "
        f"{len(found.unanswered):,}; compare models with: gecko eval MODEL {out} --baseline MODEL"
    )


def ablate(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders; several give one table over the test sets of all.", metavar="RUN..."),
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where the tables go; those of one run to RUN/ablate.")
    ] = None,
    cells: Annotated[
        list[str] | None,
        typer.Option(help="A group (selection, temperature, ...) or a cell as group/name; can be repeated."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Trainings a cell.")] = 3,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each; otherwise the run's.")] = None,
    evals: Evals = None,
    form: Annotated[
        InputFormat | None, typer.Option("--format", help="The input format; otherwise the one the run kept.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, list the cells, and stop.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The paper's ablations on the labels of runs: no language model is asked. Stopped, it goes on where it was."""
    from gecko.evaluation.ablate import Options
    from gecko.evaluation.study import study
    from gecko.report.ablation import cell_rows, dim_rows, reranker_rows, write_ablation

    if len(runs) > 1 and out is None:
        raise ConfigError(f"{len(runs)} runs make one table; name the folder that it goes to with --out")
    options = Options(tuple(cells or ()), seeds, epochs, tuple(evals or ()), form)
    with ExitStack() as held:
        ablations = _ablations(runs, options, held)
        if dry_run:
            print("\n".join(cell.label for cell in ablations[0].cells))
            return
        result, folder = study(ablations), out or ablations[0].folder
        write_ablation(result, folder)
    if as_json:
        print(json.dumps(result))
        return
    for lines in (cell_rows(result), reranker_rows(result), dim_rows(result)):
        if len(lines) > 1:
            print_rows(lines, 160)
    print(f"table: {folder / 'ablation.md'}   plot: {folder / 'ablation.svg'}")


def _ablations(runs: list[Path], options: "Options", held: ExitStack) -> "list[Ablation]":
    """The ablation of each run, which is held until the stack's end, and what is said to be left of it."""
    from gecko.evaluation.ablate import Ablation
    from gecko.run.folder import Run
    from gecko.stages.runner import Pipeline

    ui = Terminal()
    opened = [held.enter_context(Run(path, say=ui.say)) for path in runs]
    ablations = [Ablation(run, options, ui, Pipeline(run).released) for run in opened]
    for one in ablations:
        left = one.estimate()
        ui.say(
            f"{one.run.path}: {left.trainings} trainings to do, about {duration(left.seconds)}; {left.kept} are there already"
        )
    return ablations
