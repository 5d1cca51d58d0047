"""Requests a second and latency of ``gecko serve`` against what people use instead, on the same model and machine.

python benchmarks/serve.py [--peer-venv DIR] [--seconds 10] [--quick]

Peers: infinity-emb from PyPI in a virtual environment of its own (made in --peer-venv where there is none), each of its
CPU engines and precisions that starts here; and the server everybody writes, FastAPI with ``SentenceTransformer.encode``.
Each server runs alone. Closed-loop clients, each on a kept connection, send one passage of the corpus a request; the
texts are those of the standard library's documentation. Vectors of all servers are held against float32.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PLAIN = """
import sys
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], device="cpu")
app = FastAPI()

class Body(BaseModel):
    model: str
    input: list[str]

@app.get("/health")
def health():
    return {}

@app.post("/v1/embeddings")
def embeddings(body: Body):
    rows = model.encode(body.input, normalize_embeddings=True).tolist()
    return {"data": [{"object": "embedding", "index": n, "embedding": row} for n, row in enumerate(rows)]}

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""


@dataclass
class Contender:
    """A server to measure."""

    name: str
    precision: str
    command: list[str]
    health: str
    ours: bool = False


def contenders(model: Path, port: int, peer: Path | None, folder: Path) -> list[Contender]:
    """What is measured here."""
    plain = folder / "plain.py"
    plain.write_text(PLAIN)
    gecko = [sys.executable, "-c", "from gecko.cli.main import main; main()", "serve", str(model), "--name", "m"]
    found = [
        Contender(
            f"gecko {precision}", precision, [*gecko, "--port", str(port), "--precision", precision], "/readyz", True
        )
        for precision in ("auto", "float32")
    ]
    if peer is not None:
        infinity = [str(peer / "bin/infinity_emb"), "v2", "--model-id", str(model), "--served-model-name", "m"]
        infinity += ["--device", "cpu", "--port", str(port), "--host", "127.0.0.1", "--url-prefix", "/v1"]
        infinity += ["--log-level", "error", "--no-compile"]
        for engine, precision, more in (
            ("torch", "float32", ["--no-bettertransformer"]),
            ("torch", "bfloat16", ["--no-bettertransformer"]),
            ("torch", "float32", ["--bettertransformer"]),
            ("optimum", "float32", []),
        ):
            name = f"infinity {engine} {precision}{' bettertransformer' if '--bettertransformer' in more else ''}"
            command = [*infinity, "--engine", engine, "--dtype", precision, *more]
            found.append(Contender(name, precision, command, "/health"))
    found.append(
        Contender("FastAPI + encode", "float32", [sys.executable, str(plain), str(model), str(port)], "/health")
    )
    return found


