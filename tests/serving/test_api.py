"""The two APIs over real HTTP: their vectors are those of ``Embedder.embed``, their errors say what to do."""

import base64
import http.client
import json
import re
import threading
from typing import Any

import numpy as np
import pytest

from gecko.encoder import Embedder
from gecko.serving.config import ServeConfig
from gecko.serving.keys import ApiKeys, load_keys

from .conftest import FakeModel, Live, StartServer, broken_run, fake_vector

TEXTS = ["the red cat sleeps", "a big house", "fish", "the tree in the river " * 20]
SINGLE = "/v1beta/models/tiny:embedContent"
BATCH = "/v1beta/models/tiny:batchEmbedContents"


def content(text: str, **more: Any) -> dict[str, Any]:
    return {"content": {"parts": [{"text": text}]}, **more}


def close(ours: Any, offline: Any) -> bool:
    """Equal but for the rounding that comes with other neighbours in a batch."""
    return np.allclose(np.asarray(ours, dtype=np.float32), offline, rtol=0, atol=2e-6)


def test_openai_vectors_are_the_offline_ones(live: Live, tiny: Embedder) -> None:
    answer = live.ask("/v1/embeddings", {"model": "tiny", "input": TEXTS})
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    body = answer.json
    assert [row["index"] for row in body["data"]] == [0, 1, 2, 3]
    assert close([row["embedding"] for row in body["data"]], tiny.embed(TEXTS, task="RETRIEVAL_QUERY"))
    tokens = sum(item.tokens for item in tiny.prepare(TEXTS, task="RETRIEVAL_QUERY"))
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens} and tokens > 40
    assert body["model"] == "tiny" and body["object"] == "list"


@pytest.mark.parametrize("task", ["RETRIEVAL_DOCUMENT", "CLUSTERING", "question answering", "Find a law for a case"])
def test_openai_options(live: Live, tiny: Embedder, task: str) -> None:
    asked = {
        "model": "tiny",
        "input": TEXTS[0],
        "task": task,
        "dimensions": 7,
        "encoding_format": "base64",
        "user": "u",
    }
    row = live.ask("/v1/embeddings", asked).json["data"][0]["embedding"]
    vector = np.frombuffer(base64.b64decode(row), dtype="<f4")
    assert close(vector, tiny.embed(TEXTS[0], task=task, dim=7))
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    numbers = live.ask("/v1/embeddings", asked | {"encoding_format": "float"}).json["data"][0]["embedding"]
    assert np.array_equal(np.float32(numbers), vector)  # the digits lose nothing
    for same in (
        {"encoding_format": None},
        {"encoding_format": "float", "task": task.lower() if "_" in task else task},
    ):
        assert live.ask("/v1/embeddings", asked | same).json["data"][0]["embedding"] == numbers


def test_task_in_the_models_name(live: Live, tiny: Embedder) -> None:
    answer = live.ask("/v1/embeddings", {"model": "tiny@RETRIEVAL_DOCUMENT", "input": "a big house"})
    assert close(answer.json["data"][0]["embedding"], tiny.embed("a big house", task="RETRIEVAL_DOCUMENT"))
    assert answer.json["model"] == "tiny@RETRIEVAL_DOCUMENT"
    twice = live.ask("/v1/embeddings", {"model": "tiny@CLUSTERING", "input": "a", "task": "CLUSTERING"})
    assert twice.status == 400 and "named twice" in twice.json["error"]["message"]


def test_google_vectors_are_the_offline_ones(live: Live, tiny: Embedder) -> None:
    plain = live.ask(SINGLE, content(TEXTS[0]))
    assert plain.status == 200
    assert close(plain.json["embedding"]["values"], tiny.embed(TEXTS[0], task="RETRIEVAL_QUERY"))
    titled = content(TEXTS[0], model="models/tiny", taskType="RETRIEVAL_DOCUMENT", title="cat", outputDimensionality=5)
    values = live.ask(SINGLE, titled).json["embedding"]["values"]
    assert close(values, tiny.embed(TEXTS[0], task="RETRIEVAL_DOCUMENT", title="cat", dim=5))
    snake = content(TEXTS[0], task_type="RETRIEVAL_DOCUMENT", title="cat", output_dimensionality=5)
    assert live.ask(SINGLE, snake).json["embedding"]["values"] == values
    assert live.ask(SINGLE.replace("v1beta", "v1"), snake).json["embedding"]["values"] == values


