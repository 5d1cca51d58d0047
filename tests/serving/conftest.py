"""A real server on a free port of this machine, in a thread, over tiny models or a fake one."""

import asyncio
import hashlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="pip install 'gecko-embed[serve]'")

from gecko.core.errors import NonFiniteError
from gecko.encoder import Embedder, load
from gecko.serving.app import Service
from gecko.serving.config import ServeConfig
from gecko.serving.keys import ApiKeys
from gecko.serving.search import PassageSearch
from gecko.serving.server import Server, bind


@dataclass
class Item:
    text: str
    tokens: int


class FakeModel:
    """Vectors from a hash of the text; can be stopped, and fails on the text ``poison``."""

    dim = 8
    max_tokens = 100

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def prepare(self, texts: Sequence[str], *, task: str, title: Sequence[str] | None) -> list[Item]:
        titles = title or [""] * len(texts)
        return [Item(f"{task}|{head}|{text}", len(text)) for head, text in zip(titles, texts, strict=True)]

    def run(self, items: Sequence[Item]) -> np.ndarray:
        self.batches.append([item.text for item in items])
        self.entered.set()
        assert self.gate.wait(20)
        if any("poison" in item.text for item in items):
            raise RuntimeError("the model broke on gecko-secret-in-a-trace")
        return np.stack([fake_vector(item.text) for item in items])


def fake_vector(text: str) -> np.ndarray:
    raw = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), dtype=np.uint8)
    vector = raw.astype(np.float32) - 127.5
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def broken_run(run: Callable[[Sequence[Item]], np.ndarray], *, raised: bool) -> Callable[[Sequence[Item]], np.ndarray]:
    """A model's ``run`` that has no vector for the text ``hollow``: it raises, or gives NaN."""

    def broken(items: Sequence[Item]) -> np.ndarray:
        vectors = run(items)
        for place, item in enumerate(items):
            if item.text.endswith("hollow"):
                if raised:
                    raise NonFiniteError("NaN in the vector of a text", place)
                vectors[place, 1] = np.nan
        return vectors

    return broken


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Live:
    """A running server."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._socket = bind("127.0.0.1", 0)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = Server(service)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        for _ in range(400):
            if self.server.started:
                return
            threading.Event().wait(0.025)
        raise AssertionError("the server did not start")

    def _run(self) -> None:
        asyncio.run(self.server.serve(sockets=[self._socket]))

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()

    def ask(self, path: str, body: Any = None, *, method: str | None = None, **headers: str) -> Answer:
        """One request on a connection of its own; ``body`` is JSON unless it is bytes."""
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {key.replace("_", "-"): value for key, value in headers.items()}
        if sent is not None:
            given = {"content-type": "application/json"} | given
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, sent, given)
            response = connection.getresponse()
            return Answer(
                response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
            )
        finally:
            connection.close()


StartServer = Callable[..., Live]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Start a server: ``start_server(models, config=, keys=, search=)``; it is stopped after the test."""
    running: list[Live] = []

    def start(
        models: Mapping[str, Any],
        config: ServeConfig | None = None,
        keys: ApiKeys | None = None,
        search: PassageSearch | None = None,
    ) -> Live:
        running.append(Live(Service(models, config or ServeConfig(), keys or ApiKeys([]), search)))
        return running[-1]

    yield start
    for live in running:
        live.stop()


@pytest.fixture
def fake() -> FakeModel:
    return FakeModel()


@pytest.fixture(scope="session")
def tiny(tiny_model: Path) -> Embedder:
    """A random model of 32 dimensions and 48 tokens, in float32, read in the unified format."""
    return load(str(tiny_model), precision="float32", form="unified")


@pytest.fixture(scope="session")
def live(tiny: Embedder, tiny_model: Path) -> Iterator[Live]:
    """A server of two models without keys or passages."""
    models = {"tiny-start": load(str(tiny_model), precision="float32", form="native"), "tiny": tiny}
    running = Live(Service(models, ServeConfig(), ApiKeys([])))
    yield running
    running.stop()
