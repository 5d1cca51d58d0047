"""Requests to an OpenAI-compatible server: how they are made, made again, held back, given up and stopped.

What is notable here:

- Dropped connections, time-outs, damaged replies, 429 and 5xx are asked again, with growing pauses and jitter. An error in
  the body of a 200 is treated as the status that it names.
- A pause that the server names holds all requests back, and is told; one that is too long ends the run.
- Where a text stays without an answer, a known text is asked, and then the text again. If the known text is answered, the
  text is at fault: it is given up and counted. If not, the server is: the run ends.
- Requests are made by threads that nobody waits for at the end, so a server that hangs does not hold up Ctrl-C. What has
  arrived is kept for the next run (:mod:`gecko.llm.openai_kept`).
"""

import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from gecko.core.errors import TeacherError
from gecko.llm.base import Usage
from gecko.llm.openai_address import Address, FailedError, Sentences
from gecko.llm.openai_kept import CALLS, KeptReplies
from gecko.llm.openai_refusals import Refusals
from gecko.llm.openai_replies import (
    DamagedError,
    RefusedError,
    asked_pause,
    error_within,
    held_back,
    number,
    status_of,
    words,
)

T = TypeVar("T")
R = TypeVar("R", bound=tuple[Any, ...])
Read = Callable[[dict[str, Any]], T]

RETRIED = {408, 409, 425, 429}
GIVEN_UP = {400, 413, 422}  # of one text: a content filter, or one that is too long
LONGEST_WAIT = 600.0  # seconds that a server may ask for
TOLD_WAIT = 2.0  # seconds; a shorter pause is nothing to speak of
PROBES = 3  # attempts at what may not be there
GRACE = 3.0  # seconds in which requests under way may end after Ctrl-C
LONG_GRACE = 60.0  # the same after an error
KNOWN = (
    "The quick brown fox jumps over the lazy dog, and the dog goes on sleeping in the sun. By noon the shade has reached "
    "the old gate; a cart comes down the road, stops at the well, and two women draw water without a word."
)
# Of models that think: OpenAI's refuse the first name and a choice of temperature.
_OTHER_NAMES = {"max_tokens": "max_completion_tokens", "temperature": "", "top_p": ""}


@dataclass(frozen=True)
class Patience:
    """How often and after what pause a request is made again; seconds."""

    attempts: int = 8
    first: float = 0.5
    longest: float = 60.0
    timeout: float = 300.0


