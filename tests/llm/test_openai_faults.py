"""What goes wrong with a server, and whose fault it is: an in-process server, and a clock that nobody waits for."""

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gecko.core.errors import ConfigError, TeacherError
from gecko.core.files import digest
from gecko.llm.base import Group, Sampling
from gecko.llm.openai import OpenAILM
from gecko.llm.openai_address import Address, key_for
from gecko.llm.openai_http import KNOWN, Clock
from gecko.llm.openai_kept import KeptReplies
from gecko.llm.openai_replies import asked_pause
from gecko.prompts import Prompt

from .conftest import LIKELIHOOD

WRITE = Prompt("write", "completion", "Write.\n\nPassage: {passage}\nTask:", (), (), (), (), "write")
GROUPS = [Group(f"lake number {n}", tuple(f"where is lake {n} {k}" for k in range(3))) for n in range(8)]
URL = "http://lakes.example/v1"


class Skipping(Clock):
    """Waiting takes no time, and is added up."""

    def __init__(self) -> None:
        self.time, self.lock = 0.0, threading.Lock()

    def now(self) -> float:
        return self.time

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        with self.lock:
            self.time += seconds
        return stop.is_set()


def right(body: dict[str, Any]) -> dict[str, Any]:
    """An answer that follows from the words of the request."""
    tokens = [f" {word}" if place else word for place, word in enumerate(body["prompt"].split(" "))]
    values = [None, *(-(int(digest(two, one)[:6], 16) % 1000) / 100 - 0.01 for one, two in pairwise(tokens))]
    usage = {"prompt_tokens": len(tokens), "completion_tokens": 0 if body.get("echo") else 1}
    logprobs = {"tokens": tokens, "token_logprobs": values, "top_logprobs": [{"Yes": -0.5, "No": -1.0}]}
    return {"choices": [{"text": "so", "logprobs": logprobs}], "usage": usage}


Fault = Callable[[str], httpx2.Response | None]


@dataclass
class Server(httpx2.BaseTransport):
    """Answers rightly unless ``fault`` does."""

    fault: Fault = lambda _: None
    asked: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.read())
        if "messages" in body:
            return httpx2.Response(404, json={"error": {"message": "no chat here"}})
        with self.lock:
            self.asked[body["prompt"]] += 1
            wrong = self.fault(body["prompt"])
        return httpx2.Response(200, json=right(body)) if wrong is None else wrong


def connected(server: Server, **more: Any) -> OpenAILM:
    """A probed backend; what it is asked from now on is counted."""
    fault, server.fault = server.fault, lambda _: None
    settings = {"identity": "lakes", "clock": Skipping(), "transport": server, **more}
    lm = OpenAILM(Address(URL, "m"), **settings)
    lm.probe()
    server.asked.clear()
    server.fault = fault
    return lm


def scores(lm: OpenAILM) -> list[list[tuple[float, int]]]:
    return lm.score(LIKELIHOOD, GROUPS)


WHOLE = scores(connected(Server()))


def dropped(_: str) -> httpx2.Response:
    raise httpx2.ReadError("connection reset")


