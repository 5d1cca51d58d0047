"""Gecko: distil a language model's relevance judgement into a compact text-embedding model.

The names below are the public ones; everything else may move. They are imported on first use, so that
``import gecko`` stays light.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Embedder": "gecko.encoder",
    "Encoder": "gecko.encoder",
    "Example": "gecko.core.records",
    "GeckoError": "gecko.core.errors",
    "Passage": "gecko.core.records",
    "Pipeline": "gecko.stages.runner",
    "Run": "gecko.run.folder",
    "RunConfig": "gecko.config.run",
    "distill": "gecko.stages.runner",
    "evaluate_retrieval": "gecko.evaluation",
    "load": "gecko.encoder",
    "load_beir": "gecko.evaluation",
    "load_config": "gecko.config.load",
    "load_encoder": "gecko.encoder",
    "load_release": "gecko.fret.release",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gecko' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
