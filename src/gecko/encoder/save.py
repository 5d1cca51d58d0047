"""A model on disk: a plain sentence-transformers folder, which says what the model reads, how much, and how wide it is."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gecko.core import formats
from gecko.core.arguments import folder_of, form_of
from gecko.core.errors import ConfigError
from gecko.core.files import write_json
from gecko.core.formats import InputFormat
from gecko.encoder.tokens import mend_tokenizer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_MODULES = {"Transformer", "Pooling", "Dense", "Normalize"}
_POOLING = {  # a mode of today and the switch that stood for it
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_TRANSFORMER = {"transformer_task", "modality_config", "module_output_name"}  # what a plain transformer says of itself
_DENSE = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}


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
    _write_older_names(folder, window_of(model))
    mend_tokenizer(folder / "tokenizer.json", model, window_of(model))
    if dims:
        for file in (folder / "config_sentence_transformers.json", folder / "config.json"):
            if file.exists():
                config = json.loads(file.read_text(encoding="utf-8"))
                write_json(file, {**config, "matryoshka_dimensions": sorted(set(dims), reverse=True)})


def _write_older_names(folder: Path, max_tokens: int | None) -> None:
    """Rewrite the configuration of a folder that sentence-transformers has saved in the names that every reader knows.

    Since 5.4, it writes ``"pooling_mode": "mean"`` and new module paths. Text Embeddings Inference refuses such a folder,
    earlier vLLM pools it by the first token without a word, and older sentence-transformers cannot load it. All of them,
    the newest too, read the names that were written before. ``max_tokens`` is the model's window; none: it names no limit.
    """
    file = folder / "modules.json"
    modules: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    for module in modules:
        name = module["type"].rpartition(".")[2]
        if name not in _MODULES or not module["type"].startswith("sentence_transformers."):
            continue
        module["type"] = f"sentence_transformers.models.{name}"
        part = folder / module["path"]
        match name:
            case "Transformer":
                _rewrite(part / "sentence_bert_config.json", lambda config: _transformer(config, max_tokens))
            case "Pooling":
                _rewrite(part / "config.json", _pooling)
            case "Dense":
                _rewrite(part / "config.json", _dense)
    write_json(file, modules)


def _rewrite(file: Path, change: Any) -> None:
    if file.exists():
        write_json(file, change(json.loads(file.read_text(encoding="utf-8"))))


def _transformer(config: dict[str, Any], max_tokens: int | None) -> dict[str, Any]:
    window = {} if max_tokens is None else {"max_seq_length": max_tokens}
    plain = (
        config.keys() <= _TRANSFORMER
        and config.get("transformer_task") == "feature-extraction"
        and config.get("module_output_name") == "token_embeddings"
    )
    return {**({} if plain else config), **window, "do_lower_case": False}


def _pooling(config: dict[str, Any]) -> dict[str, Any]:
    rest = dict(config)
    modes = rest.pop("pooling_mode", None)
    if modes is None:
        return config
    modes = {modes} if isinstance(modes, str) else set(modes)
    width = rest.pop("embedding_dimension", rest.pop("word_embedding_dimension", None))
    switches = {switch: mode in modes for mode, switch in _POOLING.items()}
    return {"word_embedding_dimension": width, **switches, **rest}


def _dense(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if _DENSE.get(name) != value}
