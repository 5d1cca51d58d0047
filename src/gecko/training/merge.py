"""One model of several that were trained from the same start: weights averaged (a soup), or along the sphere (slerp).

Models that differ in seed, in data or in the step they were taken at often lie in one basin, and their mean is better
than each (Wortsman et al., 2022, arXiv:2203.05482); Gemini Embedding, EmbeddingGemma and Qwen3-Embedding end with it.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, assert_never, get_args

import torch
from torch import Tensor

from gecko.errors import ConfigError, TrainingError
from gecko.given import folder_of, in_order, one_of, spec_of

if TYPE_CHECKING:
    from gecko.encoder import Encoder

Method = Literal["soup", "slerp"]

PARALLEL = 0.9995  # cosine from which on the arc is a line; its formula divides by the sine of the angle


def merge_models(
    specs: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    method: Method = "soup",
    weights: Sequence[float] = (),
) -> None:
    """Merge models of one architecture and save the result as a sentence-transformers model.

    Args:
        specs: two models or more: folders (checkpoints are such, too), ``hf:NAME`` or ``minilm``.
        folder: where the result goes; must not exist or be empty. The first model gives tokenizer and settings.
        method: ``soup``: the weighted mean. ``slerp``: each tensor on the arc between two; of more models, one after the
            other, so that their order counts.
        weights: one per model, for a weighted mean; none: all equal.

    Raises:
        ConfigError: fewer than two models, weights that do not fit, a folder in use, or a model that cannot be loaded.
        TrainingError: the models differ in more than their weights.
    """
    from gecko.encoder import load_encoder, save_model

    names, folder = [spec_of(spec) for spec in in_order(specs, "model")], folder_of(folder)
    one_of("method", method, get_args(Method))
    shares = _shares(names, weights)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is in use; give a folder that does not exist yet")
    first = load_encoder(names[0])
    merged = {
        name: value.cpu().double() if _merges(value) else value for name, value in first.model.state_dict().items()
    }
    total = shares[0]
    for spec, share in zip(names[1:], shares[1:], strict=True):
        other = load_encoder(spec)
        _refuse_difference(names[0], first, spec, other)
        total += share
        for name, value in other.model.state_dict().items():
            if _merges(value):
                merged[name] = _between(merged[name], value.cpu().double(), share / total if total else 0.0, method)
            elif not torch.equal(merged[name], value):
                raise TrainingError(f"{spec}: {name} differs from that of {names[0]}, and is no weight to be merged")
    own = first.model.state_dict()
    first.model.load_state_dict({name: value.to(own[name].dtype) for name, value in merged.items()})
    save_model(first.model, folder, first.form, _dims(names))


def _shares(specs: Sequence[str], weights: Sequence[float]) -> list[float]:
    if len(specs) < 2:
        raise ConfigError(f"{len(specs)} model to merge; give two or more")
    if weights and len(weights) != len(specs):
        raise ConfigError(f"{len(weights)} weights for {len(specs)} models; give one for each")
    if any(not math.isfinite(weight) or weight < 0 for weight in weights) or (weights and sum(weights) == 0):
        raise ConfigError(f"weights {list(weights)}: they must be numbers from 0 up, and not all 0")
    return list(weights) or [1.0] * len(specs)


def _merges(value: Tensor) -> bool:
    return value.is_floating_point()


def _between(one: Tensor, other: Tensor, share: float, method: Method) -> Tensor:
    """The point that is ``share`` of the way from ``one`` to ``other``."""
    match method:
        case "soup":
            return (1 - share) * one + share * other
        case "slerp":
            return slerp(one, other, share)
        case _:
            assert_never(method)


def slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Spherical interpolation of two tensors of one shape, taken as vectors.

    ``sin((1 - t)Ω) / sin Ω · a + sin(tΩ) / sin Ω · b`` with Ω the angle between a and b; the straight line where they
    are nearly parallel, or one is 0.
    """
    norms = one.norm() * other.norm()
    cosine = float((one * other).sum() / norms) if norms > 0 else 1.0
    if abs(cosine) > PARALLEL:
        return (1 - share) * one + share * other
    angle = math.acos(cosine)
    return (math.sin((1 - share) * angle) * one + math.sin(share * angle) * other) / math.sin(angle)


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
