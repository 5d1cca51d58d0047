"""The requests that the server reads, and their JSON schemas.

The limits and the names of the models are those of a running server, so its OpenAPI document states them.
"""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.json_schema import models_json_schema

from gecko import __version__
from gecko.core.formats import TASKS
from gecko.core.text import HALF, half_of_pair
from gecko.serving.config import ServeConfig
from gecko.serving.errors import RequestError

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

UNSPECIFIED = "TASK_TYPE_UNSPECIFIED"
DOCUMENT = "RETRIEVAL_DOCUMENT"
DEFAULT_TASK = "RETRIEVAL_QUERY"  # of Google's API for the Gecko models, where a request names none

MAX_TASK_CHARS = 1000
_REFERENCE = "#/components/schemas/{model}"
_TOKENS = (
    "token arrays are not read, because each model has its own tokens; send text (in LangChain: "
    "OpenAIEmbeddings(check_embedding_ctx_length=False))"
)

Body = TypeVar("Body", bound=BaseModel)


def _texts(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    first = value[0] if isinstance(value, list) and value else ""
    inner = first[0] if isinstance(first, list) and first else first
    if isinstance(inner, int) and not isinstance(inner, bool):
        raise ValueError(_TOKENS)
    if not isinstance(value, list) or isinstance(first, list):
        raise ValueError("give a string or a list of strings")
    return value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 8.0 is an integer in JSON Schema


_Dimensions = Annotated[int, Field(ge=1), BeforeValidator(_whole)]
_Task = Annotated[str, Field(min_length=1, max_length=MAX_TASK_CHARS)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class EmbeddingsRequest(_Request):
    """OpenAI's ``/v1/embeddings``, and ``task``."""

    model: str
    """A name of ``/v1/models``. ``NAME@TASK`` sets the task for clients that cannot send other fields."""
    input: Annotated[list[str], BeforeValidator(_texts)]
    """A text, or a list of them."""
    task: _Task | None = None
    """What the vectors are for: a name of Google's API, or a description in two words or more. Default
    RETRIEVAL_QUERY."""
    dimensions: _Dimensions | None = None
    """Keep the first dimensions, and bring the vectors back to unit length."""
    encoding_format: Literal["float", "base64"] | None = None
    """Numbers (the default), or the bytes of little-endian float32 in base64."""
    user: str | None = None
    """Accepted, not used."""


class Part(_Request):
    """A piece of text."""

    text: str


class Content(_Request):
    """Text in parts, which are joined by line breaks."""

    parts: Annotated[list[Part], Field(min_length=1, max_length=100)]
    role: str | None = None
    """Accepted, not used."""


class EmbedContentRequest(_Request):
    """Google's ``models/NAME:embedContent``."""

    model_config = ConfigDict(validate_by_alias=True, validate_by_name=True)

    content: Content
    model: str | None = None
    """The model of the URL again, as ``models/NAME``."""
    task_type: Annotated[str | None, Field(validation_alias=AliasChoices("taskType", "task_type"))] = None
    """What the vector is for. Default RETRIEVAL_QUERY."""
    title: str | None = None
    """Of the text; only with RETRIEVAL_DOCUMENT."""
    output_dimensionality: Annotated[
        _Dimensions | None, Field(validation_alias=AliasChoices("outputDimensionality", "output_dimensionality"))
    ] = None
    """Keep the first dimensions, and bring the vector back to unit length."""


class BatchEmbedContentsRequest(_Request):
    """Google's ``models/NAME:batchEmbedContents``."""

    requests: Annotated[list[EmbedContentRequest], Field(min_length=1)]


class SearchRequest(_Request):
    """What the page asks."""

    query: Annotated[str, Field(min_length=1)]
    task: _Task = DEFAULT_TASK
    """What the query is for."""
    dimensions: _Dimensions | None = None
    """Compare the first dimensions only."""
    k: Annotated[int, Field(ge=1, le=100), BeforeValidator(_whole)] = 10
    """How many passages."""
    passages: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    """Rank these instead of the server's corpus."""


TASK_NAMES = {name: name for name in TASKS} | {name.lower(): name for name in TASKS}
TASK_NAMES |= {task.text: task.text for task in TASKS.values() if task.text and task.text not in TASK_NAMES}
# Words with single spaces between them. The blanks are spelt out because \\s is another set in each regex dialect.
_BLANKS = "\\u0000-\\u0020\\u007f-\\u00a0\\u1680\\u180e\\u2000-\\u200f\\u2028-\\u202f\\u205f\\u3000\\ufeff"
_DESCRIPTION = re.compile(f"[^{_BLANKS}]+( [^{_BLANKS}]+)+")


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": required | optional,
        "required": list(required),
        "additionalProperties": False,
    }


_STRING, _NUMBERS = {"type": "string"}, {"type": "array", "items": {"type": "number"}}
_COUNT = {"type": "integer", "minimum": 0}
_VALUES = _object({"values": _NUMBERS})
_CARD = _object({"id": _STRING, "object": {"const": "model"}, "created": _COUNT, "owned_by": _STRING})
_EMBEDDING = _object(
    {"object": {"const": "embedding"}, "index": _COUNT, "embedding": {"anyOf": [_NUMBERS, _STRING]}},
)
_HIT = _object({"rank": _COUNT, "score": {"type": "number"}, "title": _STRING, "text": _STRING})
_RESULT = _object({"model": _STRING, "dimensions": _COUNT, "hits": {"type": "array", "items": _HIT}})

RESPONSES = {
    "Embeddings": _object(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": _EMBEDDING},
            "model": _STRING,
            "usage": _object({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
        }
    ),
    "Models": _object({"object": {"const": "list"}, "data": {"type": "array", "items": _CARD}}),
    "Model": _CARD,
    "EmbedContentResponse": _object({"embedding": _VALUES}),
    "BatchEmbedContentsResponse": _object({"embeddings": {"type": "array", "items": _VALUES}}),
    "Status": _object({"status": _STRING}),
    "Results": _object({"results": {"type": "array", "items": _RESULT}}),
    "Error": _object(
        {
            "error": _object(
                {
                    "message": _STRING,
                    "type": _STRING,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": "null"},
                }
            )
        }
    ),
    "GoogleError": _object({"error": _object({"code": {"type": "integer"}, "message": _STRING, "status": _STRING})}),
}

# Path: schema of the request, of the answer (none: plain text), and of an error.
_SINGLE = ("EmbedContentRequest", "EmbedContentResponse", "GoogleError")
_BATCH = ("BatchEmbedContentsRequest", "BatchEmbedContentsResponse", "GoogleError")
BODIES: dict[str, tuple[str | None, str | None, str]] = {
    "/v1/embeddings": ("EmbeddingsRequest", "Embeddings", "Error"),
    "/v1/models": (None, "Models", "Error"),
    "/v1/models/{model}": (None, "Model", "Error"),
    "/v1/models/{model}:embedContent": _SINGLE,
    "/v1beta/models/{model}:embedContent": _SINGLE,
    "/v1/models/{model}:batchEmbedContents": _BATCH,
    "/v1beta/models/{model}:batchEmbedContents": _BATCH,
    "/healthz": (None, "Status", "Error"),
    "/readyz": (None, "Status", "Error"),
    "/metrics": (None, None, "Error"),
    "/search": ("SearchRequest", "Results", "Error"),
}

REQUESTS = (EmbeddingsRequest, EmbedContentRequest, BatchEmbedContentsRequest, SearchRequest)


def parse(kind: type[Body], body: bytes) -> Body:
    """Read a request body. A byte order mark before it is ignored.

    Raises RequestError: it is no JSON of this kind; the first reason, and where.
    """
    body = body.removeprefix(codecs.BOM_UTF8)
    try:
        found = kind.model_validate_json(body)
    except ValidationError as error:
        entry = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in entry["loc"])[:200]
        what = entry["msg"].removeprefix("Value error, ")
        if entry["type"] == "extra_forbidden":
            what = "is not a known field"
        fault = _fault(body) if entry["type"] == "json_invalid" else None
        raise fault or RequestError(400, f"{place}: {what}" if place else what, param=place or None) from None
    # A name that stands twice has a colon more than the parser has seen. Most bodies need no more than the first count.
    if body.count(b":") > len(found.model_fields_set) and len(_NAME.findall(body)) > _names(found):
        fault = _fault(body)
        if fault is not None:
            raise fault
    return found


def _names(request: BaseModel) -> int:
    """Names that the parser has seen in a request."""
    count = len(request.model_fields_set)
    for field in request.model_fields_set:
        value = getattr(request, field)
        if isinstance(value, BaseModel):
            count += _names(value)
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            count += sum(map(_names, value))
    return count


class _Pairs(list[tuple[str, Any]]):
    """Names and values of a JSON object, as they stand in it."""


_JSON = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=float)
# The end of a name. In a text that holds JSON a backslash stands before the mark; no field's name ends with one.
_NAME = re.compile(rb'(?<!\\)"\s*:')