class Clock:
    """The time, and waiting."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        """Wait, or be told to stop: then true."""
        return stop.wait(seconds)


class _StoppedError(Exception):
    """Another request has ended the call."""


class Requests(Sentences):
    """Makes the requests of a backend, several at a time.

    Args:
        address: where the model is served.
        identity: hash of the address.
        key: sent as a bearer token; none: no header.
        requests: how many are under way at a time.
        patience: about failures.
        kept: file for the replies of a call that is not finished; none: they are lost.
        say: where a sentence for the user goes.
        clock: tells the time and waits.
        transport: makes the requests; none: over the network.
    """

    def __init__(
        self,
        address: Address,
        *,
        identity: str,
        key: str | None = None,
        requests: int = 16,
        patience: Patience | None = None,
        kept: Path | None = None,
        say: Callable[[str], None] | None = None,
        clock: Clock | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.name = address.model
        self.identity = identity
        self.usage = Usage()
        self._address = address
        self._where = f"{address.model} at {address.url}"
        self._key = key
        self._patience = patience or Patience()
        self._requests = requests
        self._say = say or (lambda _: None)
        self._clock = clock or Clock()
        self._transport = transport
        self._random = random.Random(identity)
        self._lock, self._asking_known = threading.Lock(), threading.Lock()
        self._refusals = Refusals(self.usage, self._where, self._say)
        self._worked = False  # whether the server has answered anything, so that the key is a good one
        self._renamed: dict[
            str, str
        ] = {}  # settings of a request that the server has under another name, or not at all
        self._not_before = 0.0
        self._replies = KeptReplies(kept)
        self._client = self._connected()

    def _connected(self) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx2.Limits(max_connections=self._requests, max_keepalive_connections=self._requests)
        timeout = httpx2.Timeout(self._patience.timeout, connect=min(30.0, self._patience.timeout))
        return httpx2.Client(headers=headers, limits=limits, timeout=timeout, transport=self._transport)

    @contextmanager
    def asked_anew(self) -> Iterator[None]:
        """While it lasts no reply of an earlier run is used, and none is kept: so that speeds can be measured."""
        before, self._replies.on = self._replies.on, False
        try:
            yield
        finally:
            self._replies.on = before

    # --- many

    def _all(
        self, ask: Callable[[R, threading.Event], T], items: Sequence[R], places: Sequence[int], calls: int = CALLS
    ) -> list[T | None]:
        """``ask`` for each item, several at a time; the results stand where their items do. None: it was refused.

        ``ask`` makes the requests of one item, and gives up when the event is set. An item is a passage and the query, or
        how a text is written; ``places`` says which of the caller's passages each belongs to. One shard of the caller
        takes at most so many ``calls`` of this method.
        """
        stop, left = threading.Event(), iter(range(len(items)))
        done: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()

        def work() -> None:
            while not stop.is_set():
                with self._lock:
                    number = next(left, None)
                if number is None:
                    return
                try:
                    done.put((number, self._one(ask, items[number], places[number], stop), None))
                except BaseException as error:
                    if not isinstance(error, _StoppedError):
                        stop.set()  # nothing more is asked
                    done.put((number, None, error))

        self._replies.begin(calls)
        found: list[T | None] = [None] * len(items)
        workers = [threading.Thread(target=work, daemon=True) for _ in range(min(self._requests, len(items)))]
        try:
            for worker in workers:
                worker.start()
            for _ in items:
                number, found[number], error = done.get()
                if error is not None and not isinstance(
                    error, _StoppedError
                ):  # the one that ended the call comes as well
                    raise error
            self._refusals.check()
        except BaseException as error:
            stop.set()  # those that wait for another attempt give up
            self._leave(workers, GRACE if isinstance(error, KeyboardInterrupt) else LONG_GRACE)
            raise
        return found

    def _leave(self, workers: Sequence[threading.Thread], grace: float) -> None:
        """Wait a moment for the requests that are under way, and keep what has arrived."""
        try:
            end = time.monotonic() + grace
            for worker in workers:
                if worker.ident is not None:
                    worker.join(max(0.0, end - time.monotonic()))
        finally:
            if any(worker.is_alive() for worker in workers):
                self._client = self._connected()  # they hold the connections of the old one until it times out
            if count := self._replies.save():
                self._say(f"{count:,} answers of unfinished work are kept for the next run")

    def _one(self, ask: Callable[[R, threading.Event], T], item: R, place: int, stop: threading.Event) -> T | None:
        try:
            found = ask(item, stop)
        except RefusedError as refusal:
            if refusal.in_parts:
                return None
            self._refusals.refused(refusal.kind, self._clean(str(refusal)), item, place)
            return None
        self._refusals.answered()
        return found

    # --- one

    def _once(self, path: str, body: dict[str, Any], read: Read[T]) -> T:
        """Ask for what may not be there: a damaged reply is an answer, too."""
        try:
            return self._try(path, body, read, threading.Event(), min(PROBES, self._patience.attempts), probing=True)
        except FailedError as failed:
            if failed.status in (401, 403) and not self._worked:
                raise TeacherError(self._bad_key(failed)) from failed
            if failed.again and failed.status < 500:
                raise TeacherError(self._ended(path, failed)) from failed
            raise RefusedError(failed.kind, str(failed)) from failed

    def _ask(self, path: str, body: dict[str, Any], read: Read[T], stop: threading.Event) -> T:
        """One answer, after as many attempts as it takes; ``read`` refuses a reply that cannot be right.

        Raises RefusedError: the server will not answer this. TeacherError: it cannot answer anything.
        """
        key = self._replies.key(path, body)
        with self._lock:
            left = self._replies.find(key)
        if left is not None:
            try:
                return self._taken(left, read)
            except (DamagedError, ValueError, LookupError, TypeError, AttributeError):
                pass  # kept by another version, which read it otherwise: it is asked for again
        try:
            return self._try(path, body, read, stop, self._patience.attempts, key)
        except FailedError as failed:
            self._blame(path, body, read, stop, failed)
        try:
            return self._try(path, body, read, stop, min(PROBES, self._patience.attempts), key)
        except FailedError as failed:
            if failed.status == 429:
                raise TeacherError(self._ended(path, failed)) from failed
            raise RefusedError(failed.kind, str(failed)) from failed

    def _blame(
        self, path: str, body: dict[str, Any], read: Read[Any], stop: threading.Event, failed: FailedError
    ) -> None:
        """Find out whether the text or the server is at fault; returns where it is the text, which is then tried again.

        Raises RefusedError: the text is, and need not be tried again. TeacherError: the server is.
        """
        if failed.status in GIVEN_UP:
            raise RefusedError(failed.kind, str(failed)) from failed
        if failed.status in (401, 403) and not self._worked:
            raise TeacherError(self._bad_key(failed)) from failed
        if failed.status == 429:
            raise TeacherError(self._ended(path, failed)) from failed
        with self._asking_known:
            if stop.is_set():
                raise _StoppedError
            try:
                self._try(path, _known(body), read, stop, self._patience.attempts)
            except (FailedError, RefusedError) as of_known:
                stop.set()
                if isinstance(of_known, FailedError) and of_known.status == 401:
                    raise TeacherError(self._bad_key(of_known)) from failed
                raise TeacherError(self._ended(path, failed, str(of_known))) from failed
            except TeacherError:
                stop.set()
                raise

    def _try(
        self,
        path: str,
        body: dict[str, Any],
        read: Read[T],
        stop: threading.Event,
        attempts: int,
        key: str = "",
        *,
        probing: bool = False,
    ) -> T:
        for attempt in range(1, attempts + 1):
            self._hold(stop)
            if stop.is_set():
                raise _StoppedError
            try:
                response = self._post(path, body)
                found = self._read(path, response, read, probing=probing)
                if key:
                    with self._lock:
                        self._replies.hold(key, response.content)
                return found
            except FailedError as failed:
                if not probing:
                    with self._lock:
                        self.usage.errors[failed.kind] += 1
                failed.attempts = attempt
                if not failed.again or attempt == attempts:
                    raise
            pause = min(self._patience.longest, self._patience.first * 2 ** (attempt - 1))
            self._clock.wait(stop, pause * self._random.uniform(0.5, 1.0))
        raise AssertionError("at least one attempt is made")

    def _post(self, path: str, body: dict[str, Any]) -> httpx2.Response:
        with self._lock:
            self.usage.requests += 1
        body = {self._renamed.get(key, key): value for key, value in body.items() if self._renamed.get(key, key)}
        try:
            return self._client.post(self._address.url + path, json=body | {"model": self._address.model})
        except httpx2.RequestError as error:
            raise FailedError("no reply", f"{type(error).__name__} {error}".strip()) from error

    def _read(self, path: str, response: httpx2.Response, read: Read[T], *, probing: bool) -> T:
        """What a response holds.

        Raises FailedError: no answer. DamagedError: none that can be right, when ``probing``. RefusedError: it is held
        back. TeacherError: the server will answer nothing more.
        """
        status, said = response.status_code, ""
        try:
            reply = response.json()
        except ValueError:
            reply = response.text
        if status == 200:
            try:
                if isinstance(reply, str):
                    raise DamagedError(f"no JSON: {words(reply)}")
                if (wrong := error_within(reply)) is None:
                    return self._taken(reply, read)
            except (DamagedError, ValueError, LookupError, TypeError, AttributeError) as error:
                if probing:
                    raise DamagedError(f"not in the reply: {error}") from error
                raise FailedError("damaged reply", f"damaged reply ({error})") from error
            reply, status, said = wrong, status_of(wrong), "200 with an error, "
        else:
            status = status_of(reply, status)
        said += f"{status}: {self._clean(words(reply))}"
        if 300 <= status < 400:
            raise TeacherError(self._moved(path, response))
        if status == 402:
            raise TeacherError(
                f"{self._address.url} wants to be paid ({said}); add credit there. What was finished before is kept, run "
                "the same command again"
            )
        if status == 400 and self._other_name(said):
            raise FailedError(str(status), said, status)
        if status in RETRIED or status >= 500:
            self._pause_all(response)
            raise FailedError(str(status), said, status)
        raise FailedError(str(status), said, status, again=False)

    def _other_name(self, said: str) -> bool:
        """Whether a refusal says that a setting has another name, or must be left out, which is done from now on."""
        for key, other in _OTHER_NAMES.items():
            is_named = other in said if other else bool(re.search(rf"unsupported.*\b{key}\b", said, re.IGNORECASE))
            if key not in self._renamed and is_named:
                self._renamed[key] = other
                return True
        return False

    def _taken(self, reply: dict[str, Any], read: Read[T]) -> T:
        if held_back(reply):
            self._count(reply)
            raise RefusedError("content filter", "200: the answer was held back by a content filter")
        found = read(reply)
        self._count(reply)
        self._worked = True
        return found

    def _count(self, reply: dict[str, Any]) -> None:
        said = reply.get("usage") or {}
        with self._lock:
            self.usage.read += number(said.get("prompt_tokens") or 0)
            self.usage.written += number(said.get("completion_tokens") or 0)

    # --- pauses

    def _hold(self, stop: threading.Event) -> None:
        """Wait until the server's own pause is over."""
        while (left := self._not_before - self._clock.now()) > 0 and not stop.is_set():
            self._clock.wait(stop, left + self._random.uniform(0, self._patience.first))

    def _pause_all(self, response: httpx2.Response) -> None:
        """Hold all requests back for as long as the server asks. Raises TeacherError: that is too long."""
        seconds = asked_pause(response.headers.get("Retry-After", ""))
        if seconds is None:
            return
        until = f"{datetime.now() + timedelta(seconds=min(seconds, 1e8)):%Y-%m-%d %H:%M:%S}"
        asks = f"{self._where} asks for a pause of {seconds:,.0f} seconds, until {until}"
        said = f"{response.status_code}: {self._clean(words(response.text))}"
        if seconds > LONGEST_WAIT:
            raise TeacherError(
                f"{asks} ({said}), and {LONGEST_WAIT:.0f} are waited at most; run the same command again then, what was "
                "finished before is kept"
            )
        with self._lock:
            end = self._clock.now() + seconds
            new = end > self._not_before + 1.0
            self._not_before = max(self._not_before, end)
        if new and seconds >= TOLD_WAIT:
            self._say(f"{asks} ({said}); all requests wait for it")


def _known(body: dict[str, Any]) -> dict[str, Any]:
    """The same request for a known text, one token of an answer at most."""
    text = {"prompt": KNOWN} if "prompt" in body else {"messages": [{"role": "user", "content": KNOWN}]}
    return body | text | {"max_tokens": min(1, body.get("max_tokens", 1))}
