"""What every request passes before its route: host, key, and a last resort for errors; and what every answer carries."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from gecko.serving.errors import RequestError, error_response
from gecko.serving.keys import ApiKeys, is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from gecko.serving.metrics import Metrics

log = logging.getLogger("gecko.serving")

OPEN = frozenset({"/", "/page.css", "/page.js", "/healthz", "/readyz"})  # say nothing that a key should guard


@dataclass(eq=False)
class Guard:
    """ASGI middleware. ``draining``: connections are to be closed after their next answer.

    Without keys a request must name this machine in its ``Host`` header: otherwise any web site could have its name point
    to 127.0.0.1 and read the answers in its visitors' browsers. HTTP/1.0 has requests without a ``Host``.
    """

    app: "ASGIApp"
    keys: ApiKeys
    metrics: "Metrics"
    draining: Callable[[], bool]

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        self.metrics.accepted.inc()
        status = 0

        async def send_on(message: "Message") -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-content-type-options"] = "nosniff"
                if self.draining():
                    headers["connection"] = "close"
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, receive, send_on)
        except RequestError as error:
            await error_response(scope["path"], error)(scope, receive, send_on)
        except ClientDisconnect:
            self.metrics.left.inc()
        except Exception:
            log.exception("%s failed", _route(scope))
            if status:
                raise  # half an answer is out; the connection must break
            failure = RequestError(500, "the server failed on this request; its log says why")
            await error_response(scope["path"], failure)(scope, receive, send_on)
        if status:
            route = _route(scope)
            self.metrics.answered.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - began)
            log.info("%s %s %d %.1f ms", scope["method"], route, status, (time.perf_counter() - began) * 1000)

    def _check(self, scope: "Scope") -> None:
        headers = Headers(scope=scope)
        if not self.keys:
            name = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
            unnamed = "host" not in headers and scope["http_version"] == "1.0"  # no browser sends such a request
            if not (is_loopback(name) or is_loopback(headers.get("host", "")) or unnamed):
                raise RequestError(403, "without API keys this server answers to localhost only; see --api-keys")
            return
        if scope["path"] in OPEN:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else headers.get("x-goog-api-key", "")
        if not self.keys.accept(given.encode("latin-1")):
            what = "the API key is not known" if given else "an API key is needed"
            raise RequestError(
                401,
                f"{what}; send it as `Authorization: Bearer KEY` or `x-goog-api-key: KEY`",
                headers={"www-authenticate": "Bearer"},
            )


def _route(scope: "Scope") -> str:
    """The route's pattern: the path itself may hold anything, also line breaks and secrets."""
    return getattr(scope.get("route"), "path", "none")
