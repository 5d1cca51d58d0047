from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _apart(own_cache: Path) -> None:
    """Nothing here may touch the user's cache."""