def test_google_batch_keeps_the_order_of_mixed_tasks(live: Live, tiny: Embedder) -> None:
    kinds = ["RETRIEVAL_QUERY", "RETRIEVAL_DOCUMENT", "TASK_TYPE_UNSPECIFIED", "CLUSTERING", "RETRIEVAL_DOCUMENT"]
    titles = [None, "house", None, None, None]
    asked = [
        content(f"{TEXTS[n % 4]} {n}", taskType=kinds[n % 5], outputDimensionality=n % 7 + 1)
        | ({"title": titles[n % 5]} if titles[n % 5] else {})
        for n in range(150)
    ]
    rows = live.ask(BATCH, {"requests": asked}).json["embeddings"]
    assert len(rows) == 150
    for n, row in enumerate(rows):
        task = kinds[n % 5].replace("TASK_TYPE_UNSPECIFIED", "RETRIEVAL_QUERY")
        offline = tiny.embed(f"{TEXTS[n % 4]} {n}", task=task, title=titles[n % 5], dim=n % 7 + 1)
        assert close(row["values"], offline), n


def test_parts_are_joined(live: Live, tiny: Embedder) -> None:
    two = {"content": {"parts": [{"text": "a big"}, {"text": "house"}], "role": "user"}}
    assert close(live.ask(SINGLE, two).json["embedding"]["values"], tiny.embed("a big\nhouse", task="RETRIEVAL_QUERY"))


def test_many_clients_at_once(live: Live, tiny: Embedder) -> None:
    offline = {text: tiny.embed(text, task="RETRIEVAL_QUERY") for text in (f"cat {n}" for n in range(40))}
    wrong: list[str] = []

    def client(number: int) -> None:
        for step in range(10):
            text = f"cat {(number * 7 + step) % 40}"
            row = live.ask("/v1/embeddings", {"model": "tiny", "input": text}).json["data"][0]["embedding"]
            if not close(row, offline[text]):
                wrong.append(text)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    texts = [line for line in live.ask("/metrics").body.decode().split("\n") if "gecko_batch_texts_count" in line]
    assert texts  # and the metrics know of it


def test_models(live: Live) -> None:
    cards = live.ask("/v1/models").json["data"]
    assert [card["id"] for card in cards] == ["tiny-start", "tiny"]
    assert live.ask("/v1/models/tiny").json["id"] == "tiny"
    missing = live.ask("/v1/models/other")
    assert missing.status == 404 and "tiny-start, tiny" in missing.json["error"]["message"]


OPENAI: list[tuple[dict[str, Any], int, str]] = [
    ({"input": "a"}, 400, "model: Field required"),
    ({"model": "tiny"}, 400, "input: Field required"),
    ({"model": "text-embedding-3-small", "input": "a"}, 404, "this server has: tiny-start, tiny"),
    ({"model": "tiny@NOTHING", "input": "a"}, 400, "RETRIEVAL_QUERY, RETRIEVAL_DOCUMENT"),
    ({"model": "tiny@no-thing", "input": "a"}, 400, "task: 'no-thing' is not known"),
    ({"model": "tiny", "input": [1, 2, 3]}, 400, "token arrays are not read.*check_embedding_ctx_length=False"),
    ({"model": "tiny", "input": [[1, 2], [3]]}, 400, "token arrays are not read"),
    ({"model": "tiny", "input": []}, 400, "no text"),
    ({"model": "tiny", "input": ["a", ""]}, 400, "text 1 is empty"),
    ({"model": "tiny", "input": ["a", 5]}, 400, "input.1: .*string"),
    ({"model": "tiny", "input": {"text": "a"}}, 400, "input: give a string or a list of strings"),
    ({"model": "tiny", "input": "a", "dimensions": 0}, 400, "dimensions: .*greater than or equal to 1"),
    ({"model": "tiny", "input": "a", "dimensions": 33}, 400, "33 asked for, but model 'tiny' has 32"),
    ({"model": "tiny", "input": "a", "dimensions": "8"}, 400, "dimensions: .*integer"),
    ({"model": "tiny", "input": "a", "dimensions": True}, 400, "dimensions: .*integer"),
    ({"model": "tiny", "input": "a", "encoding_format": "int8"}, 400, "encoding_format: .*'float' or 'base64'"),
    ({"model": "tiny", "input": "a", "task": "swimming"}, 400, "'swimming' is not known; give one of RETRIEVAL_QUERY"),
    ({"model": "tiny", "input": "a", "trust_remote_code": True}, 400, "trust_remote_code: is not a known field"),
    ({"model": "../../etc/passwd", "input": "a"}, 404, "is not served"),
    ({"model": "hf:some/model", "input": "a"}, 404, "is not served"),
    ({"model": "tiny", "input": "x" * 65_537}, 400, "65537 characters; a text has at most 65536"),
    ({"model": "tiny", "input": ["x"] * 2049}, 400, "2049 texts; a request has at most 2048"),
]


