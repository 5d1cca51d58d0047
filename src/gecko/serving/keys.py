"""API keys: made here, shown once, kept as SHA-256 only, compared in constant time.

A key is 32 random bytes, so that a plain hash is enough to keep it: there is nothing to guess. A key file has a line a
key, ``LABEL sha256:HEX``; empty lines and lines that begin with ``#`` are skipped.
"""

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from gecko.core.errors import ConfigError

VARIABLE = "GECKO_API_KEYS"
_SHORTEST = 20  # characters of a key that somebody else made
_LINE = re.compile(r"(?P<label>[\w.@-]{1,64})\s+sha256:(?P<digest>[0-9a-fA-F]{64})")


class ApiKeys:
    """The keys that a server accepts, each as its SHA-256."""

    def __init__(self, digests: Sequence[bytes]) -> None:
        self._digests = tuple(digests)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, key: bytes) -> bool:
        """Whether this is one of the keys. Takes the same time whichever it is, and where none is."""
        digest = hashlib.sha256(key).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found


def load_keys(path: Path | None, environ: Mapping[str, str] = os.environ) -> ApiKeys:
    """The keys of a file and of the environment variable ``GECKO_API_KEYS``, where keys stand between commas.

    Raises ConfigError: the file cannot be read, holds none, or a line is no hashed key; a key in the variable is short.
    """
    digests = []
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"key file {path} cannot be read: {error}; make one with --new-key LABEL") from error
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None:  # the line may be a key in plain text: it must not reach a log
                raise ConfigError(
                    f"{path}:{number}: a line has the form `LABEL sha256:HEX`; make a key with "
                    f"`gecko serve --new-key LABEL --api-keys {path}`"
                )
            digests.append(bytes.fromhex(match["digest"]))
        if not digests:
            raise ConfigError(f"key file {path} holds no key; make one with --new-key LABEL")
    for number, key in enumerate(filter(None, map(str.strip, environ.get(VARIABLE, "").split(","))), 1):
        if len(key) < _SHORTEST:
            raise ConfigError(f"{VARIABLE}: key {number} has {len(key)} characters; a key has {_SHORTEST} or more")
        digests.append(hashlib.sha256(key.encode()).digest())
    return ApiKeys(digests)


def new_key(label: str, path: Path) -> str:
    """Make a key, add its hash to the file, and return the key, which is kept nowhere.

    Raises ConfigError: the label does not fit a line, is taken, or the file cannot be written.
    """
    key = "gecko-" + secrets.token_urlsafe(32)
    line = f"{label} sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    if _LINE.fullmatch(line) is None:
        raise ConfigError(f"label {label!r}: give up to 64 letters, digits and . _ @ -")
    try:
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if any(entry.split()[:1] == [label] for entry in old.splitlines()):
            raise ConfigError(f"label {label!r} is in {path} already; give another, or remove its line first")
        # Only the owner may read it: a hash tells nothing, a file that others can write would let them in.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
            file.write(("" if old.endswith("\n") or not old else "\n") + line + "\n")
    except OSError as error:
        raise ConfigError(f"key file {path} cannot be written: {error}") from error
    return key


def is_loopback(host: str) -> bool:
    """Whether a host to listen on, or a name in a ``Host`` header, is this machine and nothing else."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
