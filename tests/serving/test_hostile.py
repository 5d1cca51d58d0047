"""Bodies that no client should send: each gets 4xx with a reason, none a traceback, and the server goes on."""

import contextlib
import http.client
import json
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from gecko.encoder import Embedder
from gecko.serving.config import ServeConfig

from .conftest import Live, StartServer

PATHS = ("/v1/embeddings", "/v1beta/models/tiny:embedContent", "/v1beta/models/tiny:batchEmbedContents", "/search")
GOOD: tuple[dict[str, Any], ...] = (
    {"model": "tiny", "input": ["a", "b"], "dimensions": 4, "encoding_format": "float", "task": "CLUSTERING"},
    {"content": {"parts": [{"text": "a"}]}, "taskType": "CLUSTERING", "outputDimensionality": 4},
    {"requests": [{"content": {"parts": [{"text": "a"}]}, "taskType": "CLUSTERING"}]},
    {"query": "a", "task": "CLUSTERING", "dimensions": 4, "k": 2, "passages": ["a", "b"]},
)
# In no place of any request is one of these right.
WRONG: tuple[Any, ...] = (
    -1, 0, 1e308, 1.5, True, False, [[]], [None], [[[["a"]]]], {"a": {}}, {"__proto__": 1}, [1, "a"], [{}], 10**400,
)  # fmt: skip
RAW = (
    b"", b" ", b"null", b"[]", b'""', b"0", b"true", b"{", b"}", b"{]", b"NaN", b"Infinity", b"-Infinity", b"'a'", b"{a:1}",
    b'{"model":"tiny","input":"a",}', b'{"model":"tiny","input":NaN}', b'{"model":"tiny","input":"a","dimensions":NaN}',
    b'{"model":"tiny","input":"a","dimensions":1e999}', b'{"model":"tiny" "input":"a"}', b'\xef\xbb\xbf{"model":"tiny"}',
    b'{"model":"tiny","input":"\xff\xfe"}',
    b'{"model":"tiny","input":"\xc3\x28"}', b'{"model":"tiny","input":"\xed\xa0\x80"}',
    b'{"model":"tiny","input":"\\ud800"}', b'{"model":"tiny","input":"\\udc00\\ud800"}', b'{"model":"tiny","input":"\\u12"}',
    b'{"model":"tiny","input":"a\nb"}', b'{"model":"tiny","input":"\x00"}', b"\x00" * 100, b"\xff" * 100, b"\x1f\x8b\x08\x00",
    '{"model":"tiny","input":"a"}'.encode("utf-16"), '{"model":"tiny","input":"a"}'.encode("utf-32"),
    b"--x\r\nContent-Disposition: form-data\r\n\r\n", b"model=tiny&input=a", b"<a/>", b"[" * 100_000, b'{"a":' * 100_000,
    b'{"model":"tiny","input":' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"input":' * 2000 + b"1" + b"}" * 2000,
    b'{"model":"tiny","input":["a"' + b',"a"' * 5000 + b"]}", b'{"model":"tiny","input":"' + b"a" * 70_000 + b'"}',
    b'{"model":"' + b"m" * 100_000 + b'","input":"a"}', b'{"' + b"k" * 100_000 + b'":1}',
    b'{"model":"tiny","input":"a","dimensions":' + b"9" * 5000 + b"}",
)  # fmt: skip


def replaced(value: Any, wrong: Any) -> Iterator[Any]:
    """Copies of ``value`` with one thing in it replaced by ``wrong``, left out, or joined by an unknown neighbour."""
    if isinstance(value, dict):
        yield value | {"unknown": wrong}
        for key in value:
            yield value | {key: wrong}
            for inner in replaced(value[key], wrong):
                yield value | {key: inner}
    elif isinstance(value, list):
        for place, item in enumerate(value):
            for inner in (wrong, *replaced(item, wrong)):
                yield [*value[:place], inner, *value[place + 1 :]]


