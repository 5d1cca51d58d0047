"""A saved model in the names that every reader knows.

Since 5.4, sentence-transformers writes ``"pooling_mode": "mean"`` and new module paths. Text Embeddings Inference refuses
such a folder, earlier vLLM pools it by the first token without a word, and older sentence-transformers
cannot load it. All of them, the newest sentence-transformers too, read the names that were written before.
"""

import json
from pathlib import Path
from typing import Any

from gecko.core.files import write_json

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


def write_older_names(folder: Path, max_tokens: int | None) -> None:
    """Rewrite the configuration of a folder that sentence-transformers has saved; what it means stays the same.

    ``max_tokens`` is the model's window; none: it names no limit.
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
