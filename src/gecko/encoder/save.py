"""A model on disk: a plain sentence-transformers folder, which says what the model reads, how much, and how wide it is."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gecko.core import formats
from gecko.core.arguments import folder_of, form_of
from gecko.core.errors import ConfigError
from gecko.core.files import write_json
from gecko.core.formats import InputFormat
from gecko.encoder.portable import write_older_names
from gecko.encoder.tokens import mend_tokenizer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def detect_form(prompts: Mapping[str, str | None]) -> InputFormat:
    """The form that a model with these saved prompts reads."""
    unified = formats.prompts("unified")["document"]
    return "unified" if prompts.get("document") == unified else "native"


def most_positions(model: "SentenceTransformer") -> int | None:
    """The most tokens that a model has positions for; none where nothing bounds them."""
    import torch

    limits = []
    if model.transformers_model is not None:
        limits.append(getattr(model.transformers_model.config, "max_position_embeddings", None))
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa and its kin count positions from behind the padding's number
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def window_of(model: "SentenceTransformer") -> int | None:
    """The most tokens that a model reads; none where it names no limit."""
    limit = model.max_seq_length
    return int(limit) if limit is not None and limit < 2**31 else None


def save_model(
    model: "SentenceTransformer", folder: str | os.PathLike[str], form: InputFormat, dims: Sequence[int] = ()
) -> None:
    """Save a model so that sentence-transformers alone, of any age, loads it, and tells its form and its dimensions.

    The prompts are those of ``form``, in which it was trained; in the native form the model keeps its own. ``dims``, to
    which it may be cut, are written as ``matryoshka_dimensions`` into ``config_sentence_transformers.json``, and into
    ``config.json``, where vLLM looks. The model is not changed. No README is written.

    Raises ConfigError: a dimension is not between 1 and the model's, or the form is none. StorageError: the disk is full
    or read-only.
    """
    folder, form = folder_of(folder), form_of(form)
    full = model.get_embedding_dimension()
    if wrong := [dim for dim in dims if dim < 1 or (full is not None and dim > full)]:
        raise ConfigError(f"dims = {wrong}: the model has {full} dimensions; give 1 to {full}")
    own, default = model.prompts, model.default_prompt_name
    keep = form == "native" and detect_form(own) == "native"
    try:
        if not keep:
            model.prompts, model.default_prompt_name = {**formats.prompts(form)}, None
        model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)
    finally:
        model.prompts, model.default_prompt_name = own, default
    write_older_names(folder, window_of(model))
    mend_tokenizer(folder / "tokenizer.json", model, window_of(model))
    if dims:
        for file in (folder / "config_sentence_transformers.json", folder / "config.json"):
            if file.exists():
                config = json.loads(file.read_text(encoding="utf-8"))
                write_json(file, {**config, "matryoshka_dimensions": sorted(set(dims), reverse=True)})