@pytest.mark.parametrize(("body", "status", "message"), OPENAI)
def test_openai_refusals(live: Live, body: dict[str, Any], status: int, message: str) -> None:
    answer = live.ask("/v1/embeddings", body)
    assert answer.status == status
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert re.search(message, error["message"]), error["message"]


GOOGLE: list[tuple[str, dict[str, Any], int, str, str]] = [
    (SINGLE, {}, 400, "INVALID_ARGUMENT", "content: Field required"),
    (SINGLE, {"content": {"parts": []}}, 400, "INVALID_ARGUMENT", "content.parts"),
    (SINGLE, content(""), 400, "INVALID_ARGUMENT", "is empty"),
    (SINGLE, content("a", taskType="SWIMMING"), 400, "INVALID_ARGUMENT", "taskType: 'SWIMMING' is not known"),
    (SINGLE, content("a", title="t"), 400, "INVALID_ARGUMENT", "title: only .* RETRIEVAL_DOCUMENT"),
    (SINGLE, content("a", outputDimensionality=99), 400, "INVALID_ARGUMENT", "99 asked for"),
    (SINGLE, content("a", model="models/other"), 400, "INVALID_ARGUMENT", "not the model of the URL"),
    ("/v1beta/models/other:embedContent", content("a"), 404, "NOT_FOUND", "is not served"),
    ("/v1beta/models/..%2F..%2Fetc:embedContent", content("a"), 404, "NOT_FOUND", "nothing at this path"),
    (BATCH, {"requests": []}, 400, "INVALID_ARGUMENT", "requests"),
    (BATCH, {"requests": [content("a"), content("b", taskType="X")]}, 400, "INVALID_ARGUMENT", "requests.1.taskType"),
    (BATCH, {"requests": [content("a")] * 2049}, 400, "INVALID_ARGUMENT", "at most 2048"),
    ("/v1beta/models/tiny:generateContent", content("a"), 404, "NOT_FOUND", "nothing at this path"),
]


@pytest.mark.parametrize(("path", "body", "status", "code", "message"), GOOGLE)
def test_google_refusals(live: Live, path: str, body: dict[str, Any], status: int, code: str, message: str) -> None:
    answer = live.ask(path, body)
    assert answer.status == status
    error = answer.json["error"]
    assert error["code"] == status and error["status"] == code
    assert re.search(message, error["message"]), error["message"]


def test_paths_and_methods(live: Live) -> None:
    assert live.ask("/healthz").json == {"status": "ok"}
    assert live.ask("/readyz").json == {"status": "ready"}
    wrong = live.ask("/v1/embeddings", method="GET")
    assert (
        wrong.status == 405
        and wrong.headers["allow"] == "POST"
        and "GET is not possible" in wrong.json["error"]["message"]
    )
    for path in (
        "/docs",
        "/page/page.html",
        "/..%2f..%2fetc/passwd",
        "/page.js/../../keys",
        "/%2e%2e/%2e%2e/etc/passwd",
    ):
        assert live.ask(path).status == 404
    assert live.ask("/v1/embeddings", b"{}", content_type="text/plain").status == 415


