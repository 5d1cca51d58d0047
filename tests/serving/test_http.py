"""What HTTP lets a client do, on the wire: offers of other protocols, HEAD, old versions, odd targets."""

import asyncio
import contextlib
import itertools
import json
import logging
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import httptools
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from gecko.serving.server import Protocol

from .conftest import FakeModel, Live, StartServer, fake_vector

OFFERS = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n",
    b"connection: keep-alive, upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
    b"Upgrade: TLS/1.0, IRC/6.9\r\nHTTP2-Settings:\r\nConnection: UPGRADE\r\n",
)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The log, with uvicorn's, which does not reach the root."""
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def embeddings(text: str, more: bytes = b"", *, chunked: bool = False) -> tuple[bytes, bytes]:
    """Head and body of a request for a vector."""
    body = json.dumps({"model": "m", "input": text}).encode()
    length = b"content-length: %d\r\n" % len(body)
    if chunked:
        length = b"transfer-encoding: chunked\r\n"
        body = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (5, body[:5], len(body) - 5, body[5:])
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return head + more + length + b"\r\n", body


class Wire:
    """A connection on which bytes are sent as they are."""

    def __init__(self, live: Live) -> None:
        self.sock = socket.create_connection(("127.0.0.1", live.port), timeout=20)
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()

    def answer(self, *, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        status = int(self.file.readline().split()[1])
        lines = itertools.takewhile(lambda line: line != b"\r\n", self.file)
        headers = dict(line.decode().rstrip().lower().split(": ", 1) for line in lines)
        return status, headers, b"" if head_only else self.file.read(int(headers.get("content-length", 0)))

    def vector(self) -> list[float]:
        status, _, body = self.answer()
        assert status == 200, body
        return list(json.loads(body)["data"][0]["embedding"])


def offline(text: str) -> list[float]:
    return list(map(float, fake_vector(f"RETRIEVAL_QUERY||{text}")))


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("chunked", [False, True])
def test_an_offer_of_another_protocol_is_ignored(
    start_server: StartServer, fake: FakeModel, log: pytest.LogCaptureFixture, offer: bytes, chunked: bool
) -> None:
    live = start_server({"m": fake})
    with Wire(live) as wire:
        for number, together in enumerate((True, False, True)):  # the body in the head's piece, or in the next one
            head, body = embeddings(f"text {number}", offer, chunked=chunked)
            for piece in (head + body,) if together else (head, body):
                wire.sock.sendall(piece)
                asyncio.run(asyncio.sleep(0.02))
            assert wire.vector() == pytest.approx(offline(f"text {number}"))
        plain = embeddings("plain")
        every = [embeddings("one", offer, chunked=chunked), plain, embeddings("two", offer)]
        wire.sock.sendall(b"".join(itertools.chain(*every)))  # and none waits for an answer
        for text in ("one", "plain", "two"):
            assert wire.vector() == pytest.approx(offline(text))
        wire.sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n" + offer + b"\r\n")
        assert wire.answer()[::2] == (200, b'{"status":"ok"}')
        head, body = embeddings("waits", offer + b"expect: 100-continue\r\n")
        wire.sock.sendall(head)
        assert wire.file.readline() == b"HTTP/1.1 100 Continue\r\n" and wire.file.readline() == b"\r\n"
        wire.sock.sendall(body)
        assert wire.vector() == pytest.approx(offline("waits"))
        wire.sock.sendall(b"".join(embeddings("last", offer + b"connection: close\r\n")))
        assert wire.vector() == pytest.approx(offline("last")) and wire.file.read() == b""
    assert log.text == ""


def test_an_offer_changes_no_limit(start_server: StartServer, fake: FakeModel) -> None:
    live = start_server({"m": fake})
    with Wire(live) as wire:
        wire.sock.sendall(b"GET /nothing HTTP/1.0\r\nhost: localhost\r\n" + OFFERS[0] + b"\r\n")
        assert wire.answer()[0] == 404 and wire.file.read() == b""
    with Wire(live) as wire, contextlib.suppress(OSError):
        wire.sock.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n" + OFFERS[0])
        for _ in range(20):
            wire.sock.sendall(b"x: " + b"a" * 60_000 + b"\r\n")
        assert wire.answer()[0] == 400
    with Wire(live) as wire:
        wire.sock.sendall(b"CONNECT /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n" + b"".join(embeddings("next")))
        assert wire.answer()[0] == 405
        assert wire.vector() == pytest.approx(offline("next"))
    assert live.ask("/healthz", host="evil.example", connection="upgrade", upgrade="h2c").status == 403


Seen = list[tuple[str, str, bytes]]


def served(pieces: Sequence[bytes]) -> Seen:
    """Method, path and body of each request that the protocol reads in these pieces."""
    seen: Seen = []

    async def app(scope: dict[str, str], receive: mock.Mock, send: mock.Mock) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        seen.append((scope["method"], scope["path"], body))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def run() -> None:
        transport = mock.Mock(spec=asyncio.Transport)
        transport.is_closing.return_value = False
        transport.get_extra_info.return_value = None
        protocol = Protocol(uvicorn.Config(app, lifespan="off", ws="none"), ServerState(), {})
        protocol.connection_made(transport)
        for piece in pieces:
            protocol.data_received(piece)
            await asyncio.sleep(0)
        for _ in range(60):
            await asyncio.sleep(0)
        protocol.connection_lost(None)

    asyncio.run(run())
    return seen


BODIES = st.binary(max_size=12) | st.sampled_from([b"GET / HTTP/1.1\r\n\r\n", b"0\r\n\r\n", b"\r\n"])
REQUESTS = st.lists(
    st.tuples(st.sampled_from(["GET", "POST", "PUT"]), BODIES, st.sampled_from([b"", *OFFERS]), st.booleans()),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(requests=REQUESTS, cuts=st.lists(st.integers(0, 900), max_size=8))
def test_however_the_bytes_are_cut(requests: list[tuple[str, bytes, bytes, bool]], cuts: list[int]) -> None:
    sent = b""
    for number, (method, body, offer, chunked) in enumerate(requests):
        if chunked:
            framing = b"transfer-encoding: chunked\r\n"
            coded = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
        else:
            framing, coded = b"content-length: %d\r\n" % len(body), body
        sent += b"%s /%d HTTP/1.1\r\nhost: a\r\n%s%s\r\n%s" % (method.encode(), number, offer, framing, coded)
    places = [0, *sorted(place for place in cuts if place < len(sent)), len(sent)]
    pieces = [sent[start:stop] for start, stop in itertools.pairwise(places) if start < stop]
    expected = [(method, f"/{number}", body) for number, (method, body, _, _) in enumerate(requests)]
    assert served(pieces) == expected
    assert served([sent[place : place + 1] for place in range(len(sent))]) == expected


def test_thousands_of_offers_in_one_piece() -> None:
    one = b"GET /a HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    assert served([one * 2000])[:3] == [("GET", "/a", b"")] * 3


JAVA = """
import java.net.URI;
import java.net.http.*;

public class Ask {
    public static void main(String[] given) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int number = 0; number < 3; number++) {
            var body = HttpRequest.BodyPublishers.ofString("{\\"model\\":\\"m\\",\\"input\\":\\"text " + number + "\\"}");
            var request = HttpRequest.newBuilder(URI.create(given[0] + "/v1/embeddings"))
                .header("content-type", "application/json").POST(body).build();
            var answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.body());
        }
    }
}
"""


@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java here")
def test_the_client_of_java(start_server: StartServer, fake: FakeModel, tmp_path: Path) -> None:
    live = start_server({"m": fake})
    (tmp_path / "Ask.java").write_text(JAVA)
    done = subprocess.run(
        ["java", str(tmp_path / "Ask.java"), live.url], capture_output=True, text=True, check=False, timeout=300
    )
    lines = done.stdout.splitlines()
    if "release version" in done.stderr or "compiler" in done.stderr.lower():
        pytest.skip("this Java runs no source files")
    assert len(lines) == 3, done.stderr
    for number, line in enumerate(lines):
        status, body = line.split(" ", 1)
        assert status == "200"
        assert json.loads(body)["data"][0]["embedding"] == pytest.approx(offline(f"text {number}"))


def test_head_is_get_without_a_body(live: Live) -> None:
    paths = ("/", "/page.css", "/page.js", "/page.json", "/healthz", "/readyz", "/openapi.json", "/nothing", "/docs")
    for path in (*paths, "/v1/models", "/v1/models/tiny", "/v1/models/other"):
        get, head = live.ask(path), live.ask(path, method="HEAD")
        assert head.body == b"" and head.status == get.status == (
            404 if path[-5:] in ("thing", "/docs", "other") else 200
        )
        for answer in (get, head):
            del answer.headers["date"]
        assert head.headers == get.headers and int(head.headers["content-length"]) == len(get.body)
    metrics = live.ask("/metrics", method="HEAD")
    assert metrics.status == 200 and metrics.headers["content-type"].startswith("text/plain")
    refused = live.ask("/v1/embeddings", method="HEAD")
    assert refused.status == 405 and refused.headers["allow"] == "POST"
    assert set(live.ask("/healthz", method="POST").headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert live.ask("/healthz", method="HEAD", host="evil.example").status == 403
    with Wire(live) as wire:  # and the connection is kept
        for _ in range(2):
            wire.sock.sendall(b"HEAD /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert wire.answer(head_only=True)[0] == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.0\r\nhost: evil.example\r\n\r\n", 403),
        (b"GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n", 403),
        (b"GET http://localhost/healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 200),
        (b"GET http://localhost HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 200),
        (b"GET http://localhost?a=/b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 200),
        (b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 404),
        (b"OPTIONS /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 405),
        (b"GET /v1/%6dodels HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 200),
        (b"GET /v1/models/%74iny HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 200),
        (b"GET /v1/models/%ff%00%0d%0a HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 404),
        (b"GET /%zz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 404),
        (b"get /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n", 400),
        (b"GET /healthz/ HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 307),
    ],
)
def test_other_ways_to_ask(live: Live, sent: bytes, status: int) -> None:
    with Wire(live) as wire:
        wire.sock.sendall(sent)
        assert wire.answer()[0] == status
        assert wire.file.read() == b""  # and the connection is closed


def test_who_leaves_in_the_middle_leaves_no_trace(
    start_server: StartServer, fake: FakeModel, log: pytest.LogCaptureFixture
) -> None:
    live = start_server({"m": fake})
    head, body = embeddings("a" * 1000)
    for offer in (b"", OFFERS[0]):
        head, body = embeddings("a" * 1000, offer)
        for sent in (head[:20], head[:-2], head, head + body[:-1], head + body):
            with Wire(live) as wire:
                wire.sock.sendall(sent)
                wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # it resets
    assert live.ask("/v1/embeddings", {"model": "m", "input": "b"}).status == 200
    live.stop()
    assert log.text == ""


def test_the_parser_still_tells_of_offers() -> None:
    """If it does not, there is nothing to mend any more."""
    parser = httptools.HttpRequestParser(mock.Mock())
    with pytest.raises(httptools.HttpParserUpgrade):
        parser.feed_data(b"GET / HTTP/1.1\r\n" + OFFERS[0] + b"\r\n")