def bodies() -> Iterator[tuple[str, bytes]]:
    for path in PATHS:
        for raw in RAW:
            yield path, raw
    for path, good in zip(PATHS, GOOD, strict=True):
        for wrong in WRONG:
            for body in replaced(good, wrong):
                if not (wrong == 1e308 and "dimensions" not in json.dumps(body)):
                    yield path, json.dumps(body).encode()
        text = json.dumps(good).encode()
        for cut in range(1, len(text)):
            yield path, text[:cut]
    for body in (GOOD[0] | {"task": "swimming"}, GOOD[0] | {"model": "other"}, GOOD[0] | {"task": "two  blanks"}):
        yield PATHS[0], json.dumps(body).encode()
    yield PATHS[1], json.dumps(GOOD[1] | {"taskType": "SWIMMING"}).encode()


def test_a_thousand_malformed_bodies(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    every = list(dict.fromkeys(bodies()))
    random.Random(0).shuffle(every)
    assert len(every) >= 1000
    accepted = []
    for path, body in every:
        answer = live.ask(path, body)
        if answer.status // 100 != 4:
            accepted.append((answer.status, path, body[:200]))
            continue
        message = answer.json["error"]["message"]
        assert len(message) > 5 and len(answer.body) < 2000, (path, body[:200])
        assert b"Traceback" not in answer.body and b".py" not in answer.body
    assert accepted == []
    assert "Traceback" not in caplog.text
    for path, good in zip(PATHS, GOOD, strict=True):
        assert live.ask(path, good).status == 200


def test_a_hundred_megabytes(live: Live) -> None:
    answer = live.ask("/v1/embeddings", b'{"model":"tiny","input":"' + b"a" * 100_000_000 + b'"}')
    assert answer.status == 413 and "larger than 8388608 bytes" in answer.json["error"]["message"]
    chunks = (b"a" * 1_000_000 for _ in range(20))
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)
    connection.request("POST", "/v1/embeddings", chunks, {"content-type": "application/json"}, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413 and json.loads(response.read())["error"]["message"]
    connection.close()


def test_who_asks_first_is_told_before_sending(live: Live) -> None:
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as sock:
        sock.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: 100000000\r\nexpect: 100-continue\r\n\r\n"
        )
        assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST /healthz HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
        b"GET /caf\xe9 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 1_000_000 + b"\r\n\r\n",
    ],
)
def test_broken_http(live: Live, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as sock:
        answer = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server closes without reading on
            sock.sendall(head)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                answer += piece
    assert answer.startswith(b"HTTP/1.1 4") or (not answer and len(head) > 500_000)
    assert live.ask("/healthz").status == 200


def test_own_limits(start_server: StartServer, tiny: Embedder) -> None:
    live = start_server({"tiny": tiny}, ServeConfig(max_body_bytes=1000, max_texts=3, max_chars=10))
    assert live.ask(PATHS[0], {"model": "tiny", "input": ["a" * 10] * 3}).status == 200
    for body, status, message in (
        ({"input": ["a"] * 4}, 400, "at most 3"),
        ({"input": "a" * 11}, 400, "at most 10"),
        ({"input": "a" * 1000}, 413, "larger than 1000 bytes"),
    ):
        answer = live.ask(PATHS[0], {"model": "tiny"} | body)
        assert answer.status == status and message in answer.json["error"]["message"]
    schemas = live.ask("/openapi.json").json["components"]["schemas"]
    assert schemas["EmbeddingsRequest"]["properties"]["input"]["anyOf"][1]["maxItems"] == 3


def test_a_head_that_does_not_end(start_server: StartServer, tiny: Embedder) -> None:
    live = start_server({"tiny": tiny}, ServeConfig(body_timeout=0.3))
    for sent in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: localhost\r\nx: a"):
        with socket.create_connection(("127.0.0.1", live.port), timeout=20) as sock:
            sock.sendall(sent)
            assert sock.recv(65536) == b""  # closed by the server
