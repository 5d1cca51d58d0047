"""Runs the commands of the tutorials and the notebook, and compares what they print with what the pages show.

    python tools/tutorials.py            # lists the differences, and ends with 1 if there are any
    python tools/tutorials.py --write    # puts what was printed into the pages
    python tools/tutorials.py --folder NEW    # keeps what was made, for example for tools/screenshots.py

In a page, a block ``toml`` with a title is a file of that name, a block ``sh`` is run, and the block ``text`` behind it shows
what it prints on both streams. All other blocks are left alone. The pages are run in order in one new folder, and the
notebook after them; the folder of documents of the repository stands there where the pages say. No network is used, and no
weights but those that ship.

Numbers that depend on the machine are not compared; :data:`VARIES` lists them.
"""

import argparse
import difflib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs" / "tutorials" / name for name in ("own-corpus.md", "query-log.md")]
NOTEBOOK = ROOT / "docs" / "notebooks" / "own-corpus.ipynb"
INPUTS = ("recipes/handbook", "recipes/handbook-log.txt")
HOME = "/home/you/gecko"  # what the pages show for the folder that they are run in
BLOCK = re.compile(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```\n', re.MULTILINE | re.DOTALL)
URL = re.compile(r"http://127\.0\.0\.1:\d+")
VARIES = [
    (r"(?<![\d.,])\d[\d,.]*(?= s$| s\b| tokens/s| passages/s| written\b)", "0.0"),  # seconds and speeds
    (r"(?<![\d.])[-+]?\d[\d,]*\.\d+(?!\.\d)", "0.0"),  # other decimal numbers: they follow the processor's arithmetic
    (r"\b(yes|unproven|worse)(?= +agreement| \|$)", "verdict"),  # follows from the numbers
    (r"^the time that writing takes could not be told .*\n", ""),  # said where a measurement of milliseconds failed
    (r"^.*[,:] (about .+ left|.+ so far)\n", ""),  # progress, every 30 seconds
    (r"[ ─━]+", " "),  # the width of a table follows from its numbers
]


def compared(text: str) -> list[str]:
    """The lines of an output without what depends on the machine."""
    for pattern, same in VARIES:
        text = re.sub(pattern, same, text, flags=re.MULTILINE)
    return [line.strip() for line in text.strip().splitlines()]


def environment(folder: Path) -> dict[str, str]:
    """Variables by which ``gecko`` is that of this checkout, without a network and with a cache of its own."""
    return {
        "PATH": f"{folder / '.bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "HF_HUB_OFFLINE": "1",
        "GECKO_CACHE": str(folder / ".cache"),
        "LC_ALL": "C.UTF-8",
    }


def run(script: str, folder: Path) -> str:
    """What a block prints, both streams together; of a server, what it prints until it can be reached.

    Raises:
        SystemExit: a command of the block failed.
    """
    env = {**os.environ, **environment(folder)}
    serves = script.startswith("gecko serve")
    command = ["bash", "-ec", f"exec {script.strip()} --port 0" if serves else script]
    lines = []
    with subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    ) as process:
        for line in process.stdout or ():
            lines.append(line)
            if serves and URL.search(line):
                process.terminate()
                break
    text = URL.sub("http://127.0.0.1:8000", "".join(lines).replace(str(folder), HOME))
    if process.returncode and not serves:
        sys.exit(f"{script}{text}ended with {process.returncode}")
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines()) + "\n"


def prepare(folder: Path) -> None:
    """The documents, and ``gecko`` of this Python."""
    for name in INPUTS:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _ = shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    command = folder / ".bin" / "gecko"
    command.parent.mkdir()
    code = "from gecko.cli.main import main; main()"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "{code}" "$@"\n')
    command.chmod(0o755)


def follow(page: str, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Runs the blocks of a page in order: the command, what the page shows, what was printed."""
    blocks = list(BLOCK.finditer(page))
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        kind, title, text = block.groups()
        if kind == "toml" and title:
            (folder / title).write_text(text, encoding="utf-8")
        if kind == "sh":
            printed = run(text, folder)
            if after and after[1] == "text":
                yield text, after[3], printed


def differences(folder: Path, *, write: bool = False) -> list[str]:
    """Where the pages show something else than what their commands print.

    Args:
        folder: a new folder to run them in.
        write: put what was printed into the pages, block by block, where it differs.
    """
    prepare(folder)
    found = []
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        for command, shown, printed in follow(page, folder):
            old, new = compared(shown), compared(printed)
            if old != new:
                found += [f"{path.name}: {command}", *difflib.unified_diff(old, new, "page", "printed", lineterm="")]
                page = page.replace(f"{command}```\n\n```text\n{shown}", f"{command}```\n\n```text\n{printed}", 1)
        if write:
            path.write_text(page, encoding="utf-8")
    return found


def outputs(notebook: Any) -> str:
    """What the cells of a notebook show, as text."""
    shown = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            shown.append(output.get("text") or data.get("text/markdown") or data.get("text/plain", ""))
    return "\n".join(shown)


def notebook_differences(folder: Path, *, write: bool = False) -> list[str]:
    """The same of the notebook, cell by cell in a kernel of its own.

    Args:
        folder: a folder that :func:`prepare` has filled.
        write: keep what the cells showed, where it differs.
    """
    import nbformat
    from nbclient import NotebookClient

    page = nbformat.read(NOTEBOOK, as_version=4)
    old = compared(outputs(page))
    home = folder / NOTEBOOK.parent.relative_to(ROOT)
    home.mkdir(parents=True)
    with patch.dict(os.environ, environment(folder)):
        NotebookClient(page, timeout=900, record_timing=False, resources={"metadata": {"path": str(home)}}).execute()
    for cell in page.cells:
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    new = compared(outputs(page))
    if write and old != new:
        page.metadata["language_info"] = {"name": "python"}  # not the version of this machine
        nbformat.write(page, NOTEBOOK)
    return list(difflib.unified_diff(old, new, NOTEBOOK.name, "shown", lineterm=""))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--write", action="store_true", help="put what was printed into the pages")
    parser.add_argument("--folder", type=Path, help="run them in this new folder, and keep it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = (options.folder or Path(folder)).resolve()
        found = differences(place, write=options.write) + notebook_differences(place, write=options.write)
    print("\n".join(found))
    sys.exit(bool(found) and not options.write)


if __name__ == "__main__":
    main()
