"""Loads the models, listens, and stops without losing what was accepted."""

import asyncio
import logging
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gecko.core.errors import ConfigError
from gecko.encoder import Embedder, load
from gecko.encoder.backend import Precision
from gecko.serving.app import Service, create_app
from gecko.serving.keys import VARIABLE, ApiKeys, is_loopback

_KEEP_ALIVE = 75  # seconds: longer than clients and proxies keep idle connections, so that they close first
_HEAD_BYTES = 65_536
_NO_PATH = re.compile(rb"^[a-zA-Z]+://[^/?]+(?=\?|$)")  # a target like http://localhost, whose path is /
_SWITCH = 0.0005  # seconds after which a thread must let another run: the encoder's small steps wait for the event loop


def load_models(model: str, start: str | None, name: str | None, precision: Precision = "auto") -> dict[str, Embedder]:
    """Load what is served, each by its SPEC; ``start``, to hold the model against, comes first, as on the page.

    ``name`` is the model's in requests; none: from its SPEC. Raises ConfigError: a model cannot be loaded, or a name does
    not fit into a URL.
    """
    called = _checked(name or spec_name(model))
    second = _checked(spec_name(start)) if start is not None else ""
    if second == called:
        second += "-start"
    models = {second: load(start, precision=precision)} if start is not None else {}
    return models | {called: load(model, precision=precision)}


def spec_name(spec: str) -> str:
    """The name of a model in requests: its folder's; for the model of a run, the run's."""
    path = PurePath(spec.removeprefix("hf:"))
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def _checked(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ConfigError(f"model name {name!r}: give one of letters, digits and . _ - with --name")
    return name


def check_open(host: str, keys: ApiKeys) -> None:
    """Refuse to be reachable from other machines without keys.

    Raises ConfigError: the host is not loopback and there are no keys.
    """
    if not keys and not is_loopback(host):
        raise ConfigError(
            f"--host {host!r} can be reached from other machines, and there are no API keys; make one with "
            f"`gecko serve --new-key LABEL --api-keys FILE` and give --api-keys FILE, or set {VARIABLE}"
        )


def bind(host: str, port: int) -> socket.socket:
    """A socket with an address, which does not listen yet: loading the models takes a while.

    Raises ConfigError: the address is taken, not this machine's, or no address.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error}; give another --host or --port") from error
    return bound


class _Parser(httptools.HttpRequestParser):
    """Ignores an offer to go on in another protocol, as a server may (RFC 9110, 7.8): Java's client sends one always.

    llhttp takes the end of a head with such an offer for the end of HTTP, also where a body follows. So the head is read
    once more without its ``Upgrade``, and by a new parser: the old one may have taken it for the connection's last.
    """

    def __init__(self, protocol: "Protocol") -> None:
        super().__init__(protocol)
        self._protocol = protocol
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets it for its own parser

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]
        """Read a piece of what the client sends."""
        parser: httptools.HttpRequestParser = self
        while data:
            try:
                httptools.HttpRequestParser.feed_data(parser, data)
                return
            except httptools.HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
                if self._protocol.scope["method"] != "CONNECT":  # which offers nothing, and has no body
                    parser = self._protocol.parser = _Parser(self._protocol)
                    data = self._protocol.head_without_offer() + data


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 as uvicorn reads it, with bounds on a request's head, which has none there: bytes and seconds.

    Offers of other protocols are ignored.
    """

    head_timeout = 20.0
    _head: int | None = None  # bytes of an unfinished head, but for its first piece
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The first head has to arrive in time, too."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self.parser = _Parser(self)
        self._arm()

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head."""
        if self._head is not None:
            self._head += len(data)
            if self._head > _HEAD_BYTES:
                self._disarm()
                self.send_400_response("Request head too large.")
                return
        super().data_received(data)
        if self._head is not None and self._timer is None:
            self._arm()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._head = 0

    def on_headers_complete(self) -> None:
        """The head is here."""
        self._head = None
        self._disarm()
        if not self.url.startswith(b"/"):
            self.url = _NO_PATH.sub(rb"\g<0>/", self.url)
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come."""
        self._disarm()
        super().connection_lost(exc)

    def head_without_offer(self) -> bytes:
        """The head that was read, but for its ``Upgrade``."""
        fields = [b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        version = self.scope["http_version"].encode()
        return b"%s %s HTTP/%s\r\n%s\r\n" % (self.scope["method"].encode(), self.url, version, b"".join(fields))

    def _should_upgrade(self) -> bool:
        # What uvicorn asks when a head is complete: it then leaves the request to somebody else, here to the parser.
        return self.scope["method"] != "CONNECT"

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self.head_timeout, self.transport.close)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """Stops in two steps at SIGTERM or SIGINT: it turns clients away, then stops listening and finishes.

    A second signal skips the first step, a third one the second.
    """

    def __init__(self, service: Service, *, log_requests: bool = False) -> None:
        logging.getLogger("gecko.serving").setLevel(logging.INFO if log_requests else logging.WARNING)
        timeout = service.config.body_timeout
        config = uvicorn.Config(
            create_app(service),
            http=type("Bounded", (Protocol,), {"head_timeout": timeout}),
            log_level="warning",
            access_log=False,  # its lines hold whole URLs; ours hold routes
            ws="none",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=service.config.max_connections,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=int(service.config.timeout + service.config.body_timeout) + 1,
        )
        super().__init__(config)
        self._service = service

    def stop(self) -> None:
        """Begin to stop, in the event loop's thread."""
        if self._service.draining:
            self.force_exit = self.should_exit
            self.should_exit = True
            return
        self._service.draining = True
        asyncio.get_running_loop().call_later(self._service.config.drain, setattr, self, "should_exit", True)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn, end as a finished program after a signal, not as one that it killed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def serve(service: Service, listener: socket.socket, say: Callable[[str], None], *, log_requests: bool = False) -> None:
    """Serve on a :func:`bind` listener until SIGTERM or SIGINT; ``say`` gets the address, and at the end what was done.

    With ``log_requests`` a line is logged a request: method, route, status, time.
    """
    sys.setswitchinterval(_SWITCH)
    logging.basicConfig(format="%(asctime)s %(message)s")  # does nothing where the program has set up its own
    host, port = listener.getsockname()[:2]
    server = Server(service, log_requests=log_requests)
    say(f"http://{f'[{host}]' if ':' in host else host}:{port}   models: {', '.join(service.models)}")
    server.run(sockets=[listener])
    say("stopped: " + service.metrics.summary())