def _fault(body: bytes) -> RequestError | None:
    """What a JSON parser does not tell of a body, or tells without its place; none: there is no such fault."""
    if not body.strip():
        return RequestError(400, "the body is empty; send JSON")
    encoding = json.detect_encoding(body)
    if not encoding.startswith("utf-8"):
        return RequestError(400, f"the body is in {encoding.upper()}; send JSON in UTF-8")
    try:
        found = next(_faults(_JSON.decode(body.decode()), ""), None)
    except UnicodeDecodeError as error:
        return RequestError(400, f"the body is not UTF-8 at byte {error.start}; send JSON in UTF-8")
    except (ValueError, RecursionError):  # the parser has said where
        return None
    if found is None:
        return None
    place, what = found[0].encode(errors="replace").decode()[:200], found[1]
    return RequestError(400, f"{place or 'the body'} {what}", param=place or None)


def _faults(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Places in a JSON document and what is wrong there."""
    if isinstance(value, str):
        if half_of_pair(value):
            yield place, f"holds {HALF}"
    elif isinstance(value, list):
        names = set()
        for number, item in enumerate(value):
            name, inner = item if isinstance(value, _Pairs) else (str(number), item)
            here = f"{place}.{name}" if place else name
            if name in names:
                yield here, "stands twice in its object; give it once"
            if half_of_pair(name):
                yield here, f"is a name with {HALF}"
            names.add(name)
            yield from _faults(inner, here)


def request_schemas(config: ServeConfig, dims: dict[str, int]) -> dict[str, Any]:
    """JSON schemas of the requests, by name, with the limits of a server and the names and dimensions of its models."""
    schemas: dict[str, Any] = models_json_schema([(kind, "validation") for kind in REQUESTS], ref_template=_REFERENCE)[
        1
    ]["$defs"]
    names, most = list(dims), max(dims.values())
    text = {"type": "string", "minLength": 1, "maxLength": config.max_chars}
    texts = {"type": "array", "items": text, "minItems": 1, "maxItems": config.max_texts}
    task = {
        "type": "string",
        "maxLength": MAX_TASK_CHARS,
        "anyOf": [{"enum": sorted(TASK_NAMES)}, {"pattern": f"^{_DESCRIPTION.pattern}$"}],
    }
    variants = [f"{name}@{kind}" for name in names for kind in TASKS]
    openai = schemas["EmbeddingsRequest"]["properties"]
    openai["model"]["enum"] = [*names, *variants]
    schemas["EmbeddingsRequest"] |= {
        "if": {"properties": {"model": {"enum": variants}}},
        "then": {"properties": {"task": {"type": "null"}}},
    }
    openai["input"].pop("items")
    openai["input"].pop("type")
    openai["input"]["anyOf"] = [text, texts]
    _replace(openai["task"], task)
    _replace(openai["dimensions"], {"type": "integer", "minimum": 1, "maximum": most})
    schemas["Part"]["properties"]["text"] |= text
    google = schemas["EmbedContentRequest"]["properties"]
    _replace(google["model"], {"type": "string", "enum": [f"models/{name}" for name in names]})
    _replace(google["taskType"], {"type": "string", "enum": [UNSPECIFIED, *TASKS]})
    _replace(google["title"], {"type": "string", "maxLength": config.max_chars})
    _replace(google["outputDimensionality"], {"type": "integer", "minimum": 1, "maximum": most})
    schemas["EmbedContentRequest"] |= {
        "if": {"properties": {"title": {"type": "string"}}, "required": ["title"]},
        "then": {"properties": {"taskType": {"const": DOCUMENT}}, "required": ["taskType"]},
    }
    schemas["BatchEmbedContentsRequest"]["properties"]["requests"]["maxItems"] = config.max_texts
    search = schemas["SearchRequest"]["properties"]
    search["query"] |= text
    search["task"] = {**task, "default": DEFAULT_TASK, "description": search["task"]["description"]}
    _replace(search["dimensions"], {"type": "integer", "minimum": 1, "maximum": most})
    _replace(search["passages"], {**texts, "maxItems": config.max_texts})
    return schemas


def check_task(task: str) -> str:
    """The task, if it is a name (which is then in capitals) or a description as the schema has it.

    Raises RequestError: it is neither.
    """
    if task in TASK_NAMES:
        return TASK_NAMES[task]
    if _DESCRIPTION.fullmatch(task):
        return task
    raise RequestError(
        400,
        f"task: {task[:100]!r} is not known; give one of {', '.join(TASKS)}, or describe the task in two words or "
        "more with single spaces",
        param="task",
    )


def openapi(routes: Sequence["BaseRoute"], config: ServeConfig, dims: dict[str, int]) -> dict[str, Any]:
    """The OpenAPI document of a server: FastAPI's, and the bodies, which the routes read themselves."""
    from fastapi.openapi.utils import get_openapi

    document = get_openapi(title="Gecko", version=__version__, routes=routes)
    schemas = request_schemas(config, dims) | RESPONSES
    document["components"] = {"schemas": schemas}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            request, response, error = BODIES[path]
            if request is not None:
                operation["requestBody"] = {"required": True, "content": _json_of(request)}
            kind = {"text/plain": {"schema": {"type": "string"}}} if response is None else _json_of(response)
            operation["responses"] = {
                "200": {"description": "Done.", "content": kind},
                **{
                    code: {"description": f"{what}; the message says why.", "content": _json_of(error)}
                    for code, what in (("4XX", "Refused"), ("5XX", "Not possible now"))
                },
            }
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "model":
                    parameter["schema"] = {"type": "string", "enum": list(dims)}
    return document


def _json_of(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=name)}}}


def _replace(field: dict[str, Any], schema: dict[str, Any]) -> None:
    """Put ``schema`` in the place of a field's type; null stays allowed."""
    for key in ("type", "anyOf"):
        field.pop(key, None)
    field["anyOf"] = [schema, {"type": "null"}]


def split_model(name: str) -> tuple[str, str | None]:
    """``NAME@TASK`` as (NAME, TASK)."""
    model, _, task = name.rpartition("@")
    return (model, task) if model and task else (name, None)
