"""Where an OpenAI-compatible server is, the key to it, and what is said of requests to it that came to nothing."""

import os
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import httpx2

from gecko.core.errors import ConfigError

KEPT = "what was finished before is kept, run the same command again"


@dataclass(frozen=True)
class Address:
    """Where a model is served."""

    url: str
    model: str


def parse_address(spec: str) -> Address:
    """``openai:URL#MODEL``, the URL up to and including ``/v1``.

    Raises ConfigError: a part is missing, or the URL carries a password or a key. The message never repeats those.
    """
    url, _, model = spec.removeprefix("openai:").partition("#")
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            "--llm openai:URL#MODEL: the URL holds a user, a password or a query; give the plain address, and the key "
            "in the environment variable GECKO_API_KEY"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not model:
        raise ConfigError(
            f"--llm {spec!r}: write openai:URL#MODEL, for example openai:http://localhost:8000/v1#my-model"
        )
    return Address(url.rstrip("/"), model)


def key_for(address: Address) -> str | None:
    """The key to send: ``GECKO_API_KEY``; ``OPENAI_API_KEY`` goes to its own host and to no other.

    Raises ConfigError: it has a character that no header can hold. The message never repeats it.
    """
    name = "GECKO_API_KEY"
    key = os.environ.get(name)
    if not key and urlsplit(address.url).hostname == "api.openai.com":
        name = "OPENAI_API_KEY"
        key = os.environ.get(name)
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the environment variable {name} holds a character that no key has; copy the key again")
    return key or None


class FailedError(Exception):
    """No answer: what was said last, its sort, its status if it has one, and whether it may be asked again."""

    def __init__(self, kind: str, said: str, status: int = 0, *, again: bool = True) -> None:
        super().__init__(said)
        self.kind, self.status, self.again = kind, status, again
        self.attempts = 1


class Sentences:
    """The sentences of a client of one server."""

    _address: Address
    _key: str | None
    _worked: bool  # whether the server has answered anything, so that the key is a good one

    def _ended(self, path: str, failed: FailedError, of_known: str = "") -> str:
        said = str(failed)
        if failed.attempts > 1 or failed.again:
            said = f"no usable answer after {failed.attempts} attempts, the last: {said}"
        if of_known:
            said += "; a known text is not answered either" + (f" ({of_known})" if of_known != str(failed) else "")
        return f"{self._address.url}{path}: {self._clean(said)}; {KEPT}"

    def _bad_key(self, failed: FailedError) -> str:
        verb = "no longer takes" if self._worked else "refuses"
        kept = f"; {KEPT}" if self._worked else ""
        return (
            f"{self._address.url} {verb} the key ({failed}); put a valid one in the environment variable "
            f"GECKO_API_KEY{kept}"
        )

    def _moved(self, path: str, response: httpx2.Response) -> str:
        asked = self._address.url + path
        target = urlsplit(urljoin(asked, response.headers.get("Location", "")))
        place = target._replace(query="", fragment="", netloc=target.netloc.rpartition("@")[2]).geturl()
        mend = "give the address to which it answers itself"
        if place != asked and place.rstrip("/").endswith(path):
            mend = f"give that address: --llm openai:{place.rstrip('/').removesuffix(path)}#{self._address.model}"
        return f"{asked} is redirected to {place} ({response.status_code}); {mend}"

    def _clean(self, text: str) -> str:
        """What a server or a library said, without the key, should it repeat it."""
        return text.replace(self._key, "***") if self._key else text
