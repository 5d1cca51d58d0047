"""The routes: OpenAI's and Google's embedding APIs, health, metrics, and the page."""

import asyncio
import base64
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from gecko import __version__
from gecko.core.errors import GeckoError, NonFiniteError
from gecko.core.formats import TASKS
from gecko.encoder.vectors import Vectors, shorten
from gecko.serving.batcher import TURN, Asked, Batcher, ClosedError, Model, QueueFullError
from gecko.serving.config import ServeConfig
from gecko.serving.errors import RequestError, error_response
from gecko.serving.guard import Guard
from gecko.serving.keys import ApiKeys
from gecko.serving.metrics import CONTENT_TYPE, Metrics
from gecko.serving.schemas import (
    DEFAULT_TASK,
    DOCUMENT,
    UNSPECIFIED,
    BatchEmbedContentsRequest,
    EmbedContentRequest,
    EmbeddingsRequest,
    SearchRequest,
    check_task,
    openapi,
    parse,
    split_model,
)
from gecko.serving.search import PassageSearch

log = logging.getLogger("gecko.serving")

Result = TypeVar("Result")

_DRAIN_BYTES = 128 * 1024 * 1024  # of a body that is too large, read and dropped so that its sender sees the answer
_ROWS = 128  # vectors written as JSON before other requests have their turn
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