def test_keys(start_server: StartServer, fake: FakeModel) -> None:
    key = "gecko-test-key-0123456789"
    live = start_server({"m": fake}, keys=load_keys(None, {"GECKO_API_KEYS": key}))
    body = {"model": "m", "input": "a"}
    refused = live.ask("/v1/embeddings", body)
    assert refused.status == 401 and refused.headers["www-authenticate"] == "Bearer"
    assert "an API key is needed" in refused.json["error"]["message"]
    for headers in (
        {"authorization": f"Bearer {key}x"},
        {"authorization": f"Basic {key}"},
        {"authorization": key},
        {"x_goog_api_key": "b\xe4d"},
        {"authorization": "Bearer "},
    ):
        assert live.ask("/v1/embeddings", body, **headers).status == 401
    for headers in ({"authorization": f"Bearer {key}"}, {"authorization": f"bearer  {key}"}, {"x_goog_api_key": key}):
        assert live.ask("/v1/embeddings", body, **headers).status == 200
    assert live.ask(f"/v1/models?key={key}").status == 401  # keys do not belong into URLs
    guarded = ("/v1/models", "/metrics", "/openapi.json", "/page.json", "/nothing")
    assert {live.ask(path).status for path in guarded} == {401}
    assert {live.ask(path).status for path in ("/healthz", "/readyz", "/", "/page.js", "/page.css")} == {200}
    assert live.ask("/v1/models", host="any.example", authorization=f"Bearer {key}").status == 200


def test_without_keys_other_names_for_this_machine_are_refused(live: Live) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost.evil.example:8000"):
        answer = live.ask("/healthz", host=host)
        assert answer.status == 403 and "localhost only" in answer.json["error"]["message"]
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"):
        assert live.ask("/healthz", host=host).status == 200


def test_queue_limit_and_timeout(start_server: StartServer, fake: FakeModel) -> None:
    live = start_server({"m": fake}, ServeConfig(max_queue_tokens=20, timeout=0.5))
    fake.gate.clear()
    slow: list[Any] = []
    thread = threading.Thread(
        target=lambda: slow.append(live.ask("/v1/embeddings", {"model": "m", "input": ["slow" * 30]}))
    )
    thread.start()
    assert fake.entered.wait(10)
    full = live.ask("/v1/embeddings", {"model": "m", "input": "a"})
    assert full.status == 429 and int(full.headers["retry-after"]) >= 1
    assert full.json["error"]["type"] == "rate_limit_error"
    assert live.ask("/v1beta/models/m:embedContent", content("a")).json["error"]["status"] == "RESOURCE_EXHAUSTED"
    assert live.ask("/healthz").status == 200  # the event loop is free while the model works
    thread.join(20)
    assert slow[0].status == 503 and slow[0].headers["retry-after"] == "5"
    assert "not ready within 0.5 s" in slow[0].json["error"]["message"]
    fake.gate.set()


def test_the_models_own_failure_is_a_500_without_details(
    start_server: StartServer, fake: FakeModel, caplog: Any
) -> None:
    live = start_server({"m": fake})
    answer = live.ask("/v1/embeddings", {"model": "m", "input": "poison"})
    assert answer.status == 500
    assert "Traceback" not in answer.body.decode() and "secret" not in answer.body.decode()
    assert "gecko-secret-in-a-trace" in caplog.text  # the log has what the client does not get
    assert live.ask("/v1/embeddings", {"model": "m", "input": "good"}).status == 200