BLOCKED = "<!doctype html><title>Blocked</title><style>p{}</style><p>by the firewall"
FAULTS: dict[str, Callable[[str], httpx2.Response]] = {
    "403": lambda _: httpx2.Response(403, text=BLOCKED),
    "451": lambda _: httpx2.Response(451, json={"detail": "not here"}),
    "500": lambda _: httpx2.Response(500, json={"object": "error", "message": "not compliant", "code": 500}),
    "no reply": dropped,
    "damaged reply": lambda _: httpx2.Response(200, json={"choices": []}),
    "content filter": lambda _: httpx2.Response(200, json={"choices": [], "prompt_filter_results": [{}]}),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_one_text_that_cannot_be_answered_is_given_up_and_counted(kind: str) -> None:
    said: list[str] = []
    server = Server(lambda prompt: FAULTS[kind](prompt) if "number 0" in prompt else None)
    lm = connected(server, key="sk-lakes", say=said.append, requests=3)
    found = scores(lm)
    assert found[1:] == WHOLE[1:]
    assert all(total != total and count == 0 for total, count in found[0])
    assert lm.usage.refused == 3
    assert [(one.place, one.reason) for one in lm.usage.refusals] == [(0, f"refused by the teacher ({kind})")] * 3
    assert len(said) == 1 and "left out and counted" in said[0] and "key" not in said[0]
    assert lm.generate(WRITE, ["lake number 0", "lake"], Sampling(0.0, 1.0, 4, (0, 1))) == ["", "so"]
    assert lm.usage.refusals[-1].place == 0
    if kind == "403":
        assert lm.usage.refusals[0].said == "403: Blocked by the firewall"


def after(count: int, response: Callable[[str], httpx2.Response]) -> Fault:
    """Right answers first, then none to anything."""
    left = iter(range(count))
    return lambda prompt: None if next(left, None) is not None else response(prompt)


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (lambda _: httpx2.Response(401, json={"error": "expired"}), r"no longer takes the key \(401: expired\)"),
        (lambda _: httpx2.Response(403, text="no"), r"403: no; a known text is not answered either"),
        (dropped, r"no usable answer after 8 attempts, the last: ReadError connection reset; a known text"),
        (lambda _: httpx2.Response(503, text="down"), r"after 8 attempts, the last: 503: down; a known text"),
        (lambda _: httpx2.Response(429, text="slower"), r"after 8 attempts, the last: 429: slower; what was finished"),
    ],
)
def test_a_server_that_answers_nothing_any_more_ends_the_run(
    response: Callable[[str], httpx2.Response], says: str
) -> None:
    lm = connected(Server(after(5, response)), key="sk-lakes", requests=2)
    with pytest.raises(TeacherError, match=says) as told:
        scores(lm)
    assert "run the same command again" in str(told.value)
    assert lm.usage.refused == 0


def test_a_server_that_answers_the_known_text_alone_is_no_teacher() -> None:
    lm = connected(Server(lambda prompt: None if KNOWN in prompt else httpx2.Response(500, text="no memory")))
    with pytest.raises(TeacherError, match="refused 3 of 3 texts, the last with 500: no memory"):
        lm.generate(WRITE, ["one", "two", "three"], Sampling(0.0, 1.0, 4, (0, 1, 2)))


def test_a_key_is_spoken_of_where_it_never_worked() -> None:
    server = Server()
    lm = OpenAILM(Address(URL, "m"), identity="lakes", transport=server, clock=Skipping(), key="sk-lakes")
    server.handle_request = lambda _: httpx2.Response(403, json={"message": "unknown key sk-lakes"})  # type: ignore[method-assign]
    with pytest.raises(TeacherError, match=r"refuses the key \(403: unknown key \*\*\*\); put a valid one in"):
        lm.probe()


@pytest.mark.parametrize(
    "response",
    [
        httpx2.Response(402, json={"error": {"message": "no credits are left"}}),
        httpx2.Response(200, json={"choices": None, "error": {"message": "no credits are left", "code": 402}}),
        httpx2.Response(429, json={"error": {"message": "no credits are left", "type": "insufficient_quota"}}),
    ],
)
def test_who_wants_to_be_paid_is_asked_once(response: httpx2.Response) -> None:
    server = Server(lambda _: response)
    with pytest.raises(TeacherError, match="wants to be paid.*402: no credits are left.*run the same command again"):
        scores(connected(server, requests=1))
    assert server.asked.total() == 1


