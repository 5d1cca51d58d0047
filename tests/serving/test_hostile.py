"""Bodies that no client should send: each gets 4xx with a reason, none a traceback, and the server goes on."""

import codecs
import contextlib
import gzip
import http.client
import json
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gecko.encoder import Embedder
from gecko.serving.config import ServeConfig
from gecko.serving.errors import RequestError
from gecko.serving.schemas import BatchEmbedContentsRequest, EmbedContentRequest, EmbeddingsRequest, parse

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


NAMED: list[tuple[str, bytes, str]] = [
    (PATHS[0], rb'{"model":"tiny","input":["whole","half \udc00 of one"]}', "input.1 holds half of a surrogate pair"),
    (PATHS[0], rb'{"model":"tiny","input":"\ud83e"}', "input holds half of a surrogate pair"),
    (PATHS[0], rb'{"model":"tiny","input":["\ude00\ud83d"],"user":"u"}', "input.0 holds half of a surrogate pair"),
    (PATHS[0], rb'{"model":"t\ud800","input":"a"}', "model holds half of a surrogate pair"),
    (PATHS[0], rb'{"model":"tiny","in\ud800":"a"}', "in? is a name with half of a surrogate pair"),
    (PATHS[1], rb'{"content":{"parts":[{"text":"a"},{"text":"\udfff"}]}}', "content.parts.1.text holds half of a"),
    (PATHS[2], rb'{"requests":[{"content":{"parts":[{"text":"\ud800"}]}}]}', "requests.0.content.parts.0.text holds half"),
    (PATHS[3], rb'{"query":"a","passages":["a","b","\ud800"]}', "passages.2 holds half of a surrogate pair"),
    (PATHS[0], b'{"model":"tiny","input":"a","input":"b"}', "input stands twice"),
    (PATHS[0], rb'{"model":"tiny","input":"a: b", "\u006dodel" : "tiny"}', "model stands twice"),
    (PATHS[1], b'{"content":{"parts":[{"text":"a","text":"b"}]}}', "content.parts.0.text stands twice"),
    (PATHS[1], b'{"content":{"parts":[{"text":"a"}]},"taskType":"CLUSTERING","task_type":"CLUSTERING"}', "task_type"),
    (PATHS[0], b'{"model":"tiny","input":[["a"]]}', "input: give a string or a list of strings"),
    (PATHS[0], b'{"model":"tiny","input":[[]]}', "input: give a string or a list of strings"),
    (PATHS[0], b'{"model":"tiny","input":["a",["b"]]}', "input.1: Input should be a valid string"),
    (PATHS[0], b'{"model":"tiny","input":["a",NaN]}', "input.1: Input should be a valid string"),
    (PATHS[0], b'{"model":"tiny","input":"a","dimensions":-Infinity}', "dimensions: Input should be a valid integer"),
    (PATHS[0], b'{"model":"tiny","input":"a","dimensions":' + b"9" * 5000 + b"}", "number out of range at line 1 column"),
    (PATHS[0], b'{"model":"tiny","input":"a"}\n{"a":1}', "trailing characters at line 2 column 1"),
    (PATHS[0], b'{"model":"tiny","input":' + b'{"a":' * 5000 + b"1", "recursion limit exceeded at line 1"),
    (PATHS[0], b"", "the body is empty"),
    (PATHS[0], b" \r\n", "the body is empty"),
    (PATHS[0], '{"model":"tiny","input":"é"}'.encode("utf-16"), "the body is in UTF-16; send JSON in UTF-8"),
    (PATHS[0], '{"model":"tiny","input":"é"}'.encode("utf-16-be"), "the body is in UTF-16-BE; send JSON in UTF-8"),
    (PATHS[0], '{"model":"tiny","input":"é"}'.encode("utf-32-le"), "the body is in UTF-32-LE; send JSON in UTF-8"),
    (PATHS[0], '{"model":"tiny","input":"é"}'.encode("cp1252"), "the body is not UTF-8 at byte 25"),
    (PATHS[0], b'{"model":"tiny","input":"\xed\xa0\xbd"}', "the body is not UTF-8 at byte 25"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "message"), NAMED)
def test_a_refusal_names_the_place(live: Live, path: str, body: bytes, message: str) -> None:
    answer = live.ask(path, body)
    assert answer.status == 400 and message in answer.json["error"]["message"]


def test_a_byte_order_mark_is_ignored(live: Live) -> None:
    for path, good in zip(PATHS, GOOD, strict=True):
        assert live.ask(path, codecs.BOM_UTF8 + json.dumps(good).encode()).json == live.ask(path, good).json
    assert live.ask(PATHS[0], codecs.BOM_UTF8 * 1000 + json.dumps(GOOD[0]).encode()).status == 400


def test_a_compressed_body_is_refused(live: Live) -> None:
    body = {"model": "tiny", "input": "a"}
    for coding in ("gzip", "GZIP", "deflate", "identity, br"):
        answer = live.ask("/v1/embeddings", gzip.compress(json.dumps(body).encode()), content_encoding=coding)
        assert answer.status == 415 and answer.headers["accept-encoding"] == "identity"
        assert f"content-encoding is '{coding}'" in answer.json["error"]["message"]
    assert live.ask("/v1/embeddings", body, content_encoding="identity").status == 200


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8) | st.sampled_from(
    ['"a":', '":', '\\" :', '{"input":']
)


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=4), ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_texts_that_look_like_json_are_read(texts: list[str], ascii_only: bool, indent: int | None) -> None:
    def body(value: Any) -> bytes:
        return json.dumps(value, ensure_ascii=ascii_only, indent=indent, separators=(" , ", " : ")).encode()

    one = {"content": {"parts": [{"text": text} for text in texts], "role": texts[0]}, "title": texts[-1]}
    asked = {"model": texts[0], "input": texts, "user": texts[-1]}
    assert parse(EmbeddingsRequest, body(asked)).input == texts
    assert [part.text for part in parse(EmbedContentRequest, body(one)).content.parts] == texts
    read = parse(BatchEmbedContentsRequest, body({"requests": [one, one]}))
    assert [part.text for part in read.requests[1].content.parts] == texts
    twice = body(asked)[:-1].rstrip() + b"," + body({"input": texts[0]})[1:]
    with pytest.raises(RequestError, match="input stands twice"):
        parse(EmbeddingsRequest, twice)


def test_a_text_that_holds_json_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(_: bytes) -> None:
        raise AssertionError

    monkeypatch.setattr("gecko.serving.schemas._fault", fault)
    text = json.dumps({"name": {"of a thing": 'its "end":'}})
    body = json.dumps({"model": "m", "input": [text, json.dumps(text)]}).encode()
    assert parse(EmbeddingsRequest, body).input == [text, json.dumps(text)]
    with pytest.raises(AssertionError):
        parse(EmbeddingsRequest, b'{"model": "' + b"\\\\" + b'", "input": "a", "input" : "b"}')
