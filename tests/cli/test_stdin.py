import io
import os
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gecko.cli.stdin import Lines, standard_input, typed_queries
from gecko.core.errors import ConfigError


@given(st.lists(st.binary(max_size=12), max_size=6).map(b"\n".join), st.integers(1, 8))
def test_lines_are_those_of_the_bytes(data: bytes, size: int) -> None:
    class Slow(io.BytesIO):
        def read1(self, _: int = -1) -> bytes:
            return super().read1(size)

    assert list(Lines(Slow(data))) == list(io.BytesIO(data))


def test_a_pause_is_seen_and_the_end_is_none(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stream:
        lines = Lines(stream)
        assert not lines.pause()  # nothing was asked for yet
        rest = iter(lines)
        os.write(writer, b"one\ntwo\nthr")
        assert (next(rest), lines.pause()) == (b"one\n", False)
        assert (next(rest), lines.pause()) == (b"two\n", True)
        later = threading.Timer(0.05, lambda: (os.write(writer, b"ee\nend"), os.close(writer)))
        later.start()
        assert next(rest) == b"three\n"
        later.join()
        assert not lines.pause()
        assert [*rest] == [b"end"]
        assert not lines.pause()
    (tmp_path / "file").write_bytes(b"a\nb\n")
    with (tmp_path / "file").open("rb") as stream:
        lines = Lines(stream)
        assert [(line, lines.pause()) for line in lines] == [(b"a\n", False), (b"b\n", False)]


def test_a_closed_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigError, match="there is no standard input: it is closed; give files"):
        standard_input("files")


def test_a_bad_query_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    asked = io.BytesIO("blå\n\n".encode() + b"gr\xf8n bil\n" + "東京 \r\nlast".encode())
    assert list(typed_queries(asked, said.append)) == ["blå", "東京", "last"]
    assert said == ["stdin:3: not valid UTF-8 at byte 3 of the line; it is left out"]
