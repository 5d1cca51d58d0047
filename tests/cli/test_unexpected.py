"""What a person reads when something fails that nobody foresaw: one sentence, no traceback, exit code 1."""

import errno
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors import SafetensorError

from gecko.cli.unexpected import sentence

# Runs the command line with a command whose code is given.
PROGRAM = """
import sys
from gecko.cli import main

@main.app.command()
def fail() -> None:
    exec(sys.stdin.read(), {})

sys.argv = ["gecko", "fail"]
main.main()
"""


def fail(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], input=code, capture_output=True, text=True, check=False, env=os.environ | env
    )


def test_an_exception_is_one_sentence_and_its_traceback_is_to_be_had() -> None:
    code = "raise KeyError('two\\nlines')"
    done = fail(code)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: something unexpected happened: KeyError: ")
    assert done.stderr.count("\n") == 1 and "GECKO_TRACEBACK=1" in done.stderr
    done = fail(code, GECKO_TRACEBACK="1")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr and "error: something unexpected" in done.stderr


@pytest.mark.parametrize(
    ("code", "status", "stderr"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("import typer; raise typer.BadParameter('no')", 2, "no"),
        (
            "import gecko.core.errors; raise gecko.core.errors.CorpusError('a.jsonl:3: [bold]')",
            1,
            "error: a.jsonl:3: [bold]\n",
        ),
        ("raise EOFError('early')", 1, "a file ends too early (early)"),
        ("print('Gr\\xfc\\xdfe \\udce9 \\u2603')", 0, ""),
    ],
)
def test_how_a_command_ends(code: str, status: int, stderr: str) -> None:
    done = fail(code, PYTHONIOENCODING="ascii:strict")
    assert (done.returncode, "Traceback" in done.stderr) == (status, False)
    assert stderr in done.stderr
    if not status:
        assert done.stdout == "Gr\\xfc\\xdfe \\udce9 \\u2603\n"


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_goes_away_is_no_error(lines: int) -> None:
    code = f"import time; print('first', flush=True); time.sleep(1); print('more\\\\n' * {lines})"
    program = [sys.executable, "-c", PROGRAM.replace("sys.stdin.read()", f'"{code}"')]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"first\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_output_that_has_no_room_is_told() -> None:
    program = [sys.executable, "-c", PROGRAM.replace("sys.stdin.read()", "\"print('x')\"")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: the disk is full")


def json_error() -> ValueError:
    with pytest.raises(json.JSONDecodeError) as found:
        json.loads("{nope")
    return found.value


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), ["memory is full", "smaller batch"]),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), ["device's memory is full", "2 GiB"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), ["memory is full", "9 bytes"]),
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), ["disk is full, where /a/b lies", "TMPDIR"]),
        (OSError(errno.ENOSPC, "No space left on device"), ["disk is full", "folder"]),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a/b"), ["/a/b does not exist", "check the path"]),
        (PermissionError(errno.EACCES, "Permission denied", b"/a/\xff"), ["may not be read or written", "rights"]),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/a"), ["/a is a folder; give a file"]),
        (OSError(errno.EMFILE, "Too many open files", "/a"), ["too many files are open", "ulimit -n"]),
        (OSError("odd"), ["odd", "GECKO_TRACEBACK"]),
        (pa.ArrowInvalid("bad footer"), ["table", "bad footer"]),
        (sqlite3.OperationalError("database is locked"), ["database is locked", "nobody else writes"]),
        (SafetensorError("header too large"), [".safetensors", "header too large"]),
        (json_error(), ["must be JSON", "column 2"]),
        (UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates"), ["UTF-8"]),
        (RecursionError("maximum depth"), ["nested too deep"]),
        (ValueError("x" * 9999), ["ValueError", "…"]),
        (AssertionError(), ["AssertionError.", "GECKO_TRACEBACK"]),
    ],
)
def test_sentences_name_the_mend(error: BaseException, words: list[str]) -> None:
    said = sentence(error)
    assert "\n" not in said and len(said) < 700
    for word in words:
        assert word in said


def test_the_place_in_the_package_is_named(tmp_path: Path) -> None:
    from gecko.core.files import file_sha256

    with pytest.raises(OSError) as found:
        file_sha256(tmp_path)
    assert sentence(found.value) == f"{tmp_path} is a folder; give a file"
    with pytest.raises(AttributeError) as odd:
        file_sha256(None)  # type: ignore[arg-type]
    assert "(gecko/core/files.py, line " in sentence(odd.value)
