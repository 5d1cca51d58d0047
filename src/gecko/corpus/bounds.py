"""What a hostile or broken file may take: lines, documents and compressed files are read within limits."""

import io
import zipfile
import zlib
from collections.abc import Iterator
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


def lines(handle: BinaryIO, most: int) -> Iterator[bytes | None]:
    """The lines of a stream; a line of more than ``most`` bytes is skipped in pieces and given as None."""
    while line := handle.readline(most + 1):
        if len(line) <= most or line.endswith(b"\n"):
            yield line
            continue
        while (piece := handle.readline(PIECE)) and not piece.endswith(b"\n"):
            pass
        yield None
