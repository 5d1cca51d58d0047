"""Embedding models: find, load, run and save them."""

from gecko.encoder.embedder import Embedder, Prepared, load
from gecko.encoder.encoder import Encoder, load_encoder
from gecko.encoder.save import detect_form, save_model
from gecko.encoder.spec import model_identity, resolve_model
from gecko.encoder.vectors import encode_output, shorten

__all__ = [
    "Embedder",
    "Encoder",
    "Prepared",
    "detect_form",
    "encode_output",
    "load",
    "load_encoder",
    "model_identity",
    "resolve_model",
    "save_model",
    "shorten",
]
