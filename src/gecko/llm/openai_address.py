"""Where an OpenAI-compatible server is, and the key to it."""

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from gecko.core.errors import ConfigError


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
