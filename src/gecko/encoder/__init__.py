"""Embedding models: find, load, run and save them."""

from gecko.encoder.encoder import (
    Encoder,
    detect_form,
    load_encoder,
    model_identity,
    resolve_model,
    save_model,
)

__all__ = [
    "Encoder",
    "detect_form",
    "load_encoder",
    "model_identity",
    "resolve_model",
    "save_model",
]