@dataclass(eq=False)
class Service:
    """What the routes share.

    Args:
        models: the models by name, one or more.
        config: the limits.
        keys: the API keys; none: no key is asked for.
        search: the passages that the page ranks; none: those that it sends.
    """

    models: Mapping[str, Model]
    config: ServeConfig
    keys: ApiKeys
    search: PassageSearch | None = None

    def __post_init__(self) -> None:
        self.draining = False
        self.started = int(time.time())
        self.metrics = Metrics(lambda: self.batcher.queued_tokens)
        self.batcher = Batcher(
            self.models,
            batch_tokens=self.config.batch_tokens,
            max_queue_tokens=self.config.max_queue_tokens,
            observe=self.metrics.batch,
        )

    def model(self, name: str) -> Model:
        """The model of this name; only names given at start are looked up, nothing is loaded.

        Raises:
            RequestError: there is none.
        """
        if name not in self.models:
            raise RequestError(404, f"model {name[:100]!r} is not served; this server has: {', '.join(self.models)}")
        return self.models[name]

    def dimensions(self, name: str, asked: int | None) -> int:
        """The dimensions to return.

        Raises:
            RequestError: the model has fewer.
        """
        dim = self.model(name).dim
        if asked is not None and asked > dim:
            raise RequestError(400, f"dimensions: {asked} asked for, but model {name!r} has {dim}", param="dimensions")
        return asked or dim

    def check_texts(self, texts: Sequence[str], place: str) -> None:
        """Hold texts to the limits.

        Raises:
            RequestError: too many, too long, or empty.
        """
        config = self.config
        if not texts:
            raise RequestError(400, f"{place}: there is no text in it; give one or more", param=place)
        if len(texts) > config.max_texts:
            raise RequestError(
                400, f"{place}: {len(texts)} texts; a request has at most {config.max_texts}", param=place
            )
        for number, text in enumerate(texts):
            if not text:
                raise RequestError(400, f"{place}: text {number} is empty", param=place)
            if len(text) > config.max_chars:
                raise RequestError(
                    400,
                    f"{place}: text {number} has {len(text)} characters; a text has at most {config.max_chars}",
                    param=place,
                )

    async def embed(
        self, name: str, asked: Sequence[Asked], place: Callable[[int], str]
    ) -> "list[tuple[Vectors, int]]":
        """For each part of a request its vectors of all dimensions, and the tokens read.

        ``place`` says where in the request a text of theirs stands. Raises RequestError: the model refuses a text, the
        queue is full, or the time is over.
        """
        try:
            async with asyncio.timeout(self.config.timeout):
                return await self.batcher.embed_together(name, asked)
        except NonFiniteError as error:
            at = place(error.index)
            raise RequestError(
                422,
                f"{at}: the model's vector of this text holds NaN or infinity; send the others without it",
                param=at,
            ) from error
        except GeckoError as error:
            raise RequestError(400, str(error)) from error
        except QueueFullError as error:
            raise RequestError(429, str(error), headers={"retry-after": str(error.retry_after)}) from error
        except ClosedError as error:
            raise RequestError(503, str(error), headers={"retry-after": "1"}) from error
        except TimeoutError as error:
            raise RequestError(
                503,
                f"the vectors were not ready within {self.config.timeout:g} s; send fewer texts or try later",
                headers={"retry-after": "5"},
            ) from error

    async def body(self, request: Request) -> bytes:
        """The request's body.

        Raises:
            RequestError: it is no JSON by its type, is compressed, is too large, or does not arrive.
            ClientDisconnect: the client has gone.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Also what keeps other web sites' forms and scripts out: a browser asks before it sends this type to us.
            raise RequestError(415, f"content-type is {kind[:50]!r}; send application/json")
        coding = request.headers.get("content-encoding", "identity")
        if coding.strip().lower() != "identity":
            raise RequestError(
                415,
                f"content-encoding is {coding[:50]!r}; send the body as it is, without one",
                headers={"accept-encoding": "identity"},
            )
        most, length = self.config.max_body_bytes, request.headers.get("content-length", "")
        too_large = RequestError(
            413, f"the body is larger than {most} bytes, the most that is read", headers={"connection": "close"}
        )
        if length.isdecimal() and int(length) > most and "expect" in request.headers:
            raise too_large  # it has not been sent yet
        chunks, size = [], 0
        try:
            async with asyncio.timeout(self.config.body_timeout):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size <= most:
                        chunks.append(chunk)
                    elif size > most + _DRAIN_BYTES:
                        raise too_large
                    else:
                        chunks.clear()
        except TimeoutError as error:
            seconds = self.config.body_timeout
            raise RequestError(
                408, f"the body did not arrive within {seconds:g} s", headers={"connection": "close"}
            ) from error
        if size > most:
            raise too_large
        return b"".join(chunks)


async def unless_left(request: Request, size: int, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``; with many texts (``size``), it is given up as soon as the client closes its connection.

    The request's body has been read. Raises ClientDisconnect: the client has gone.
    """
    if size <= TURN:
        return await work

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def create_app(service: Service) -> FastAPI:
    """The application: starts the service's thread when it starts, and ends it when it ends."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        await asyncio.to_thread(service.batcher.close)

    # No docs pages: theirs load scripts from elsewhere.
    app = FastAPI(title="Gecko", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Guard, keys=service.keys, metrics=service.metrics, draining=lambda: service.draining)

    @app.exception_handler(RequestError)
    async def _refused(request: Request, error: RequestError) -> Response:
        return error_response(request.url.path, error)

    @app.exception_handler(HTTPException)
    async def _no_route(request: Request, error: HTTPException) -> Response:
        what = {404: "there is nothing at this path", 405: f"{request.method} is not possible at this path"}
        message = what.get(error.status_code, str(error.detail))
        return error_response(request.url.path, RequestError(error.status_code, message, headers=error.headers))

    _add_google(app, service)  # first: GET /v1/models/{model} fits its paths, too
    _add_openai(app, service)
    _add_health(app, service)
    _add_page(app, service)
    document = openapi(app.routes, service.config, {name: model.dim for name, model in service.models.items()})
    if service.keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    app.openapi = lambda: document  # type: ignore[method-assign]
    for route in app.routes:  # after the document, which need not say it of each
        if isinstance(route, Route) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")
    return app


def _add_openai(app: FastAPI, service: Service) -> None:
    @app.post("/v1/embeddings", tags=["OpenAI"])
    async def embeddings(request: Request) -> Response:
        """Embed texts, as OpenAI's API does."""
        body = parse(EmbeddingsRequest, await service.body(request))
        name, suffix = split_model(body.model)
        dim = service.dimensions(name, body.dimensions)
        if suffix is not None and body.task is not None:
            raise RequestError(400, "task: named twice, here and in the model's name", param="task")
        task = check_task(suffix or body.task or DEFAULT_TASK)
        service.check_texts(body.input, "input")
        job = service.embed(name, [Asked(body.input, task)], "input.{}".format)
        [(vectors, tokens)] = await unless_left(request, len(body.input), job)
        rows, packed = shorten(vectors, dim), body.encoding_format == "base64"
        pieces = []
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            data = [
                {"object": "embedding", "index": start + index, "embedding": _base64(row) if packed else row}
                for index, row in enumerate(part)
            ]
            pieces.append(_json(data)[1:-1])
            if start + _ROWS < len(rows):
                await asyncio.sleep(0)
        rest = _json({"model": body.model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
        return _answer(b'{"object":"list","data":[' + b",".join(pieces) + b"]," + rest[1:])

    @app.get("/v1/models", tags=["OpenAI"])
    async def models() -> Response:
        """The models that are served."""
        return _answer(_json({"object": "list", "data": [_model_card(service, name) for name in service.models]}))

    @app.get("/v1/models/{model}", tags=["OpenAI"])
    async def model(model: str) -> Response:
        """One model."""
        service.model(model)
        return _answer(_json(_model_card(service, model)))


def _add_google(app: FastAPI, service: Service) -> None:
    def check(name: str, body: EmbedContentRequest, place: str) -> tuple[str, str, str | None, int]:
        """Text, task, title and dimensions of a request."""
        if body.model is not None and body.model.removeprefix("models/") != name:
            raise RequestError(400, f"{place}model: {body.model[:100]!r} is not the model of the URL, models/{name}")
        dim = service.dimensions(name, body.output_dimensionality)
        task = DEFAULT_TASK if body.task_type in (None, UNSPECIFIED) else body.task_type
        if task not in TASKS:
            raise RequestError(
                400, f"{place}taskType: {str(task)[:100]!r} is not known; give one of {', '.join(TASKS)}"
            )
        if body.title is not None and task != DOCUMENT:
            raise RequestError(400, f"{place}title: only a text of the task type {DOCUMENT} has one, not {task}")
        if len(body.title or "") > service.config.max_chars:
            raise RequestError(400, f"{place}title: longer than {service.config.max_chars} characters")
        service.check_texts([part.text for part in body.content.parts], f"{place}content.parts")
        text = "\n".join(part.text for part in body.content.parts)
        service.check_texts([text], f"{place}content")
        return text, task, body.title, dim

    @app.post("/v1/models/{model}:embedContent", tags=["Google"])
    @app.post("/v1beta/models/{model}:embedContent", tags=["Google"])
    async def embed_content(request: Request, model: str) -> Response:
        """Embed one text, as Google's API does."""
        service.model(model)
        body = parse(EmbedContentRequest, await service.body(request))
        text, task, title, dim = check(model, body, "")
        asked = Asked([text], task, None if title is None else [title])
        [(vectors, _)] = await service.embed(model, [asked], lambda _: "content")
        return _answer(_json({"embedding": {"values": shorten(vectors, dim)[0]}}))

    @app.post("/v1/models/{model}:batchEmbedContents", tags=["Google"])
    @app.post("/v1beta/models/{model}:batchEmbedContents", tags=["Google"])
    async def batch_embed_contents(request: Request, model: str) -> Response:
        """Embed several texts, as Google's API does."""
        service.model(model)
        body = parse(BatchEmbedContentsRequest, await service.body(request))
        if len(body.requests) > service.config.max_texts:
            most = service.config.max_texts
            raise RequestError(400, f"requests: {len(body.requests)} of them; a batch has at most {most}")
        checked = [check(model, one, f"requests.{place}.") for place, one in enumerate(body.requests)]
        groups: dict[str, list[int]] = {}
        for place, (_, task, _, _) in enumerate(checked):
            groups.setdefault(task, []).append(place)
        asked = [
            Asked(
                [checked[place][0] for place in places],
                task,
                [checked[place][2] or "" for place in places] if task == DOCUMENT else None,
            )
            for task, places in groups.items()
        ]
        order = [place for places in groups.values() for place in places]
        job = service.embed(model, asked, lambda number: f"requests.{order[number]}.content")
        results = await unless_left(request, len(checked), job)
        values: list[Any] = [None] * len(checked)
        for places, (vectors, _) in zip(groups.values(), results, strict=True):
            for place, row in zip(places, vectors, strict=True):
                values[place] = shorten(row[None], checked[place][3])[0]
        pieces = []
        for start in range(0, len(values), _ROWS):
            pieces.append(_json([{"values": row} for row in values[start : start + _ROWS]])[1:-1])
            await asyncio.sleep(0)
        return _answer(b'{"embeddings":[' + b",".join(pieces) + b"]}")


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["Health"])
    async def healthz() -> Response:
        """Whether the process answers."""
        return _answer(b'{"status":"ok"}')

    @app.get("/readyz", tags=["Health"])
    async def readyz() -> Response:
        """Whether requests should be sent here."""
        if service.draining or not service.batcher.alive:
            raise RequestError(503, "the server is stopping" if service.draining else "the encoder has stopped")
        return _answer(b'{"status":"ready"}')

    @app.get("/metrics", tags=["Health"])
    async def metrics() -> Response:
        """Counts and times, in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI, service: Service) -> None:
    def add_file(path: str, file: str, kind: str) -> None:
        content = resources.files("gecko.serving").joinpath("page", file).read_bytes()
        headers = {"content-security-policy": _CSP, "referrer-policy": "no-referrer", "cache-control": "no-cache"}

        @app.get(path, include_in_schema=False)
        async def page() -> Response:
            return Response(content, headers=headers, media_type=f"{kind}; charset=utf-8")

    add_file("/", "page.html", "text/html")
    add_file("/page.css", "page.css", "text/css")
    add_file("/page.js", "page.js", "text/javascript")

    @app.get("/page.json", include_in_schema=False)
    async def facts() -> Response:
        models = [{"name": name, "dim": model.dim} for name, model in service.models.items()]
        passages = len(service.search) if service.search is not None else None
        return _answer(_json({"models": models, "tasks": list(TASKS), "default": DEFAULT_TASK, "passages": passages}))

    @app.post("/search", tags=["Page"])
    async def search(request: Request) -> Response:
        """Rank passages for a query with each model: those of the server, or those that are sent."""
        body = parse(SearchRequest, await service.body(request))
        task = check_task(body.task)
        service.check_texts([body.query], "query")
        if body.passages is not None:
            service.check_texts(body.passages, "passages")
        elif service.search is None:
            raise RequestError(404, "passages: send some; this server was started without --corpus", param="passages")
        most = max(model.dim for model in service.models.values())
        if body.dimensions is not None and body.dimensions > most:
            raise RequestError(
                400, f"dimensions: {body.dimensions} asked for, but there are {most}", param="dimensions"
            )
        results = []
        for name, model in service.models.items():
            dim = min(body.dimensions or model.dim, model.dim)
            [(query, _)] = await service.embed(name, [Asked([body.query], task)], lambda _: "query")
            if body.passages is not None:
                job = service.embed(name, [Asked(body.passages, DOCUMENT)], "passages.{}".format)
                [(vectors, _)] = await unless_left(request, TURN + 1, job)
                passages = PassageSearch([("", text) for text in body.passages], {name: vectors})
            else:
                assert service.search is not None
                passages = service.search
            hits = await asyncio.to_thread(passages.top, name, query[0], dim, body.k)
            results.append({"model": name, "dimensions": dim, "hits": hits})
        return _answer(_json({"results": results}))


def _model_card(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.started, "owned_by": "gecko"}


def _base64(row: Vectors) -> str:
    return base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode()


def _json(value: Any) -> bytes:
    """JSON; a float32 array keeps just the digits that give the same float32 back."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _answer(body: bytes) -> Response:
    return Response(body, media_type="application/json")
