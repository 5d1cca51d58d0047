"""A chat server on loopback that writes queries and judges as the fake teacher does, with faults on request.

Run as a process, it prints its spec: FORM HANG, where HANG is the number of judgements after which it answers nothing until
it gets SIGUSR1.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.llm.talking import RELEVANCE, Talking, chat, question_of
else:
    from .talking import RELEVANCE, Talking, chat, question_of

from gecko.llm.base import Group, Sampling
from gecko.llm.fake import FakeLM
from gecko.llm.openai_http import KNOWN
from gecko.prompts import load_prompt

Fault = Callable[[dict[str, Any], int], httpx2.Response | None]
SETTINGS = {"labels": "logprobs", "graded": "graded", "listwise": "listwise"}


@dataclass
class Teacher(Talking):
    """Attributes:
    form: ``labels`` where the server shows the likeliest first tokens; else it has words alone.
    fault: answers a request that is not of a known text, which comes with its number, in the place of the teacher.
    """

    form: str = "graded"
    fault: Fault = lambda body, number: None
    written: list[str] = field(default_factory=list)
    requests: int = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.read())
        text = json.dumps(body)
        if KNOWN[:40] not in text:
            with self.lock:
                self.requests += 1
                number = self.requests
            if (wrong := self.fault(body, number)) is not None:
                return wrong
        if "top_p" in body:
            return httpx2.Response(200, json=self._written(body))
        if body.get("logprobs") and self.form == "labels" and "messages" in body:
            self.labels = self._labels(body)
        return super().handle_request(httpx2.Request("POST", request.url, json=body))

    def _written(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        passage = prompt.rpartition("Passage: ")[2].partition("\nTask:")[0]
        [text] = FakeLM().generate(load_prompt("generate"), [passage], Sampling(0, 1, 8, (body["seed"],)))
        with self.lock:
            self.written.append(text)
        reply = chat(text)
        if "prompt" in body:
            reply["choices"][0]["text"] = reply["choices"][0].pop("message")["content"]
        return reply

    @staticmethod
    def _labels(body: dict[str, Any]) -> dict[str, float]:
        found = re.search(r"Passage: (.*)\n\nQuery: (.*)", body["messages"][-1]["content"], re.DOTALL)
        group = Group(found[1], (found[2],)) if found else Group("x", ("x",))
        [[labels]] = FakeLM().label_logprobs(RELEVANCE, [group])
        return dict(zip(RELEVANCE.labels, labels, strict=True))


@contextmanager
def served(teacher: Talking) -> Iterator[str]:
    """The LLM SPEC of a server that is up while this lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            reply = teacher.handle_request(httpx2.Request("POST", f"http://here{self.path}", content=data))
            content = reply.read()
            self.send_response(reply.status_code)
            for name, value in reply.headers.items():
                if name not in ("content-length", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"openai:http://127.0.0.1:{server.server_address[1]}/v1#m"
    finally:
        server.shutdown()
        server.server_close()


def main() -> None:
    form, hang = sys.argv[1], int(sys.argv[2])
    judged, mended = iter(range(10**9)), threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: mended.set())

    def fault(body: dict[str, Any], number: int) -> None:
        if (
            "top_p" not in body
            and (body.get("logprobs") or question_of(body))
            and next(judged) >= hang
            and not mended.is_set()
        ):
            os.write(1, b"hangs\n")  # one write: these are several threads, and print writes the end of the line apart
            time.sleep(600)

    with served(Teacher(form=form, fault=fault)) as spec:
        print(spec, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
