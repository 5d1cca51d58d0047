"""The server does what its OpenAPI document says: schemathesis looks for a request that proves otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gecko.encoder import Embedder

from .conftest import StartServer

pytestmark = pytest.mark.slow

pytest.importorskip("schemathesis")


def test_schemathesis_finds_nothing(start_server: StartServer, tiny: Embedder, tmp_path: Path) -> None:
    # With two models a body could name another one than its URL, which no schema of a body can rule out.
    live = start_server({"tiny": tiny})
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
            *("run", f"{live.url}/openapi.json", "--phases", "coverage,fuzzing", "--max-examples", "8"),
            *("--seed", "1", "--no-color", "--generation-database", "none", "--request-timeout", "60"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "Tested: 11" in done.stdout and "No issues found" in done.stdout, done.stdout[-2000:]
