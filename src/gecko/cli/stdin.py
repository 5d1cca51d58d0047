"""Standard input, read line by line as it comes."""

import contextlib
import io
import select
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from gecko.core.errors import ConfigError

PATIENCE = 0.01  # seconds in which whoever writes fast has written more
_READ = 1 << 16


def standard_input(instead: str) -> BinaryIO:
    """The bytes of standard input. Raises ConfigError: the process has none; ``instead`` says what to give."""
    if sys.stdin is None:  # what Python makes of a closed one
        raise ConfigError(f"there is no standard input: it is closed; give {instead}")
    return sys.stdin.buffer


class Lines:
    """The lines of a stream of bytes, and whether more of them are waiting."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream: Any = stream  # of whose kinds not each is said to have read1
        self._waiting = 0  # lines that are read and not yet taken
        self._reading = False

    def __iter__(self) -> Iterator[bytes]:
        begun: list[bytes] = []  # of a line whose end has not come
        self._reading = True
        while data := self._stream.read1(_READ):
            *whole, rest = data.split(b"\n")
            for place, line in enumerate(whole, 1):
                self._waiting = len(whole) - place
                yield b"".join([*begun, line, b"\n"])
                begun.clear()
            begun.append(rest)
        self._reading = False
        if last := b"".join(begun):
            yield last

    def pause(self) -> bool:
        """Whether nothing more has come yet; of a file, and at the end, it is never so."""
        if self._waiting or not self._reading:
            return False
        try:
            return not select.select([self._stream], [], [], PATIENCE)[0]
        except (io.UnsupportedOperation, ValueError):  # not of the system
            return False


def typed_queries(stream: BinaryIO, say: Callable[[str], None]) -> Iterator[str]:
    """Queries typed at the terminal until its end, or the lines of a stream. What is not UTF-8 is said and left out."""
    for place, line in enumerate(_prompted() if sys.stdin.isatty() else stream, 1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            say(f"stdin:{place}: not valid UTF-8 at byte {error.start + 1} of the line; it is left out")
            continue
        if text:
            yield text


def _prompted() -> Iterator[bytes]:
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    with contextlib.suppress(EOFError):
        while True:
            yield input("query> ").encode("utf-8", "surrogateescape")
