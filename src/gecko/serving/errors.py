"""What a client gets instead of vectors, in the form that its API's clients read."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

_OPENAI_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_GOOGLE_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    413: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


class RequestError(Exception):
    """A request that gets no vectors: HTTP status, what is wrong, where, the limit or the mend, and the field."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.headers = dict(headers or {})


def error_response(path: str, error: RequestError) -> Response:
    """The error in Google's form on Google's paths, in OpenAI's elsewhere."""
    body: dict[str, Any]
    if path.startswith("/v1beta/") or path.endswith((":embedContent", ":batchEmbedContents")):
        status = _GOOGLE_STATUSES.get(error.status, "UNKNOWN")
        body = {"error": {"code": error.status, "message": error.message, "status": status}}
    else:
        kind = _OPENAI_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
        body = {"error": {"message": error.message, "type": kind, "param": error.param, "code": None}}
    return Response(orjson.dumps(body), error.status, error.headers, "application/json")
