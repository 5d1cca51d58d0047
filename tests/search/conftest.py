from pathlib import Path

import pytest

import gecko
from gecko.encoder import Embedder


@pytest.fixture(scope="module")
def embedder(tiny_model: Path) -> Embedder:
    return gecko.load(str(tiny_model), precision="float32")