def test_a_text_without_a_vector_is_a_422_with_its_place(
    start_server: StartServer, fake: FakeModel, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(fake, "run", broken_run(fake.run, raised=True))
    live = start_server({"m": fake})
    single, batch = (path.replace("tiny", "m") for path in (SINGLE, BATCH))
    kinds = ["RETRIEVAL_DOCUMENT", "CLUSTERING", "RETRIEVAL_DOCUMENT", "CLUSTERING", "CLUSTERING"]
    asked = [content("hollow" if n == 3 else f"text {n}", taskType=kind) for n, kind in enumerate(kinds)]
    for path, body, place in (
        ("/v1/embeddings", {"model": "m", "input": ["a"] * 70 + ["hollow", "b"]}, "input.70"),
        ("/v1/embeddings", {"model": "m", "input": "hollow"}, "input.0"),
        (single, content("hollow"), "content"),
        (batch, {"requests": asked}, "requests.3.content"),
        ("/search", {"query": "hollow", "passages": ["a"]}, "query"),
        ("/search", {"query": "a", "passages": ["a", "hollow"]}, "passages.1"),
    ):
        answer = live.ask(path, body)
        assert answer.status == 422
        error = answer.json["error"]
        assert error["message"].startswith(f"{place}: ") and "NaN" in error["message"]
        assert error.get("param", place) == place and error.get("status", "INVALID_ARGUMENT") == "INVALID_ARGUMENT"
    assert "Traceback" not in caplog.text


def test_a_text_without_a_vector_spoils_no_other_request(
    start_server: StartServer, fake: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "run", broken_run(fake.run, raised=True))
    live = start_server({"m": fake})
    answers: dict[str, Any] = {}

    def client(text: str) -> None:
        answers[text] = live.ask("/v1/embeddings", {"model": "m", "input": ["before", text]})

    fake.gate.clear()
    threads = [threading.Thread(target=client, args=(text,)) for text in ("one", "hollow", "two", "three")]
    for thread in threads:
        thread.start()
    assert fake.entered.wait(10)
    for _ in range(200):
        if live.service.batcher.queued_tokens > 20:
            break
        threading.Event().wait(0.01)
    fake.gate.set()
    for thread in threads:
        thread.join()
    assert answers["hollow"].status == 422 and answers["hollow"].json["error"]["param"] == "input.1"
    for text in ("one", "two", "three"):
        row = answers[text].json["data"][1]["embedding"]
        assert close(row, fake_vector(f"RETRIEVAL_QUERY||{text}"))


def test_a_slow_body_and_one_that_stops(start_server: StartServer, fake: FakeModel) -> None:
    live = start_server({"m": fake}, ServeConfig(body_timeout=0.3))
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)
    connection.putrequest("POST", "/v1/embeddings")
    connection.putheader("content-type", "application/json")
    connection.putheader("content-length", "1000")
    connection.endheaders(b'{"model":')
    answer = connection.getresponse()
    assert answer.status == 408 and "within 0.3 s" in json.loads(answer.read())["error"]["message"]
    connection.close()
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)
    connection.putrequest("POST", "/v1/embeddings")
    connection.putheader("content-type", "application/json")
    connection.putheader("content-length", "1000")
    connection.endheaders(b'{"model":')
    connection.close()
    assert live.ask("/healthz").status == 200


def test_metrics(start_server: StartServer, fake: FakeModel) -> None:
    live = start_server({"m": fake})
    for _ in range(3):
        live.ask("/v1/embeddings", {"model": "m", "input": ["abc", "de"]})
    live.ask("/v1/embeddings", {"model": "other\nname", "input": "a"})
    live.ask("/a/path/with/a-secret")
    answer = live.ask("/metrics")
    lines = answer.body.decode().splitlines()
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'gecko_requests_total{route="/v1/embeddings",status="200"} 3.0' in lines
    assert 'gecko_requests_total{route="/v1/embeddings",status="404"} 1.0' in lines
    assert 'gecko_requests_total{route="none",status="404"} 1.0' in lines
    assert 'gecko_tokens_total{model="m"} 15.0' in lines
    assert 'gecko_batch_texts_sum{model="m"} 6.0' in lines
    assert "gecko_queue_tokens 0.0" in lines
    assert "secret" not in answer.body.decode()


def test_empty_keys_object_is_open(start_server: StartServer, fake: FakeModel) -> None:
    assert start_server({"m": fake}, keys=ApiKeys([])).ask("/v1/models").status == 200
