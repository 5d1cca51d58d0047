"""The packed wheel, outside of the checkout: nothing that the package reads at run time is missing from it."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SETTINGS = (
    *("generate.queries=3", "generate.heldout=0", "generate.min_seed_chars=20", "mine.n=2", "select.min_rc=null"),
    *("train.epochs=1", "train.min_steps=0"),
)
PASSAGES = (
    "The red bird sleeps in the old tree.",
    "A small fish runs along the slow river.",
    "The cat eats by the big house.",
)


def run(command: Sequence[object], folder: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT], folder)
    (found,) = folder.glob("gecko_embed-*.whl")
    return found


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of an environment of its own that holds the wheel, and sees what else is installed here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel], folder)
    own = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip()
    # Read behind the environment's own packages; .pth files there, as of an editable installation, are not followed.
    (Path(own) / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python.parent


def test_it_holds_every_file_of_the_package(wheel: Path) -> None:
    here = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "gecko").rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".nbc", ".nbi")
    }
    with zipfile.ZipFile(wheel) as packed:
        assert {name for name in packed.namelist() if name.startswith("gecko/")} == here


def test_a_run_outside_of_the_checkout(commands: Path, tiny_model: Path, tmp_path: Path) -> None:
    from gecko import __version__

    where = run([commands / "python", "-c", "import gecko; print(gecko.__file__)"], tmp_path).strip()
    assert Path(where).is_relative_to(commands.parent)
    assert run([commands / "gecko", "--version"], tmp_path) == f"gecko {__version__}\n"
    (tmp_path / "passages.jsonl").write_text(
        "".join(json.dumps({"_id": str(number), "text": text}) + "\n" for number, text in enumerate(PASSAGES)),
        encoding="utf-8",
    )
    command = [commands / "gecko", "distill", "passages.jsonl", "-o", "run", "--llm", "fake", "--backbone", tiny_model]
    run([*command, *(word for setting in SETTINGS for word in ("--set", setting))], tmp_path)
    assert (tmp_path / "run" / "model" / "modules.json").exists()
    assert "<html" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
