"""One model of several that were trained from the same start: the weighted mean of their weights (a soup).

Models that differ in seed, in data or in the step they were taken at often lie in one basin, and their mean is better
than each (Wortsman et al., 2022, arXiv:2203.05482); Gemini Embedding, EmbeddingGemma and Qwen3-Embedding end with it.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gecko.core.arguments import folder_of, in_order, spec_of
from gecko.core.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from gecko.encoder import Encoder


def merge_models(
    specs: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    weights: Sequence[float] = (),
) -> None:
    """Merge models of one architecture and save a sentence-transformers model, with the first one's tokenizer.

    Two SPECs or more: folders (checkpoints are such, too), ``hf:NAME`` or ``minilm``; a weight each, or none: all equal.
    The folder must not exist or be empty. Raises ConfigError: fewer than two models, weights that do not fit, a folder in
    use, or a model that cannot be loaded. TrainingError: the models differ in more than their weights.
    """
    from gecko.encoder import load_encoder, save_model

    names, folder = [spec_of(spec) for spec in in_order(specs, "model")], folder_of(folder)
    shares = _shares(names, weights)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is in use; give a folder that does not exist yet")
    first = load_encoder(names[0])
    merged = {
        name: shares[0] * value.cpu().double() if value.is_floating_point() else value
        for name, value in first.model.state_dict().items()
    }
    for spec, share in zip(names[1:], shares[1:], strict=True):
        other = load_encoder(spec)
        _refuse_difference(names[0], first, spec, other)
        for name, value in other.model.state_dict().items():
            if value.is_floating_point():
                merged[name] = merged[name] + share * value.cpu().double()
            elif not torch.equal(merged[name], value):
                raise TrainingError(f"{spec}: {name} differs from that of {names[0]}, and is no weight to be merged")
    own = first.model.state_dict()
    first.model.load_state_dict({name: value.to(own[name].dtype) for name, value in merged.items()})
    save_model(first.model, folder, first.form, _dims(names))


def _shares(specs: Sequence[str], weights: Sequence[float]) -> list[float]:
    """What each model counts, of 1."""
    if len(specs) < 2:
        raise ConfigError(f"{len(specs)} model to merge; give two or more")
    if weights and len(weights) != len(specs):
        raise ConfigError(f"{len(weights)} weights for {len(specs)} models; give one for each")
    if any(not math.isfinite(weight) or weight < 0 for weight in weights) or (weights and sum(weights) == 0):
        raise ConfigError(f"weights {list(weights)}: they must be numbers from 0 up, and not all 0")
    given = list(weights) or [1.0] * len(specs)
    return [weight / sum(given) for weight in given]


def _refuse_difference(spec: str, one: "Encoder", other_spec: str, other: "Encoder") -> None:
    def shapes(encoder: "Encoder") -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in encoder.model.state_dict().items()}

    def settings(encoder: "Encoder") -> list[tuple[str, object]]:
        asked = [(type(module).__name__, getattr(module, "get_config_dict", None)) for module in encoder.model]
        return [(name, config() if callable(config) else None) for name, config in asked]

    mine, theirs = shapes(one), shapes(other)
    if differing := [name for name in mine | theirs if mine.get(name) != theirs.get(name)]:
        name = differing[0]
        raise TrainingError(
            f"{other_spec} is of another architecture than {spec}: {name} is {theirs.get(name, 'missing')} against "
            f"{mine.get(name, 'missing')}; only models from one start can be merged"
        )
    if one.form != other.form:
        raise TrainingError(
            f"{other_spec} reads the {other.form} format and {spec} the {one.form}; merge models of one"
        )
    if settings(one) != settings(other):
        raise TrainingError(f"{other_spec} has other modules or settings than {spec} (pooling, normalisation, length)")
    if one.model.tokenizer.get_vocab() != other.model.tokenizer.get_vocab():
        raise TrainingError(f"{other_spec} has another vocabulary than {spec}")


def _dims(specs: Sequence[str]) -> list[int]:
    """The widths that all models were trained in."""
    from gecko.encoder import resolve_model

    widths: list[set[int]] = []
    for spec in specs:
        file = Path(resolve_model(spec)) / "config_sentence_transformers.json"
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        widths.append(set(config.get("matryoshka_dimensions") or ()))
    return sorted(set.intersection(*widths), reverse=True)
