"""What a person sees of long work: a bar on a terminal, else a line now and then."""

import io
import re
import subprocess
import sys
import time

import pytest
from rich.console import Console

from gecko.core import progress
from gecko.core.progress import Terminal, progress_bar


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def shown(console: Console) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def test_a_bar_that_waits_appears_only_for_long_work() -> None:
    short, long = console(terminal=True), console(terminal=True)
    with progress_bar("embedding", 100, "", short, wait=60.0) as advance:
        advance(50)
    assert not shown(short)
    with progress_bar("embedding", 100, "", long, wait=1e-9) as advance:
        time.sleep(0.01)
        advance(50)
    assert "embedding" in shown(long)


def test_a_bar_shows_units_and_a_note() -> None:
    terminal = console(terminal=True)
    with progress_bar("judging [x]", 8, "parts", terminal) as advance:
        advance(2, "cost 1.00 [y]")
    assert re.search(r"judging \[x\] .* 2/8 parts .* cost 1\.00 \[y\]", shown(terminal))


def wait_for(console: Console, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in shown(console) and time.monotonic() < deadline:
        time.sleep(0.01)


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.05)
    pipe = console(terminal=False)
    ui = Terminal()
    ui.console = pipe
    with ui.bar("writing", 1200, "queries") as advance:
        wait_for(pipe, "so far")
        advance(300, "loss 1.5")
        wait_for(pipe, "left")
    said = shown(pipe).splitlines()
    assert said[0] == "writing (1,200 queries)"
    assert re.fullmatch(r"writing: 0 of 1,200 queries, [\d.]+ s so far", said[1])
    assert re.fullmatch(r"writing: 300 of 1,200 queries, loss 1\.5, about [\d.]+ s left", said[-1])
    after = len(said)
    time.sleep(0.2)
    assert len(shown(pipe).splitlines()) == after, "it goes on after its end"


def test_work_whose_amount_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.05)
    pipe = console(terminal=False)
    with progress_bar("embedding", None, "rows", pipe) as advance:
        advance(7)
        wait_for(pipe, "7 rows")
    assert re.search(r"^embedding: 7 rows, [\d.]+ s so far$", shown(pipe), re.MULTILINE)
    with progress_bar("embedding", 200, "", pipe) as advance:
        advance(50)
        wait_for(pipe, "25%")
    assert re.search(r"^embedding: 25%, about [\d.]+ s left$", shown(pipe), re.MULTILINE)


def test_a_reader_of_progress_who_leaves_takes_no_output_with_him() -> None:
    program = (
        "import time; from gecko.core import progress; progress.EVERY = 0.02\n"
        "with progress.Terminal().bar('writing', 9, 'queries'): time.sleep(0.5)\n"
        "print('the result')"
    )
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "$0" 2> >(head -1 >/dev/null)', program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "the result\n")