@pytest.mark.parametrize(
    "body",
    [
        {"choices": None, "error": {"message": "the provider failed", "code": 502, "metadata": {"raw": "no GPU"}}},
        {"error": "the provider failed (no GPU)"},
        {"object": "error", "message": "the provider failed (no GPU)", "code": 500},
        {"choices": [{"finish_reason": "error", "error": {"message": "the provider failed (no GPU)"}}]},
    ],
)
def test_an_error_in_the_body_of_a_200_is_in_the_servers_words(body: dict[str, Any]) -> None:
    with pytest.raises(
        TeacherError, match=r"after 8 attempts, the last: 200 with an error, 50[02]: the provider failed"
    ):
        scores(connected(Server(lambda _: httpx2.Response(200, json=body))))
    lm = connected(Server(lambda prompt: httpx2.Response(200, json=body) if "number 4" in prompt else None))
    assert [row for place, row in enumerate(scores(lm)) if place != 4] == WHOLE[:4] + WHOLE[5:]
    assert lm.usage.refusals[0].said.endswith("the provider failed (no GPU)")


@pytest.mark.parametrize(
    ("location", "mend"),
    [
        ("https://lakes.example/v1/completions", "--llm openai:https://lakes.example/v1#m"),
        ("/api/v2/completions?token=hidden", "--llm openai:http://lakes.example/api/v2#m"),
        ("https://lakes.example/login", "give the address to which it answers itself"),
    ],
)
def test_a_redirect_is_named(location: str, mend: str) -> None:
    lm = connected(Server(lambda _: httpx2.Response(307, headers={"Location": location})))
    with pytest.raises(TeacherError, match="is redirected to http.*307") as told:
        scores(lm)
    assert str(told.value).endswith(mend) and "hidden" not in str(told.value)


def test_a_pause_is_told_and_a_long_one_ends_the_run() -> None:
    said: list[str] = []
    once = iter([httpx2.Response(429, headers={"Retry-After": "90"}, json={"error": {"message": "per minute"}})])
    clock = Skipping()
    assert scores(connected(Server(lambda _: next(once, None)), say=said.append, clock=clock)) == WHOLE
    assert clock.time >= 90
    [line] = said
    assert "m at http://lakes.example/v1 asks for a pause of 90 seconds, until 20" in line and "per minute" in line
    long = httpx2.Response(503, headers={"Retry-After": "7200"}, json={"error": {"message": "per day"}})
    with pytest.raises(
        TeacherError, match=r"m at .* pause of 7,200 seconds, until 20.*per day.*600 are waited at most"
    ):
        scores(connected(Server(lambda _: long)))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("", None), ("soon", None), ("nan", None), ("-3", None), ("1.5", 1.5), ("Wed, 21 Oct 2015 07:28:00 GMT", None)],
)
def test_what_asks_for_a_pause(header: str, seconds: float | None) -> None:
    assert asked_pause(header) == seconds


def stopped(_: str) -> httpx2.Response:
    raise KeyboardInterrupt


@pytest.mark.parametrize("end", [stopped, lambda _: httpx2.Response(402, text="pay")])
def test_what_had_arrived_is_not_asked_again(end: Callable[[str], httpx2.Response], tmp_path: Path) -> None:
    kept = tmp_path / "answers" / "lakes.json"
    said: list[str] = []
    first = Server(after(10, end))
    with pytest.raises((KeyboardInterrupt, TeacherError)):
        scores(connected(first, kept=kept, requests=1, say=said.append))
    assert said == ["10 answers of unfinished work are kept for the next run"]
    second = Server()
    lm = connected(second, kept=kept)
    before = lm.usage.read
    assert scores(lm) == WHOLE
    assert second.asked.total() == 24 - 10 and not set(second.asked) & set(list(first.asked)[:10])
    assert lm.usage.read - before == sum(len(prompt.split(" ")) for prompt in {**first.asked, **second.asked})
    third = Server()
    lm = connected(third, kept=kept)
    with lm.asked_anew():
        assert scores(lm) == WHOLE
    assert third.asked.total() == 24
    kept.write_bytes(kept.read_bytes()[:-9])
    fourth = Server()
    assert scores(connected(fourth, kept=kept)) == WHOLE
    assert fourth.asked.total() == 24


