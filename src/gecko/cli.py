"""The command line. Thin: it reads options, calls the library and prints; heavy imports are inside the commands."""

import atexit
import io
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from gecko import __version__
from gecko.config.load import load_config
from gecko.config.run import DEFAULT_BUDGET, RunConfig
from gecko.core.arguments import one_of
from gecko.core.counts import left_out
from gecko.core.errors import ConfigError, GeckoError
from gecko.core.progress import Terminal
from gecko.run.engine import LOCAL, Executor
from gecko.run.folder import Run


class _Commands(TyperGroup):
    """The commands; to typer, a file that ends too early is the end of what a user types."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise RuntimeError(f"a file ends too early ({error})") from error


app = typer.Typer(
    name="gecko",
    cls=_Commands,
    help="Distil a language model's relevance judgement into a compact text-embedding model, on your own passages.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

DEMO = Path("runs/demo")
STOPPED = 130  # the exit code of what Ctrl-C ends

RunArg = Annotated[Path, typer.Argument(help="The run folder.", metavar="RUN")]
Recipe = Annotated[Path | None, typer.Option("-c", "--config", help="A recipe: TOML with settings.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="One setting, as section.key=value. Can be repeated.")]
Llm = Annotated[
    str | None,
    typer.Option(help="The teacher: default, default-small, smollm2, hf:NAME, gguf:PATH, openai:URL#MODEL or fake."),
]
Backbone = Annotated[str | None, typer.Option(help="The start model: minilm, hf:NAME or a folder.")]
Budget = Annotated[str | None, typer.Option(help="Teacher time or tokens: 20m, 2h, 300000tok.")]
Force = Annotated[
    bool, typer.Option("--force", help="Go on with a refused teacher, or in a folder made with other settings.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Read and embed the corpus, say what each stage would cost, and stop.")
]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")]
EngineName = Annotated[str, typer.Option("--engine", help="Where the work is done: local, or ray.")]
Address = Annotated[
    str | None, typer.Option(help="Of a Ray cluster, or auto; none: one of this machine's own, for this call.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Ray workers; none: one a GPU, and without GPUs one a machine.")
]
_ClusterOptions = tuple[str, str | None, int | None]  # the three above
Evals = Annotated[list[str] | None, typer.Option("--eval", help="A BEIR folder (DIR or DIR@SPLIT) to measure on.")]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(f"gecko {__version__}")
        raise typer.Exit


@app.command()
def demo(
    budget: Budget = None, llm: Llm = None, backbone: Backbone = None, sets: Sets = None, force: Force = False
) -> None:
    """The main job on the embedded default: the standard library's documentation, a 1.5B teacher, MiniLM."""
    from gecko.fret.release import STDLIB, shipped

    base: dict[str, Any] = {"corpus": {"sources": ["stdlib"]}, "evaluate": {"sets": ["stdlib-questions"]}}
    live = DEFAULT_BUDGET
    if STDLIB in shipped():
        # In half an hour: the rows that ship take the time of the second format, of which native was measured to be kept,
        # and of half of the rows that the teacher writes live. Queries that name their passage's title teach to match names.
        live = "10m"
        base |= {
            "select": {"released": [STDLIB], "max_title": 0.5},
            "train": {"formats": ["native"], "epochs": 2},
        }
    _distil(DEMO, load_config(None, sets or (), _given(base, budget, llm, backbone), live), force=force, dry_run=False)


