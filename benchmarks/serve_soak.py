"""Whether the server keeps its word under bad clients: python benchmarks/serve_soak.py [--seconds 120] [--clients 64].

Starts ``gecko serve`` with an API key and a line a request in its log, and loads it from many threads: texts alone and
in lists, in OpenAI's and in Google's form; every tenth request is dropped at a random moment. Then SIGTERM comes while
clients that drop nothing keep asking. Checked: each answer is 200 with the vectors of ``Embedder.embed``; each request
that the server accepted was answered, or its client had left; memory is flat; the key is in no log, nor a traceback.
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

WORDS = ("search", "engine", "index", "river", "stone", "bread", "light", "garden", "winter", "signal", "file", "path")


class Load:
    """What all clients share: texts, their vectors, and counts."""

    def __init__(self, port: int, key: str, texts: list[str], vectors: np.ndarray, tolerance: float) -> None:
        self.port, self.key, self.texts, self.vectors, self.tolerance = port, key, texts, vectors, tolerance
        self.lock = threading.Lock()
        self.answers = self.dropped = self.unanswered = 0
        self.wrong: list[str] = []
        self.worst = 0.0
        self.stop = threading.Event()

    def client(self, seed: int, drops: float) -> None:
        """Ask until told to stop, or until nobody listens."""
        generator = random.Random(seed)
        connection = None
        while not self.stop.is_set():
            rows = [generator.randrange(len(self.texts)) for _ in range(generator.choice((1, 1, 1, 3, 40)))]
            path, body = self.request([self.texts[row] for row in rows], generator.random() < 0.3)
            try:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
                    connection.connect()
            except OSError:
                return
            headers = {"content-type": "application/json", "authorization": f"Bearer {self.key}"}
            try:
                if generator.random() < drops:
                    connection.request(
                        "POST",
                        path,
                        body[: generator.randrange(1, len(body) + 1)],
                        headers | {"content-length": str(len(body))},
                    )
                    time.sleep(generator.random() * 0.05)
                    connection.close()
                    connection = None
                    with self.lock:
                        self.dropped += 1
                    continue
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                answer = response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                connection = None
                with self.lock:
                    self.unanswered += 1
                continue
            self.check(path, response.status, answer, rows)
            if response.will_close:
                connection.close()
                connection = None

    def request(self, texts: list[str], google: bool) -> tuple[str, bytes]:
        """Path and body."""
        if google:
            parts = [{"content": {"parts": [{"text": text}]}, "taskType": "RETRIEVAL_QUERY"} for text in texts]
            return "/v1beta/models/soak:batchEmbedContents", json.dumps({"requests": parts}).encode()
        return "/v1/embeddings", json.dumps({"model": "soak", "input": texts}).encode()

    def check(self, path: str, status: int, answer: bytes, rows: list[int]) -> None:
        """Hold an answer against the offline vectors."""
        problem, distance = "", 0.0
        if status != 200:
            problem = f"{status}: {answer[:200]!r}"
        else:
            body = json.loads(answer)
            ours = np.float32([row.get("embedding") or row["values"] for row in body.get("data") or body["embeddings"]])
            distance = float((1 - (ours * self.vectors[rows]).sum(axis=1)).max())
            if ours.shape != self.vectors[rows].shape or distance > self.tolerance:
                problem = f"{path}: cosine distance {distance:.2g} to the offline vectors"
        with self.lock:
            self.answers += 1
            self.worst = max(self.worst, distance)
            if problem:
                self.wrong.append(problem)


def phase(load: Load, clients: int, seconds: float, drops: float, seed: int) -> list[threading.Thread]:
    """Start clients, and wait."""
    threads = [threading.Thread(target=load.client, args=(seed + n, drops)) for n in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    return threads


def end(load: Load, threads: list[threading.Thread]) -> None:
    """Let the clients finish their last request."""
    load.stop.set()
    for thread in threads:
        thread.join()
    load.stop.clear()


WARM_TURNS = 10


def main() -> int:
    """Run, print one JSON object, and return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=64)
    options = parser.parse_args()

    from gecko.encoder import load as load_model
    from gecko.serving.keys import new_key

    generator = random.Random(0)
    texts = [" ".join(generator.choices(WORDS, k=generator.randint(1, 60))) for _ in range(300)]
    model = load_model(options.model)
    vectors = model.embed(texts, task="RETRIEVAL_QUERY")
    tolerance = 1e-5 if model.precision == "float32" else 2e-3
    del model

    with tempfile.TemporaryDirectory() as folder:
        keys, log = Path(folder, "keys"), Path(folder, "log")
        key = new_key("soak", keys)
        command = [
            sys.executable,
            "-c",
            "from gecko.cli.main import main; main()",
            "serve",
            options.model,
            "--name",
            "soak",
        ]
        with log.open("w") as file:
            server = subprocess.Popen(
                [*command, "--port", "0", "--api-keys", str(keys), "--log-requests"],
                stdout=file,
                stderr=file,
                env={**os.environ, "COLUMNS": "200"},
            )
        try:
            while (match := re.search(r"http://127.0.0.1:(\d+)", log.read_text())) is None:
                if server.poll() is not None:
                    sys.exit(f"the server did not start:\n{log.read_text()}")
                time.sleep(0.1)
            load = Load(int(match[1]), key, texts, vectors, tolerance)
            time.sleep(0.5)
            process = psutil.Process(server.pid)
            before = warm = 0
            for turn in range(WARM_TURNS):  # pools and caches fill: a kernel is made for each new shape of a batch
                end(load, phase(load, options.clients, max(2.0, options.seconds / 4), 0.1, 5000 * turn))
                before, warm = process.memory_info().rss, before
                if before - warm < 16 * 2**20:
                    break
            end(load, phase(load, options.clients, options.seconds * 3 / 4, 0.1, 1000))
            growth = process.memory_info().rss - before
            in_soak = load.answers
            lines = -1
            while lines != (lines := log.read_text().count(" 200 ")):  # answers to clients that have left
                time.sleep(1)
            threads = phase(load, options.clients, min(2.0, options.seconds / 4), 0, 2000)
            server.send_signal(signal.SIGTERM)
            for thread in threads:  # they stop when nobody listens any more
                thread.join()
            code = server.wait(60)
        finally:
            server.kill()
        text = log.read_text()
    accepted, answered, left = map(int, re.search(r"stopped: (\d+) \w+ accepted, (\d+) \w+, (\d+) left", text).groups())
    by_term = text.count(" 200 ") - lines
    promises = {
        "answers right": not load.wrong,
        "all accepted answered or left": accepted == answered + left,
        "all answers at SIGTERM received": by_term == load.answers - in_soak > 0,
        "ended by itself": code == 0,
        "memory flat": growth < 64 * 2**20,
        "no key in the log": key not in text and " 200 " in text,
        "no traceback in the log": "Traceback" not in text,
        "clients dropped": load.dropped > 0,
    }
    for what, kept in promises.items():
        print(f"{'yes' if kept else 'NO ':4}{what}")
    for problem in load.wrong[:5]:
        print(problem)
    print(
        json.dumps(
            {
                "ratio": (answered + left) / accepted,
                "limit_share": None,
                "accepted": accepted,
                "dropped by clients": load.dropped,
                "answers checked": load.answers,
                "refused while closing": load.unanswered,
                "worst cosine distance": load.worst,
                "memory growth MiB": round(growth / 2**20, 1),
                "ok": all(promises.values()),
            }
        )
    )
    return 0 if all(promises.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