def test_nobody_waits_for_requests_that_hang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("gecko.llm.openai_http.GRACE", 0.2)
    hang, reached = threading.Event(), threading.Event()

    class Hanging(Server):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            if self.asked.total() < 6:
                return super().handle_request(request)
            if reached.is_set():
                raise KeyboardInterrupt
            reached.set()
            hang.wait()
            raise httpx2.ReadError("late")

    server = Hanging()
    lm = connected(Server(), kept=tmp_path / "kept.json", requests=2)
    lm._transport = server
    lm._client = lm._connected()
    with pytest.raises(KeyboardInterrupt):
        scores(lm)
    assert not hang.is_set()  # it hangs still
    again = Server()
    assert scores(connected(again, kept=tmp_path / "kept.json")) == WHOLE
    assert again.asked.total() == 24 - 6
    hang.set()


def test_a_key_that_no_header_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GECKO_API_KEY", " sk-lakes\n")
    assert key_for(Address(URL, "m")) == "sk-lakes"
    monkeypatch.setenv("GECKO_API_KEY", "“sk-lakes”")
    with pytest.raises(ConfigError, match="GECKO_API_KEY holds a character") as told:
        key_for(Address(URL, "m"))
    assert "sk-lakes" not in str(told.value)


# --- a server that misbehaves at random


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), rate=st.floats(0.0, 0.45), lost=st.sets(st.integers(0, 7), max_size=2))
def test_no_misbehaviour_changes_or_loses_a_score(seed: int, rate: float, lost: set[int]) -> None:
    dice = random.Random(seed)
    kinds: list[Callable[[str], httpx2.Response]] = [
        *(FAULTS[kind] for kind in ("500", "no reply", "damaged reply")),
        lambda _: httpx2.Response(429, headers={"Retry-After": str(dice.choice([0, 1, 30, 500]))}, text="slower"),
        lambda _: httpx2.Response(408, text="late"),
        lambda _: httpx2.Response(200, json={"error": {"message": "busy", "code": 429}}),
        lambda _: httpx2.Response(200, json={"choices": None}),
        lambda _: httpx2.Response(200, content=b'{"choices": [{"text": "so", "logp'),
        lambda _: httpx2.Response(200, text="<html>a page"),
    ]

    def fault(prompt: str) -> httpx2.Response | None:
        if any(f"number {n}\n" in prompt for n in lost):
            return FAULTS[dice.choice(["403", "500", "content filter"])](prompt)
        return dice.choice(kinds)(prompt) if dice.random() < rate else None

    from gecko.llm.openai_http import Patience

    server = Server(fault)
    lm = connected(server, patience=Patience(attempts=30))
    found = scores(lm)
    for place, (row, whole) in enumerate(zip(found, WHOLE, strict=True)):
        assert place in lost or row == whole
    assert lm.usage.refused == 3 * len(lost) == len(lm.usage.refusals)
    assert {one.place for one in lm.usage.refusals} == lost


def test_a_reply_is_as_old_as_it_is_however_often_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, now = tmp_path / "kept.json", time.time()

    def later(days: float) -> KeptReplies:
        monkeypatch.setattr("gecko.llm.openai_kept.time.time", lambda: now + days * 86_400)
        if path.exists():
            os.utime(path, (now + days * 86_400,) * 2)
        return KeptReplies(path)

    def saved(replies: KeptReplies, key: str) -> None:
        replies.hold(key, b'{"is": 1}')
        replies.save()

    saved(later(0), "first")
    saved(later(20), "second")
    found = later(29)
    assert found.find("first") == {"is": 1}
    found.save()
    found = later(31)
    assert found.find("first") is None and found.find("second") == {"is": 1}
    # Files of earlier versions have no times.
    path.write_text(json.dumps({key: reply for key, (_, reply) in json.loads(path.read_bytes()).items()}))
    assert later(0).find("second") == {"is": 1}
    os.utime(path, (now, now))
    monkeypatch.setattr("gecko.llm.openai_kept.time.time", lambda: now + 31 * 86_400)
    assert KeptReplies(path).find("second") is None