@app.command()
def distill(
    corpus: Annotated[list[str], typer.Argument(help="Files, folders, or `stdlib`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The run folder.")],
    config: Recipe = None,
    sets: Sets = None,
    llm: Llm = None,
    backbone: Backbone = None,
    budget: Budget = None,
    evals: Evals = None,
    queries: Annotated[
        list[str] | None,
        typer.Option(help="Queries that people asked, without labels: a text file of one a line, or a table."),
    ] = None,
    dry_run: DryRun = False,
    force: Force = False,
    engine: EngineName = "local",
    address: Address = None,
    workers: Workers = None,
) -> None:
    """From your passages to a better embedding model, the dataset that taught it, and a report."""
    base: dict[str, Any] = {"corpus": {"sources": corpus}}
    if evals:
        base["evaluate"] = {"sets": evals}
    if queries:
        base["asked"] = {"sources": queries}
    settings = load_config(config, sets or (), _given(base, budget, llm, backbone))
    _distil(out, settings, force=force, dry_run=dry_run, cluster=(engine, address, workers))


def _given(base: dict[str, Any], budget: str | None, llm: str | None, backbone: str | None) -> dict[str, Any]:
    options = {"budget": budget, "llm": llm, "backbone": backbone}
    return base | {key: value for key, value in options.items() if value is not None}


def _distil(
    folder: Path, config: RunConfig, *, force: bool, dry_run: bool, cluster: _ClusterOptions = ("local", None, None)
) -> None:
    from gecko.stages.runner import Pipeline
    from gecko.stages.runner import distill as run_all

    ui, began = Terminal(), time.perf_counter()
    with _engine(*cluster, ui) as engine, Run(folder, config, force=force, keep=not dry_run, say=ui.say) as run:
        if dry_run:
            print(Pipeline(run, ui, force=force, engine=engine).estimate())
            return
        result = run_all(run, ui, force=force, engine=engine)
        _closing(run, result)
        print(f"model: {folder / 'model'}   report: {folder / 'report.html'}   {time.perf_counter() - began:.0f} s")


def _left_out(counts: Any, ui: Terminal) -> None:
    """Say what was not read as it stands, where there is such."""
    if said := left_out(counts):
        ui.say(f"of what was read:{said}")


def _print(table: Table, width: int = 120) -> None:
    # A pipe has no width of its own; 80 columns would cut the numbers.
    Console(width=None if sys.stdout.isatty() else width).print(table)


def _closing(run: Run, result: dict[str, Any]) -> None:
    from gecko.report.table import asked_rows, closing_rows, origins, verdict

    header, *rows = closing_rows(result)
    table = Table(*header)
    for row in rows:
        table.add_row(*map(escape, row))
    _print(table)
    seconds = sum(run.finished(stage).seconds for stage in ("generate", "relabel"))
    selected = run.finished("select")
    own, released = origins(selected)
    print(verdict(result, own, seconds, released, asked_rows(selected)))


@contextmanager
def _engine(name: str, address: str | None, workers: int | None, ui: Terminal) -> Iterator[Executor]:
    """What ``--engine``, ``--address`` and ``--workers`` ask for."""
    if one_of("--engine", name, ("local", "ray")) == "ray":
        from gecko.run.ray import Cluster

        with Cluster(address, workers, say=ui.say) as cluster:
            yield cluster
        return
    if given := [option for option, value in (("--address", address), ("--workers", workers)) if value is not None]:
        raise ConfigError(f"{', '.join(given)}: for --engine ray only")
    yield LOCAL


@contextmanager
def _stage(
    path: Path,
    sets: list[str] | None,
    force: bool,
    recipe: Path | None = None,
    *,
    asks: bool = True,
    cluster: _ClusterOptions = ("local", None, None),
) -> Iterator[Any]:
    """A pipeline on an existing run; ``--set`` and a recipe change its settings for good."""
    from gecko.config.load import change_config
    from gecko.stages import user_queries
    from gecko.stages.runner import Pipeline

    ui = Terminal()
    with _engine(*cluster, ui) as engine:
        with Run(path, say=ui.say) as run:
            config = change_config(run.config, recipe, sets or ()) if sets or recipe else None
            before = run.config
        with Run(path, config, force=True, same_prompts=True, say=ui.say) as run:
            pipeline = Pipeline(run, ui, force=force, asks=asks, engine=engine)
            if run.config.asked != before.asked:
                user_queries.make(pipeline, again=True)
            if run.config.corpus != before.corpus:
                pipeline.ingest()
            yield pipeline


