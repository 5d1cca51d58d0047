"""What a stage depends on, by name and value, is what it was: a run that is paid for stays paid for.

``GECKO_WRITE_GOLDEN=1 pytest tests/test_fingerprints.py`` writes the golden file anew. Do so only where a stage is meant
to give other results, and name the stage in the commit.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from gecko.core.files import write_json
from gecko.encoder import model_identity
from gecko.fret.release import FILE, write_release
from gecko.run.folder import Run
from gecko.stages.dataset import released_rows
from gecko.stages.runner import Pipeline, distill

from .golden.scenarios import SCENARIOS, fingerprints, settings, use_teachers, write_sources

GOLDEN = Path(__file__).parent / "golden" / "fingerprints.json"


@pytest.fixture(scope="module")
def sources(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder)
    shutil.copytree(tiny_model, folder / "model")
    return folder


@pytest.mark.parametrize("name", SCENARIOS)
def test_parts_and_fingerprints_are_what_they_were(
    name: str, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(sources, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    use_teachers(monkeypatch)
    if name == "released rows":
        with Run(Path("before"), settings("default").model_copy(update={"seed": 5})) as run:
            pipeline = Pipeline(run, force=True)
            pipeline.ingest()
            pipeline.through("relabel")
            write_release(released_rows(run), Path("release") / FILE)
    # With the relative names that an earlier version saved; a new run has absolute ones, which differ from place to place.
    write_json(Path("run") / "config.json", settings(name).model_dump())
    with Run(Path("run"), settings(name)) as run:
        distill(run, force=True)
    found = fingerprints(Path("run"), model_identity("model"))
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("GECKO_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(golden | {name: found}, indent=1, sort_keys=True) + "\n")
    else:
        assert found == golden[name]
