"""A small OpenAI-compatible server around transformers models, run as a process: FOLDER...

The first model is at /0/v1, and at /0/poor/v1 without log-probabilities of given text; the second at /1/v1, and so on.
Like a real one, it lets the tokenizer parse control tokens out of any text it is sent.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Model:
    def __init__(self, folder: str) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.last: list[int] = []
        self.lock = Lock()

    def word(self, token: int) -> str:
        return str(self.tokenizer.decode([token], skip_special_tokens=False))

    def table(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].float().log_softmax(dim=-1)

    def write(self, ids: list[int], most: int) -> list[int]:
        written: list[int] = []
        while len(written) < most:
            written.append(int(self.table(ids + written)[-1].argmax()))
        return written

    def completions(self, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("echo") and body["poor"]:
            raise ValueError("echo is not supported")
        ids = list(self.tokenizer(body["prompt"])["input_ids"])
        self.last = ids
        written = self.write(ids, body["max_tokens"])
        table = self.table(ids + written)
        shown = range(0 if body.get("echo") else len(ids), len(ids) + len(written))
        every = ids + written
        choice: dict[str, Any] = {"text": self.tokenizer.decode([every[place] for place in shown])}
        if body.get("logprobs"):
            tops = [table[place - 1].topk(body["logprobs"]) if place else None for place in shown]
            choice["logprobs"] = {
                "tokens": [self.word(every[place]) for place in shown],
                "token_logprobs": [float(table[place - 1, every[place]]) if place else None for place in shown],
                "top_logprobs": [self.top(top) if top else None for top in tops],
            }
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": len(written)}}

    def top(self, top: Any) -> dict[str, float]:
        words = map(self.word, top.indices.tolist())
        return dict(reversed(list(zip(words, top.values.tolist(), strict=True))))

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        self.last = ids
        written = self.write(ids, body["max_tokens"])
        table = self.table(ids + written)
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": self.tokenizer.decode(written)}}
        if body.get("logprobs"):
            top = self.top(table[len(ids) - 1].topk(body["top_logprobs"]))
            first = [{"token": token, "logprob": value} for token, value in top.items()]
            choice["logprobs"] = {"content": [{"top_logprobs": first}]}
        reply = {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": len(written)}}
        if body.get("prompt_logprobs") is not None and not body["poor"]:
            entries = [
                {str(token): {"logprob": float(table[place, token]), "decoded_token": self.word(token), "rank": 1}}
                for place, token in enumerate(ids[1:])
            ]
            reply["prompt_logprobs"] = [None, *entries]
        return reply


def main() -> None:
    models = [Model(folder) for folder in sys.argv[1:]]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply(200, models[int(self.path.split("/")[1])].last)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            number, _, path = self.path.removeprefix("/").partition("/")
            model = models[int(number)]
            body["poor"] = path.startswith("poor/")
            answers = {"v1/completions": model.completions, "v1/chat/completions": model.chat}
            answer = answers.get(path.removeprefix("poor/"))
            if answer is None:
                return self.reply(404, {"error": {"message": "no such path"}})
            try:
                with model.lock:
                    return self.reply(200, answer(body))
            except ValueError as error:
                return self.reply(400, {"error": {"message": str(error)}})

        def reply(self, status: int, value: object) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