def _made_stage(stage: str, path: Path, sets: list[str] | None, force: bool, cluster: _ClusterOptions) -> None:
    with _stage(path, sets, force, cluster=cluster) as pipeline:
        pipeline.through(stage)
        _say_rows(pipeline.run.finished(stage))


def _say_rows(manifest: Any) -> None:
    drops = ", ".join(f"{count} {reason}" for reason, count in manifest.drops.items())
    print(f"{manifest.stage}: {manifest.rows:,} rows" + (f"; dropped: {drops}" if drops else ""))


@app.command()
def ingest(
    run: RunArg,
    sets: Sets = None,
    force: Force = False,
    engine: EngineName = "local",
    address: Address = None,
    workers: Workers = None,
) -> None:
    """Read the corpus of a run."""
    with _stage(run, sets, force, cluster=(engine, address, workers)) as pipeline:
        _say_rows(pipeline.ingest())


@app.command()
def generate(
    run: RunArg,
    sets: Sets = None,
    force: Force = False,
    engine: EngineName = "local",
    address: Address = None,
    workers: Workers = None,
) -> None:
    """Check the teacher, plan the budget and write the queries."""
    _made_stage("generate", run, sets, force, (engine, address, workers))


@app.command()
def mine(
    run: RunArg,
    sets: Sets = None,
    force: Force = False,
    engine: EngineName = "local",
    address: Address = None,
    workers: Workers = None,
) -> None:
    """Find the candidates of each query."""
    _made_stage("mine", run, sets, force, (engine, address, workers))


@app.command()
def relabel(
    run: RunArg,
    sets: Sets = None,
    force: Force = False,
    engine: EngineName = "local",
    address: Address = None,
    workers: Workers = None,
) -> None:
    """Score each candidate with the teacher."""
    _made_stage("relabel", run, sets, force, (engine, address, workers))


@app.command()
def select(run: RunArg, sets: Sets = None, force: Force = False) -> None:
    """Choose positives and negatives from the scores; no teacher is asked, unless --set changes what it was asked."""
    with _stage(run, sets, force, asks=bool(sets)) as pipeline:
        pipeline.through("select")
        _say_rows(pipeline.make("select"))


@app.command()
def train(run: RunArg, config: Recipe = None, sets: Sets = None, force: Force = False) -> None:
    """Train on the rows of a run, and on those of its mixture if it has one."""
    with _stage(run, sets, force, config) as pipeline:
        pipeline.through("select")
        print(pipeline.train())


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option("-o", "--out", help="The run folder.")],
    pairs: Annotated[
        list[str] | None, typer.Argument(help="Files of pairs (query, title, text), or folders of them.")
    ] = None,
    config: Recipe = None,
    sets: Sets = None,
    backbone: Backbone = None,
    force: Force = False,
) -> None:
    """The paper's first stage: train on pairs with in-batch negatives, each batch from one source."""
    from gecko.stages.pretrain import pretrain as run_all

    base: dict[str, Any] = {"pretrain": {"sources": pairs}} if pairs else {}
    settings = load_config(config, sets or (), _given(base, None, None, backbone))
    ui = Terminal()
    with Run(out, settings, force=force, say=ui.say) as run:
        print(run_all(run, ui))


@app.command()
def merge(
    models: Annotated[list[str], typer.Argument(help="Two models or more from one start: folders, hf:NAME or minilm.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder of the merged model.")],
    weight: Annotated[
        list[float] | None, typer.Option(help="How much a model counts; once for each, or not at all.")
    ] = None,
) -> None:
    """Average the weights of several models that were trained from the same start."""
    from gecko.training.merge import merge_models

    merge_models(models, out, weight or ())
    print(out)


