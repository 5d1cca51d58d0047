"""A model over HTTP."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gecko.cli.options import PrecisionOption
from gecko.cli.output import say_left_out
from gecko.core.errors import ConfigError
from gecko.core.progress import Terminal

if TYPE_CHECKING:
    from gecko.core.records import Passage


def serve(
    model: Annotated[str | None, typer.Argument(help="A folder, hf:NAME or minilm.")] = None,
    start: Annotated[str | None, typer.Option(help="A second model, shown beside it on the page.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on. Any but loopback needs API keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.", min=0, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="The model's name in requests; none: its folder's.")] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            help="Passages for the page: files, folders or `stdlib`; over 4000 characters: cut into 2000 at most."
        ),
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
    try:
        from gecko.serving.app import Service
        from gecko.serving.search import embed_corpus
        from gecko.serving.server import bind, check_open, load_models
        from gecko.serving.server import serve as run
    except ImportError as error:
        raise ConfigError(f"gecko serve needs more packages ({error}): pip install 'gecko-embed[serve]'") from error
    ui, config, keys = Terminal(), make_serve_config(sets or ()), load_keys(api_keys)
    check_open(host, keys)
    listener = bind(host, port)
    passages = _passages(corpus, ui) if corpus else []
    models = load_models(model, start, name, precision)
    search = embed_corpus(models, passages, ui) if passages else None
    run(Service(models, config, keys, search), listener, ui.say, log_requests=log_requests)


def _passages(sources: list[str], ui: Terminal) -> "list[Passage]":
    from gecko.config.stages import CorpusConfig
    from gecko.core.counts import Counts
    from gecko.corpus import ingest

    counts = Counts()
    found = list(ingest(CorpusConfig(sources=sources), counts))
    say_left_out(counts, ui)
    return found
