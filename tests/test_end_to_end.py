"""One run with real weights: SmolLM2 is too weak to teach and is refused; forced, the run goes to its end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gecko.corpus.stdlib import read_stdlib

pytestmark = pytest.mark.slow


def gecko(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from gecko.cli.main import main; main()", *map(str, arguments)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_a_weak_teacher_is_stopped_and_goes_on_when_forced(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    chosen = [passage for passage in read_stdlib() if passage.id.split(".")[0] in ("json", "csv", "heapq", "shutil")]
    assert len(chosen) > 30
    with corpus.open("w") as lines:
        for passage in chosen:
            lines.write(json.dumps({"_id": passage.id, "title": passage.title, "text": passage.text}) + "\n")
    settings = (
        "generate.queries=24",
        "generate.heldout=0.5",
        "prompts.generate=generate_completion",
        "generate.neighbourhood=4",
        "select.min_rc=null",
        "train.epochs=1",
        "train.min_steps=0",
        "mine.n=8",
    )
    command = ["distill", corpus, "-o", tmp_path / "run", "--llm", "smollm2"]
    command += [word for setting in settings for word in ("--set", setting)]

    stopped = gecko(*command)
    assert stopped.returncode == 3, stopped.stderr
    assert "would make the embedder worse" in stopped.stderr
    assert "--accept-teacher" in stopped.stderr
    assert not (tmp_path / "run" / "generate").exists()

    forced = gecko(*command, "--accept-teacher")
    assert forced.returncode == 0, forced.stderr
    assert "going on because of --accept-teacher" in forced.stderr
    assert (tmp_path / "run" / "report.html").exists()
    results = json.loads((tmp_path / "run" / "evaluate" / "results.json").read_text())
    assert results["agreement"]["queries"] >= 1

    again = gecko(*command, "--accept-teacher")
    assert again.returncode == 0, again.stderr
    assert "loading the teacher" not in again.stderr
    assert again.stdout == forced.stdout

    code = "import sys; from sentence_transformers import SentenceTransformer as S; print(S(sys.argv[1]).encode('x').shape)"
    alone = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run" / "model")], capture_output=True, text=True, check=False
    )
    assert alone.stdout.strip() == "(384,)", alone.stderr