@app.command()
def evaluate(run: RunArg, evals: Evals = None, sets: Sets = None, force: Force = False) -> None:
    """Measure the trained model of a run."""
    chosen = [*(sets or ()), *([f"evaluate.sets={evals}"] if evals else ())]
    with _stage(run, chosen, force) as pipeline:
        pipeline.through("select")
        _closing(pipeline.run, pipeline.evaluate())


@app.command()
def report(
    run: RunArg,
    figures: Annotated[
        Path | None, typer.Option("--plots", help="A folder for its plots, an SVG file each.", metavar="DIR")
    ] = None,
) -> None:
    """Write the report of a run again."""
    with _stage(run, None, False) as pipeline:
        print(pipeline.report(figures))


@app.command()
def push(
    run: RunArg,
    repo: Annotated[str, typer.Argument(help="The repository on the hub, OWNER/NAME.", metavar="REPO")],
    dataset: Annotated[bool, typer.Option("--dataset", help="Send the rows instead of the model.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be sent.")] = False,
    sets: Sets = None,
) -> None:
    """Send the model of a run, or its rows, to the Hugging Face Hub, with a card."""
    from gecko.stages.publish import push as send

    with _stage(run, sets, False) as pipeline:
        send(pipeline, repo, "dataset" if dataset else "model", private=private, dry_run=dry_run)


