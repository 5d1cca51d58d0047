"""A teacher's linear layers in 8 bits, for CPUs with fast 8-bit products.

A weight matrix is rounded once, with one scale an output channel; its input at run time, with one scale a token, so that
a token's result does not depend on the tokens beside it. Products are summed in 32-bit integers (oneDNN). Embeddings,
norms and attention stay in floats, and so do the logits of the tokens that are scored; the logits of all others, which only
the normaliser reads, are in 8 bits too. A CPU with VNNI multiplies 8-bit matrices about twice as fast as bfloat16 ones,
one with AVX2 alone nearly three times as fast as float32 ones, with weights of 7 bits (``gecko.compute.int8``);
``docs/research/performance.md`` has what that costs in rank quality.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from gecko.compute.int8 import PackedWeights, round_rows

# A wider input is rounded in pieces with a scale each: the few huge values of a decoder's inner layer then coarsen
# one piece of a row and not all of it. In pieces of 1280 the error of RC is half of what it is without, for 3 % of the time.
WIDEST = 2048
PIECE = 1280

Rounded = tuple[torch.Tensor, torch.Tensor]


class _Rounder:
    """Rounds the rows of a tensor to 8 bits; remembers the last one, since q, k and v (gate and up) read the same.

    One for all layers of a model, so that no more than one input is held.
    """

    def __init__(self) -> None:
        self._source: torch.Tensor | None = None
        self._result: list[Rounded] = []

    def __call__(self, source: torch.Tensor) -> list[Rounded]:
        """:func:`round_rows` of each piece of a (..., width) tensor."""
        if self._source is not source:
            rows = source.flatten(0, -2)
            self._source, self._result = source, [round_rows(rows[:, part]) for part in pieces(rows.shape[1])]
        return self._result


def pieces(width: int) -> list[slice]:
    """The parts of an input of ``width`` that are rounded on their own."""
    size = width if width <= WIDEST else PIECE
    return [slice(start, min(start + size, width)) for start in range(0, width, size)]


class Int8Linear(nn.Module):
    """A linear layer whose weights and inputs are rounded to 8 bits; what goes in and comes out is of type ``dtype``.

    The ``rounder`` is shared by layers that read the same input.
    """

    def __init__(self, linear: nn.Linear, rounder: _Rounder, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._weights = [PackedWeights(linear.weight.detach()[:, part]) for part in pieces(linear.in_features)]
        self._bias = None if linear.bias is None else linear.bias.detach().to(dtype, copy=True)
        self._dtype = dtype
        self._rounder = rounder

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features), in the layer's own float type."""
        total: torch.Tensor | None = None
        kind = self._dtype if len(self._weights) == 1 else torch.float32
        for weight, (rounded, scale) in zip(self._weights, self._rounder(states), strict=True):
            product = weight.multiply(rounded, kind).mul_(scale)
            total = product if total is None else total.add_(product)
        assert total is not None
        if self._bias is not None:
            total.add_(self._bias)
        return total.to(self._dtype).view(*states.shape[:-1], self.out_features)


def to_int8(model: PreTrainedModel, dtype: torch.dtype) -> Int8Linear:
    """Replace every linear layer of a causal LM but its output layer by its 8-bit form, one by one, in place.

    The rest of it will work in ``dtype``. Returns the output layer in 8 bits; the model keeps its own.
    """
    rounder = _Rounder()
    for parent in list(model.base_model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child, rounder, dtype))
    output: Any = model
    return Int8Linear(output.get_output_embeddings(), rounder, torch.float32)
