"""What a model hub says of a model."""

import contextlib
from pathlib import Path


def hub_commit(name: str) -> str:
    """The commit of a hub model: the cached one, else the hub's newest, else nothing."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    for repository in (name,) if "/" in name else (f"sentence-transformers/{name}", name):
        cached = try_to_load_from_cache(repository, "config.json")
        if isinstance(cached, str):
            return Path(cached).parent.name
        if not constants.HF_HUB_OFFLINE:
            with contextlib.suppress(Exception):  # whatever fails here fails again, and is explained, on loading
                return HfApi().model_info(repository, timeout=10).sha or ""
    return ""