@app.command()
def inspect(
    run: RunArg,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What the rows of a run are like, in numbers; the report has them, too, and rows drawn at random."""
    import json

    from gecko.report.inspect import lines, statistics

    with _stage(run, None, False) as pipeline:
        found = statistics(pipeline)
    if as_json:
        print(json.dumps(found))
        return
    table = Table("of the run", "")
    for name, value in lines(found):
        table.add_row(escape(name), escape(value))
    _print(table)


@app.command()
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
    with _stage(run, None, False) as pipeline:
        pipeline.through("select")
        rows = pipeline.run.read("select", Example)
        chosen = write_prompt(rows, pipeline.labels, out, count, pipeline.config.seed)
    for row in chosen:
        print(f"{row.query} ← {row.positive.title or row.positive.text[:60]}")
    print(out)


@app.command("eval")
def evaluate_model(
    model: Annotated[str, typer.Argument(help="A folder, hf:NAME or minilm.")],
    sets: Annotated[
        list[str],
        typer.Argument(
            help="BEIR folders or folders of task sets, DIR or DIR@SPLIT; mteb:NAME, a task or a benchmark; stdlib-questions."
        ),
    ],
    split: Annotated[str | None, typer.Option(help="The split where none is named with @SPLIT.")] = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    as_markdown: AsMarkdown = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither use nor keep embeddings of earlier calls.")
    ] = False,
) -> None:
    """Measure any model on labelled sets, with BM25 and a baseline beside it."""
    import json

    from gecko.encoder import load_encoder
    from gecko.evaluation.cache import KeptEmbeddings
    from gecko.evaluation.sets import eval_notes, eval_table, evaluate_sets, load_sets
    from gecko.report.text import markdown_table
    from gecko.weights.cache import cache_folder

    ui = Terminal()
    loaded = load_sets(sets, split, tasks or ())
    folder = None
    if not no_cache:
        try:
            folder = cache_folder() / "embeddings"
        except ConfigError as error:
            ui.say(f"embeddings are not kept: {error}")
    encoder = load_encoder(model, pad_token=pad_token)
    models = {"model": KeptEmbeddings(encoder.truncated(dim) if dim is not None else encoder, folder)}
    if baseline is not None:
        models["baseline"] = KeptEmbeddings(load_encoder(baseline, pad_token=pad_token), folder)
    result = evaluate_sets(loaded, models, ui)
    if as_json:
        print(json.dumps(result))
        return
    if as_markdown:
        print("\n\n".join([markdown_table(eval_table(result)), *eval_notes(result)]))
        return
    header, *rows = eval_table(result)
    table = Table()
    for place, name in enumerate(header):
        table.add_column(name, overflow="fold", min_width=24 if place == 0 else None)
    for row in rows:
        table.add_row(*map(escape, row))
    _print(table, 160)
    for note in eval_notes(result):
        print(note)


@app.command("check-teacher")
def check_teacher(
    sets: Annotated[list[str], typer.Argument(help="BEIR folders, DIR or DIR@SPLIT, or `stdlib-questions`.")],
    llm: Annotated[str, typer.Option(help="The teacher, an LLM SPEC as for distill.")] = "default",
    backbone: Annotated[str, typer.Option(help="The start model, whose order is the baseline.")] = "minilm",
    forms: Annotated[
        list[str] | None,
        typer.Option(
            "--form", help="A prompt (name or TOML file) for both scores, P_QL+P_RC, or a folder. Can be repeated."
        ),
    ] = None,
    queries: Annotated[int, typer.Option(min=1, help="At most so many queries a set, drawn at random.")] = 100,
    candidates: Annotated[int, typer.Option(min=2, help="The start model's first N passages are put in order.")] = 20,
    passage_tokens: Annotated[int, typer.Option(min=16, help="The teacher reads so much of a passage.")] = 256,
    precision: Annotated[
        Literal["auto", "int8", "full"], typer.Option(help="Of the teacher's linear layers.")
    ] = "auto",
    split: Annotated[str | None, typer.Option(help="The split where none is named with @SPLIT.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of queries and the intervals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """What a teacher is worth: its order of the start model's candidates on labelled sets. Exit code 1 if it does harm.

    Answers are kept as they come: run a check that was stopped again, and it goes on where it was.
    """
    import json

    from gecko.evaluation.sets import load_set
    from gecko.evaluation.teacher.value import ValueConfig
    from gecko.evaluation.teacher.value import check_teacher as measure
    from gecko.report.teacher import form_rows, value_markdown, value_rows, value_verdict

    config = ValueConfig(
        forms=tuple(forms or ("relevance",)),
        queries=queries,
        candidates=candidates,
        passage_tokens=passage_tokens,
        precision=precision,
        seed=seed,
    )
    result = measure([load_set(spec, split) for spec in sets], llm, backbone, config, Terminal())
    if as_json:
        print(json.dumps(result))
    elif as_markdown:
        print(value_markdown(result), end="")
    else:
        header, *rows = value_rows(result)
        table = Table(*header)
        for row in rows:
            table.add_row(*map(escape, row), end_section=row[2] == "rrf+retriever")
        _print(table)
        if len(result["forms"]) > 1:
            header, *rows = form_rows(result)
            table = Table(*header)
            for row in rows:
                table.add_row(*map(escape, row))
            _print(table, 160)
        print(value_verdict(result))
    if result["best"]["verdict"] == "does harm":
        raise typer.Exit(1)


ModelArg = Annotated[str, typer.Argument(help="A folder, hf:NAME or minilm.", metavar="MODEL")]
Task = Annotated[
    str, typer.Option(help="What the vectors are for: RETRIEVAL_DOCUMENT, CLUSTERING, …, or a task in words.")
]
Dim = Annotated[int | None, typer.Option(help="Keep only so many dimensions.")]
PrecisionOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or int8.")]


@app.command()
def embed(
    model: ModelArg,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders or `stdlib`; none, or -: standard input, one text a line."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="A folder for parquet shards; none: JSON lines on standard output."),
    ] = None,
    task: Task = "RETRIEVAL_DOCUMENT",
    dim: Dim = None,
    output: Annotated[str, typer.Option(help="float32, int8 or binary.")] = "float32",
    split: Annotated[
        bool,
        typer.Option("--split", help="Make passages of long texts, and drop repeated ones, as distill and search do."),
    ] = False,
    precision: PrecisionOption = "auto",
    engine: EngineName = "local",
    address: Address = None,
    workers: Workers = None,
) -> None:
    """Turn texts into vectors: any source of gecko distill, or lines of standard input.

    A text is one vector, of as much of it as the model reads; --split gives one a passage.
    """
    import json
    from itertools import chain
    from typing import get_args

    from gecko.config.stages import CorpusConfig
    from gecko.core.counts import Counts
    from gecko.corpus import ingest as read_corpus
    from gecko.corpus.readers import Reader, read_source
    from gecko.encoder import load
    from gecko.encoder.backend import Precision
    from gecko.encoder.vectors import Output
    from gecko.search import BulkConfig, embed_rows, embed_to_folder, read_lines
    from gecko.stdin import Lines, standard_input

    config = BulkConfig(task=task, dim=dim, output=one_of("--output", output, get_args(Output)))
    specs, counts, ui = inputs or ["-"], Counts(), Terminal()
    lines = Lines(standard_input("files or folders, or lines from a pipe")) if "-" in specs else None
    embedder = load(model, precision=one_of("--precision", precision, get_args(Precision)))
    if split and "-" in specs:
        raise ConfigError("--split: lines of standard input are taken as they are; give files or folders")
    if out is None and one_of("--engine", engine, ("local", "ray")) != "local":
        raise ConfigError(f"--engine {engine}: give a folder with -o")
    if split:
        rows = read_corpus(CorpusConfig(sources=specs), counts)
    else:
        reader = Reader(counts=counts)
        rows = chain.from_iterable(
            read_lines(lines) if spec == "-" and lines else read_source(spec, reader) for spec in specs
        )
    with _engine(engine, address, workers, ui) as used:
        if out is not None:
            began = time.perf_counter()
            manifest = embed_to_folder(embedder, rows, out, config, ui, used)
            ui.say(f"{manifest.rows:,} vectors in {out}   {time.perf_counter() - began:.0f} s")
        else:
            for batch, vectors in embed_rows(embedder, rows, config, *([lines.pause] if lines else [])):
                for row, vector in zip(batch, vectors, strict=True):
                    print(json.dumps({"id": row.id, "embedding": vector.tolist()}))
                print(end="", flush=True)  # who asks line by line waits for it
    _left_out(counts, ui)


@app.command()
def search(
    model: ModelArg,
    corpus: Annotated[list[str], typer.Argument(help="Files, folders or `stdlib`.")],
    query: Annotated[list[str] | None, typer.Option("-q", "--query", help="A query. Can be repeated.")] = None,
    index: Annotated[Path | None, typer.Option(help="The index folder; none: one in the user's cache.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many passages.")] = 10,
    method: Annotated[str, typer.Option(help="hybrid (vectors and BM25, fused), dense or bm25.")] = "hybrid",
    task: Annotated[str, typer.Option(help="What the queries are for.")] = "RETRIEVAL_QUERY",
    kind: Annotated[str, typer.Option(help="flat (exact), hnsw, or auto: by the size of the corpus.")] = "auto",
    store: Annotated[str, typer.Option(help="float32, int8, binary, or auto.")] = "auto",
    dim: Dim = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a query.")] = False,
) -> None:
    """Search a corpus: the index is built once; queries come from --query, the terminal or standard input."""
    import json
    from dataclasses import asdict
    from typing import get_args

    from gecko.config.stages import CorpusConfig
    from gecko.core.counts import Counts
    from gecko.core.text import half_of_pair
    from gecko.corpus import ingest as read_corpus
    from gecko.encoder import load
    from gecko.search import IndexConfig, build_index
    from gecko.search.index import Kind, Method, Store, default_folder, sources_identity
    from gecko.stdin import standard_input, typed_queries
    from gecko.weights.cache import cache_folder

    ui = Terminal()
    how = one_of("--method", method, get_args(Method))
    if k < 1:
        raise ConfigError(f"k = {k}: give at least 1")
    for text in query or ():
        if not text.strip():
            raise ConfigError(f"--query {text!r} is blank; write what to look for")
        if half := half_of_pair(text):  # the terminal's bytes were not UTF-8
            raise ConfigError(f"--query {text!a} holds {half}")
    config = IndexConfig(
        kind=one_of("--kind", kind, get_args(Kind)), store=one_of("--store", store, get_args(Store)), dim=dim
    )
    for source in corpus:
        if index is not None and index.absolute().is_relative_to(Path(source).expanduser().absolute()):
            raise ConfigError(
                f"--index {index} lies in the corpus folder {source}, whose files it would be; give one outside"
            )
    asked = query or typed_queries(standard_input("queries with --query, or lines from a pipe"), ui.say)
    if index is None:
        cache_folder()  # refused before a model is loaded
    embedder = load(model)
    sources = sources_identity(corpus)
    folder = index or default_folder(embedder, sources, config)
    counts = Counts()
    passages = read_corpus(CorpusConfig(sources=corpus), counts)
    with build_index(embedder, passages, folder, config, ui, sources=sources) as built:
        _left_out(counts, ui)
        ui.say(f"{len(built):,} passages, {built.manifest.kind} index, {built.manifest.store} vectors, in {folder}")
        for text in asked:
            hits = built.search([text], k, method=how, task=task)[0]
            if as_json:
                print(
                    json.dumps({"query": text, "hits": [asdict(hit) for hit in hits]}, ensure_ascii=False), flush=True
                )
                continue
            table = Table("", "score", "passage", title=escape(text), show_lines=False)
            for hit in hits:
                shown = " ".join(hit.passage.text.split())
                title = f"[bold]{escape(hit.passage.title)}[/bold]\n" if hit.passage.title else ""
                table.add_row(str(hit.rank), f"{hit.score:.3f}", title + escape(shown[:160]))
            _print(table)


@app.command()
def export(
    model: ModelArg,
    to: Annotated[str, typer.Option(help="onnx or openvino.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A new folder.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="8-bit weights, and activations rounded token by token.")
    ] = False,
) -> None:
    """Write a model as a graph, token ids in and unit vectors out; gecko reads the folder as a model."""
    from typing import get_args

    from gecko.encoder.export import Target, export_model

    card = export_model(model, out, one_of("--to", to, get_args(Target)), int8=int8)
    print(
        f"{out}: {card.target}, {'int8' if card.int8 else 'float32'}, {card.dim} dimensions; use it with: gecko embed {out}"
    )


@app.command()
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
        str | None, typer.Option("--format", help="native or unified; otherwise the one the run kept.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, list the cells, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """The paper's ablations on the labels of runs: no language model is asked. Stopped, it goes on where it was."""
    import json
    from contextlib import ExitStack

    from gecko.evaluation.ablate import Ablation, Options
    from gecko.evaluation.study import study
    from gecko.report.ablation import cell_rows, dim_rows, reranker_rows, write_ablation
    from gecko.report.text import duration
    from gecko.stages.runner import Pipeline

    if form is not None and form not in ("native", "unified"):
        raise ConfigError(f"--format {form!r}: give native or unified")
    if len(runs) > 1 and out is None:
        raise ConfigError(f"{len(runs)} runs make one table; name the folder that it goes to with --out")
    ui = Terminal()
    options = Options(tuple(cells or ()), seeds, epochs, tuple(evals or ()), form)  # type: ignore[arg-type]
    with ExitStack() as stack:
        held = [stack.enter_context(Run(run, say=ui.say)) for run in runs]
        ablations = [Ablation(run, options, ui, Pipeline(run).released) for run in held]
        for one in ablations:
            left = one.estimate()
            ui.say(
                f"{one.run.path}: {left.trainings} trainings to do, about {duration(left.seconds)}; {left.kept} are there "
                "already"
            )
        if dry_run:
            print("\n".join(cell.label for cell in ablations[0].cells))
            return
        result, folder = study(ablations), out or ablations[0].folder
        write_ablation(result, folder)
    if as_json:
        print(json.dumps(result))
        return
    for header, *rows in (cell_rows(result), reranker_rows(result), dim_rows(result)):
        if not rows:
            continue
        table = Table(*header)
        for row in rows:
            table.add_row(*map(escape, row))
        _print(table, 160)
    print(f"table: {folder / 'ablation.md'}   plot: {folder / 'ablation.svg'}")


@app.command()
def serve(
    model: Annotated[str | None, typer.Argument(help="A folder, hf:NAME or minilm.")] = None,
    start: Annotated[str | None, typer.Option(help="A second model, shown beside it on the page.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on. Any but loopback needs API keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.", min=0, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="The model's name in requests; none: its folder's.")] = None,
    corpus: Annotated[
        list[str] | None, typer.Option(help="Passages for the page to rank: a file, a folder or `stdlib`.")
    ] = None,
    precision: PrecisionOption = "auto",
    api_keys: Annotated[Path | None, typer.Option(help="A file of hashed API keys; also: GECKO_API_KEYS.")] = None,
    new_key: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Make an API key, show it, add its hash to the file, and stop.")
    ] = None,
    log_requests: Annotated[bool, typer.Option(help="Log a line a request: method, route, status, time.")] = False,
    sets: Annotated[list[str] | None, typer.Option("--set", help="A limit, as key=value. Can be repeated.")] = None,
) -> None:
    """Serve a model over HTTP: OpenAI's and Google's embedding APIs, metrics, and a page to try it on."""
    from gecko.serving.config import make_serve_config
    from gecko.serving.keys import load_keys
    from gecko.serving.keys import new_key as make_key

    if new_key is not None:
        if api_keys is None:
            raise ConfigError("--new-key needs --api-keys FILE, to which the key's hash is added")
        print(make_key(new_key, api_keys))
        return
    if model is None:
        raise ConfigError("no model; give a folder, hf:NAME or minilm")
    from typing import get_args

    from gecko.encoder.backend import Precision

    try:
        from gecko.serving.app import Service
        from gecko.serving.models import load_models
        from gecko.serving.search import embed_corpus
        from gecko.serving.server import bind, check_open
        from gecko.serving.server import serve as run
    except ImportError as error:
        raise ConfigError(f"gecko serve needs more packages ({error}): pip install 'gecko-embed[serve]'") from error
    ui, config, keys = Terminal(), make_serve_config(sets or ()), load_keys(api_keys)
    check_open(host, keys)
    listener = bind(host, port)
    passages = []
    if corpus:
        from gecko.config.stages import CorpusConfig
        from gecko.core.counts import Counts
        from gecko.corpus import ingest as read_corpus

        counts = Counts()
        passages = list(read_corpus(CorpusConfig(sources=corpus), counts))
        _left_out(counts, ui)
    models = load_models(model, start, name, one_of("--precision", precision, get_args(Precision)))
    search = embed_corpus(models, passages, ui) if passages else None
    run(Service(models, config, keys, search), listener, ui.say, log_requests=log_requests)


@contextmanager
def _flushed() -> Iterator[None]:
    """Standard output is written to its end; a reader that has gone away is no error."""
    try:
        yield
    finally:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the interpreter's end
            if isinstance(error, BrokenPipeError):
                sys.exit(1)
            raise


def main() -> None:
    """Entry point: an error is one message and exit code 1; ``GECKO_TRACEBACK=1`` shows where it came from."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":  # whatever a terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        with _flushed():
            app()
    except Exception as error:
        from gecko.unexpected import sentence, wants_traceback

        if wants_traceback():
            traceback.print_exc()
        said = str(error) if isinstance(error, GeckoError) else sentence(error)
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {said}", markup=False, style="red")
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as end:
        # The library below makes an exit of Ctrl-C, without a word.
        if isinstance(end, SystemExit) and end.code != STOPPED:
            raise
        Console(stderr=True).print("stopped; run the same command again to continue")
        atexit._run_exitfuncs()
        os._exit(STOPPED)  # no thread is waited for, and the libraries need seconds to take themselves down
