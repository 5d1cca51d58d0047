"""What is done with a model: vectors of texts, a search, a graph, a mean of several."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gecko.cli.options import (
    BM25Weight,
    EngineOptions,
    Kind,
    Method,
    Output,
    PrecisionOption,
    Quantize,
    Side,
    Store,
    Target,
)
from gecko.cli.output import print_table, say_left_out
from gecko.cli.stdin import Lines, standard_input, typed_queries
from gecko.core.errors import ConfigError
from gecko.core.progress import Terminal
from gecko.core.text import half_of_pair

if TYPE_CHECKING:
    from gecko.core.records import Passage
    from gecko.encoder import Embedder
    from gecko.search import BulkConfig, Hit

ModelArg = Annotated[str, typer.Argument(help="A folder, hf:NAME or minilm.", metavar="MODEL")]
Task = Annotated[
    str, typer.Option(help="What the vectors are for: RETRIEVAL_DOCUMENT, CLUSTERING, …, or a task in words.")
]
Dim = Annotated[int | None, typer.Option(help="Keep only so many dimensions.")]


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
    output: Annotated[Output, typer.Option(help="How a number of a vector is kept.")] = "float32",
    chunk: Annotated[
        bool,
        typer.Option(
            "--chunk", help="Cut texts over 4000 characters into 2000 at most, drop repeated ones, as search does."
        ),
    ] = False,
    with_text: Annotated[
        bool, typer.Option("--with-text", help="Write title, text and source beside a vector.")
    ] = False,
    precision: PrecisionOption = "auto",
    *,
    engine: EngineOptions,
) -> None:
    """Turn texts into vectors: any source of gecko distill, or lines of standard input.

    A text is one vector, of as much of it as the model reads; --chunk gives one a passage.
    """
    from gecko.core.counts import Counts
    from gecko.encoder import load
    from gecko.search import BulkConfig, embed_to_folder

    config = BulkConfig(task=task, dim=dim, output=output, with_text=with_text)
    specs, counts, ui = inputs or ["-"], Counts(), Terminal()
    lines = Lines(standard_input("files or folders, or lines from a pipe")) if "-" in specs else None
    embedder = load(model, precision=precision)
    if chunk and lines:
        raise ConfigError("--chunk: lines of standard input are taken as they are; give files or folders")
    if out is None and engine.on_ray:
        raise ConfigError(f"--engine {engine.engine}: give a folder with -o")
    rows = _read(specs, lines, counts, chunk=chunk)
    with engine.executor(ui) as used:
        if out is not None:
            began = time.perf_counter()
            manifest = embed_to_folder(embedder, rows, out, config, ui, used)
            ui.say(f"{manifest.rows:,} vectors in {out}   {time.perf_counter() - began:.0f} s")
        else:
            _print_vectors(embedder, rows, config, lines)
    say_left_out(counts, ui)


def _read(specs: Sequence[str], lines: Lines | None, counts: Any, *, chunk: bool) -> "Iterable[Passage]":
    """The texts of all sources, read as they are asked for; ``-`` stands for the lines."""
    from gecko.config.stages import CorpusConfig
    from gecko.corpus import ingest
    from gecko.corpus.readers import Reader, read_source
    from gecko.search import read_lines

    if chunk:
        return ingest(CorpusConfig(sources=list(specs)), counts)
    reader = Reader(counts=counts)
    return chain.from_iterable(
        read_lines(lines) if spec == "-" and lines else read_source(spec, reader) for spec in specs
    )


def _print_vectors(embedder: "Embedder", rows: "Iterable[Passage]", config: "BulkConfig", lines: Lines | None) -> None:
    from gecko.search import embed_rows

    for batch, vectors in embed_rows(embedder, rows, config, *([lines.pause] if lines else [])):
        for row, vector in zip(batch, vectors, strict=True):
            print(json.dumps({**{name: getattr(row, name) for name in config.fields}, "embedding": vector.tolist()}))
        print(end="", flush=True)  # who asks line by line waits for it


def search(
    model: ModelArg,
    corpus: Annotated[
        list[str], typer.Argument(help="Files, folders or `stdlib`. Over 4000 characters: cut into 2000 at most.")
    ],
    query: Annotated[list[str] | None, typer.Option("-q", "--query", help="A query. Can be repeated.")] = None,
    index: Annotated[Path | None, typer.Option(help="The index folder; none: one in the user's cache.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many passages.")] = 10,
    method: Annotated[Method, typer.Option(help="hybrid: vectors and BM25, fused.")] = "hybrid",
    bm25_weight: BM25Weight = 0.3,
    task: Annotated[str, typer.Option(help="What the queries are for.")] = "RETRIEVAL_QUERY",
    kind: Annotated[Kind, typer.Option(help="Of the index. flat is exact; auto: by the size of the corpus.")] = "auto",
    store: Annotated[Store, typer.Option(help="How the index keeps its vectors.")] = "auto",
    dim: Dim = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only passages of this id, title or source, as FIELD=VALUE; * is any text. Can be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a query.")] = False,
) -> None:
    """Search a corpus: the index is built once and updated; queries come from --query, the terminal or standard input.

    Where the corpus has changed, only new and changed passages are embedded.
    """
    from gecko.config.stages import CorpusConfig
    from gecko.core.counts import Counts
    from gecko.corpus import ingest
    from gecko.encoder import load
    from gecko.search import IndexConfig, build_index
    from gecko.search.index import default_folder, sources_key, sources_state
    from gecko.weights.cache import cache_folder

    ui = Terminal()
    _refuse_queries(query or (), k)
    among = _filter(where or ())
    config = IndexConfig(kind=kind, store=store, dim=dim)
    for source in corpus:
        if index is not None and index.absolute().is_relative_to(Path(source).expanduser().absolute()):
            raise ConfigError(
                f"--index {index} lies in the corpus folder {source}, whose files it would be; give one outside"
            )
    asked = query or typed_queries(standard_input("queries with --query, or lines from a pipe"), ui.say)
    if index is None:
        cache_folder()  # refused before a model is loaded
    embedder, counts = load(model), Counts()
    sources, state = sources_key(corpus), sources_state(corpus)
    folder = index or default_folder(embedder, sources, config)
    passages = ingest(CorpusConfig(sources=corpus), counts)
    show = _print_json if as_json else _print_hits
    with build_index(embedder, passages, folder, config, ui, sources=sources, state=state) as built:
        say_left_out(counts, ui)
        ui.say(f"{len(built):,} passages, {built.manifest.kind} index, {built.manifest.store} vectors, in {folder}")
        if among and not built.matching(among):
            raise ConfigError(f"--where {' --where '.join(where or ())}: no passage has that; look at a hit of --json")
        for text in asked:
            show(text, built.search([text], k, method=method, task=task, where=among, bm25_weight=bm25_weight)[0])


def _filter(where: Iterable[str]) -> dict[str, str]:
    from gecko.search.passages import filtering

    found: dict[str, str] = {}
    for text in where:
        field, equals, value = text.partition("=")
        if not equals or not value:
            raise ConfigError(f"--where {text!r}: write it as FIELD=VALUE, say source=guide.md")
        if field in found:
            raise ConfigError(f"--where {field} is given twice, and a passage has one; give one of them")
        found[field] = value
    filtering(found)
    return found


def _refuse_queries(queries: Iterable[str], k: int) -> None:
    if k < 1:
        raise ConfigError(f"k = {k}: give at least 1")
    for text in queries:
        if not text.strip():
            raise ConfigError(f"--query {text!r} is blank; write what to look for")
        if half := half_of_pair(text):  # the terminal's bytes were not UTF-8
            raise ConfigError(f"--query {text!a} holds {half}")


def _print_json(query: str, hits: "Sequence[Hit]") -> None:
    print(json.dumps({"query": query, "hits": [asdict(hit) for hit in hits]}, ensure_ascii=False), flush=True)


def _print_hits(query: str, hits: "Sequence[Hit]") -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "score", "passage", title=escape(query), show_lines=False)
    for hit in hits:
        shown = " ".join(hit.passage.text.split())
        title = f"[bold]{escape(hit.passage.title)}[/bold]\n" if hit.passage.title else ""
        table.add_row(str(hit.rank), f"{hit.score:.3f}", title + escape(shown[:160]))
    print_table(table)


def export(
    model: ModelArg,
    to: Annotated[Target, typer.Option(help="A kind of graph, or gguf for llama.cpp and Ollama.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A new folder.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="8-bit weights, and activations rounded token by token.")
    ] = False,
    quantize: Annotated[Quantize | None, typer.Option(help="How a gguf file keeps its matrices; none: f16.")] = None,
    tower: Annotated[Side | None, typer.Option(help="Of a model of two towers (--freeze), the one to write.")] = None,
) -> None:
    """Write a model for other programs.

    As onnx or openvino: a graph, token ids in and unit vectors out, which gecko reads as a model, too. As gguf: a BERT-like
    model for llama.cpp and Ollama. The vectors are compared with the model's before the folder appears.
    """
    if to == "gguf":
        from gecko.encoder.gguf_export import FILE, export_gguf

        if int8:
            raise ConfigError("--int8 is for onnx and openvino; write --quantize q8_0")
        made = export_gguf(model, out, quantize or "f16", side=tower)
        print(
            f"{out}: gguf, {made.quantize}, {made.dim} dimensions, at most {made.max_tokens} tokens, least cosine to the "
            f"model {made.cosine:.5f}; use it with: llama-server -m {out / FILE} --embedding"
        )
        return
    if quantize is not None:
        raise ConfigError(f"--quantize {quantize}: for --to gguf only; write --int8")
    from gecko.encoder.export import export_model

    card = export_model(model, out, to, int8=int8, side=tower)
    print(
        f"{out}: {card.target}, {'int8' if card.int8 else 'float32'}, {card.dim} dimensions; use it with: gecko embed {out}"
    )


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