class Client(asyncio.Protocol):
    """One connection with one request at a time; as little work as can be, since it shares the processors."""

    def __init__(self, requests: Sequence[bytes], latencies: list[float], generator: random.Random) -> None:
        self.requests, self.latencies, self.generator = requests, latencies, generator
        self.buffer, self.need, self.until = bytearray(), 0, 0.0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Ask at once."""
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Send one request."""
        self.began = time.perf_counter()
        self.transport.write(self.generator.choice(self.requests))

    def data_received(self, data: bytes) -> None:
        """Collect an answer; at its end note the time and ask again."""
        self.buffer += data
        if not self.need:
            head = self.buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            lines = bytes(self.buffer[:head]).lower().split(b"\r\n")
            if b" 200" not in lines[0]:
                self.over.set_exception(RuntimeError(bytes(self.buffer[:500]).decode(errors="replace")))
                return
            self.need = head + 4 + next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        if len(self.buffer) < self.need:
            return
        self.buffer.clear()
        self.need = 0
        now = time.perf_counter()
        self.latencies.append(now - self.began)
        if now < self.until:
            self.ask()
        elif not self.over.done():
            self.over.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server hung up."""
        if not self.over.done():
            self.over.set_exception(RuntimeError(f"the server closed the connection: {exc}"))


async def drive(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> tuple[float, float, float]:
    """(requests a second, p50, p99 in milliseconds) of closed-loop clients; a fifth of the time before is not counted."""
    loop = asyncio.get_running_loop()
    for length in (seconds / 5, seconds):
        latencies: list[float] = []
        began = time.perf_counter()
        running = []
        for number in range(clients):
            client = Client(requests, latencies, random.Random(number))
            client.until = began + length
            await loop.create_connection(lambda client=client: client, "127.0.0.1", port)
            running.append(client)
        await asyncio.gather(*(client.over for client in running))
        took = time.perf_counter() - began
        for client in running:
            client.transport.close()
    p50, p99 = np.quantile(latencies, [0.5, 0.99]) * 1000
    return len(latencies) / took, float(p50), float(p99)


def request(text: str) -> bytes:
    """One HTTP request."""
    body = json.dumps({"model": "m", "input": [text]}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def ask(port: int, texts: Sequence[str]) -> np.ndarray:
    """Vectors of a server."""
    body = json.dumps({"model": "m", "input": list(texts)}).encode()
    query = urllib.request.Request(f"http://127.0.0.1:{port}/v1/embeddings", body, {"content-type": "application/json"})
    rows = [row["embedding"] for row in json.loads(urllib.request.urlopen(query, timeout=120).read())["data"]]
    return np.float32([np.frombuffer(base64.b64decode(row), "<f4") if isinstance(row, str) else row for row in rows])


def start(contender: Contender, port: int, log: Path) -> subprocess.Popen[bytes] | None:
    """The server's process, when it answers; none if it ends or takes minutes."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"}
    if not contender.ours and "infinity" in contender.name:
        env.pop("PYTHONPATH", None)
    with log.open("wb") as file:
        server = subprocess.Popen(contender.command, stdout=file, stderr=file, env=env, start_new_session=True)
    for _ in range(900):
        if server.poll() is not None:
            return None
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{contender.health}", timeout=5).read()
        except OSError:
            time.sleep(0.2)
        else:
            return server
    stop(server)
    return None


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the process and what it started."""
    os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def peer_environment(folder: Path) -> Path | None:
    """The environment of infinity-emb, made where there is none; none if that fails."""
    if not (folder / "bin/infinity_emb").exists():
        print(f"installing infinity-emb into {folder}", file=sys.stderr)
        import torch

        release = torch.__version__.partition("+")[0]
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [
            folder / "bin/pip",
            "install",
            "-q",
            f"torch=={release}",
            "numpy<2",
            "infinity-emb[torch,server,optimum]",
        ]
        if subprocess.run(install, check=False).returncode:
            return None
    return folder


def main() -> None:
    """Measure, print a table, and as the last line one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="minilm")
    parser.add_argument(
        "--peer-venv", type=Path, default=Path("build/infinity-venv"), help="environment of infinity-emb"
    )
    parser.add_argument("--no-peer", action="store_true", help="leave infinity-emb out")
    parser.add_argument("--seconds", type=float, default=10, help="of each cell")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--port", type=int, default=8199)
    parser.add_argument("--quick", action="store_true", help="two seconds a cell, few texts")
    options = parser.parse_args()
    seconds = 2.0 if options.quick else options.seconds

    from gecko.corpus.readers import read_source
    from gecko.encoder import load, resolve_model

    model = Path(resolve_model(options.model)).resolve()
    passages = list(read_source("stdlib"))
    texts = [passage.text[:2000] for passage in random.Random(0).sample(passages, 40 if options.quick else 500)]
    requests = [request(text) for text in texts]
    embedder = load(str(model), precision="float32")
    offline = embedder.embed(texts[:32], task="RETRIEVAL_QUERY")
    tokens = np.mean([item.tokens for item in embedder.prepare(texts)])
    fast = load(str(model))
    for _ in range(2):  # the first is to warm up
        began = time.perf_counter()
        fast.embed(texts)
        peak = len(texts) / (time.perf_counter() - began)
    print(
        f"{len(texts)} texts of {tokens:.0f} tokens on average; offline, length-sorted: {peak:.0f}/s in {fast.precision}"
    )
    del embedder, fast

    peer = None if options.no_peer else peer_environment(options.peer_venv.resolve())
    results: dict[str, dict[int, tuple[float, float, float]]] = {}
    kinds: dict[str, Contender] = {}
    print(f"{'server':36}{'clients':>8}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}  cosine to float32")
    with tempfile.TemporaryDirectory() as folder:
        for contender in contenders(model, options.port, peer, Path(folder)):
            log = Path(folder, "log")
            server = start(contender, options.port, log)
            if server is None:
                last = (log.read_text(errors="replace").strip().splitlines() or ["no reason given"])[-1]
                print(f"{contender.name:36}does not run here: {last[:120]}")
                continue
            try:
                cosine = float((ask(options.port, texts[:32]) * offline).sum(axis=1).min())
                for clients in options.clients:
                    cell = asyncio.run(drive(options.port, requests, clients, seconds))
                    results.setdefault(contender.name, {})[clients] = cell
                    kinds[contender.name] = contender
                    print(
                        f"{contender.name:36}{clients:8}{cell[0]:9.1f}{cell[1]:9.1f}{cell[2]:9.1f}  {cosine:.5f}",
                        flush=True,
                    )
            except (RuntimeError, OSError) as error:
                print(f"{contender.name:36}failed: {error}")
            finally:
                stop(server)

    most = max(options.clients)
    ours = results["gecko auto"][most]
    peers = {name: cells[most] for name, cells in results.items() if not kinds[name].ours and most in cells}
    fastest = max(peers, key=lambda name: peers[name][0])
    same = {name: cell for name, cell in peers.items() if kinds[name].precision == "float32"}
    rival = max(same, key=lambda name: same[name][0])
    print(
        json.dumps(
            {
                "ratio": ours[0] / peers[fastest][0],
                "limit_share": ours[0] / peak,
                "peer": fastest,
                "clients": most,
                "p99_ms": ours[2],
                "peer_p99_ms": peers[fastest][2],
                "ratio_same_precision": results["gecko float32"][most][0] / same[rival][0],
                "peer_same_precision": rival,
                "p99_ms_same_precision": [results["gecko float32"][most][2], same[rival][2]],
            }
        )
    )


if __name__ == "__main__":
    main()
