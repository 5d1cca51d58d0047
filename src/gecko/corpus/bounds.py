"""What a hostile or broken file may take: lines, documents and compressed files are read within limits."""

import io
import zipfile
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator
from gzip import GzipFile
from itertools import chain
from typing import Any, BinaryIO

# Text compresses 3 to 20 times and logs 50 times; what expands further than this is a bomb, or as good as one.
EXPANSION = 200
EXPANSION_FLOOR = 64 << 20
PIECE = 1 << 20


class Dropped(Exception):
    """Something that is left out and counted: ``reason`` is its name in the counts, ``detail`` says more of this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class Unreadable(Exception):
    """A document that holds no text that can be had; the message says why, ``reason`` is its name in the counts."""

    def __init__(self, detail: str, reason: str | None = None) -> None:
        super().__init__(detail)
        self.reason = reason or UNREADABLE


UNREADABLE = "unreadable document"
LOCKED = "locked document"
NO_MAIN_TEXT = "page without main text"
BOMB = "expands too far when decompressed"
BROKEN_ARCHIVE = "damaged compressed file"
UNSUPPORTED = "unsupported compression"
LONG_LINE = "line too long"
LARGE = "file too large"


class Allowance:
    """What may still come out of so many compressed bytes; the members of an archive share that of the archive."""

    def __init__(self, packed: int) -> None:
        self._left = max(EXPANSION_FLOOR, EXPANSION * packed)

    def take(self, size: int) -> None:
        """Use up ``size`` bytes of it, or raise :class:`Dropped`."""
        self._left -= size
        if self._left < 0:
            raise Dropped(BOMB, f"more than {EXPANSION} times")


class Expanding(io.RawIOBase):
    """A decompressed stream that ends in :class:`Dropped` where it outgrows an allowance."""

    def __init__(self, inner: Any, *allowances: Allowance) -> None:
        self._inner, self._allowances = inner, allowances

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        """Fill a buffer; 0 at the end."""
        try:
            data = self._inner.read(len(buffer))
        except (EOFError, zlib.error, zipfile.BadZipFile, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise Dropped(BROKEN_ARCHIVE, str(error)) from error
        for allowance in self._allowances:
            allowance.take(len(data))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the compressed stream, too."""
        self._inner.close()
        super().close()


def lines(
    handle: BinaryIO | GzipFile, most: int, skip: Callable[[bytes], object] = lambda _: None
) -> Iterator[bytes | None]:
    """The lines of a stream with their ends; a line of more than ``most`` bytes is skipped in pieces and given as None.

    ``skip`` gets these pieces.

    A line ends with LF. Where the first one ends with a lone CR, as on old Macs, each CR ends one, too.
    """
    line = handle.readline(most + 1)
    end = line.find(b"\r")
    if end >= 0 and end + 1 < len(line) and line[end + 1 : end + 2] != b"\n":
        yield from _lines_by_cr(line, handle, most, skip)
        return
    while line:
        if len(line) <= most or line.endswith(b"\n"):
            yield line
        else:
            skip(line)
            while piece := handle.readline(PIECE):
                skip(piece)
                if piece.endswith(b"\n"):
                    break
            yield None
        line = handle.readline(most + 1)


def _lines_by_cr(
    begun: bytes, handle: BinaryIO | GzipFile, most: int, skip: Callable[[bytes], object]
) -> Iterator[bytes | None]:
    rest, too_long = b"", False
    for piece in chain([begun], iter(lambda: handle.read(PIECE), b"")):
        *whole, rest = (rest + piece).splitlines(keepends=True)
        if rest.endswith(b"\n"):  # a CR may be half of CR and LF
            whole, rest = [*whole, rest], b""
        for line in whole:
            if too_long := too_long or len(line) > most:
                skip(line)
            yield None if too_long else line
            too_long = False
        if len(rest) > most:
            skip(rest[:-1])
            rest, too_long = rest[-1:], True
    if rest:
        if too_long:
            skip(rest)
        yield None if too_long else rest


def decoded(line: bytes, *, first: bool) -> str:
    """A line of a text file; a byte order mark before the first line is no part of it.

    Raises ValueError: it is not UTF-8; the message says what is wrong and what to do.
    """
    if first and line.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise ValueError("this is UTF-16, as its byte order mark says; save the file as UTF-8")
    if first and b"\0" in line:
        raise no_text(line)
    try:
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not valid UTF-8 at byte {error.start + 1} of the line ({error.reason}); save the file as UTF-8"
        ) from error


def no_text(line: bytes) -> ValueError:
    """The error for a line that holds a NUL byte."""
    return ValueError(
        f"a NUL byte at byte {line.index(0) + 1} of the line; this is UTF-16, perhaps, or no text: save it as UTF-8"
    )
