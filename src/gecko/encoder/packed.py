"""BERT without padding: the tokens of a batch lie end to end in one matrix.

What is notable here:

* linear layers, norms and activations see (N, D), N the tokens of all texts together; only attention sees texts, those
  of equal length at a time, so no position is ever computed for nothing
* query, key and value are one product
* ``int8``: weights have a scale a row, activations a scale a token, found at run time. A text's numbers do not depend
  on its neighbours, as they would with the scale of a whole batch, and nothing has to be calibrated
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gecko.compute.device import has_fast_bfloat16, has_fast_int8
from gecko.encoder.vectors import Vectors

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

PACKED_TOKENS = 2048  # tokens a batch: what a layer writes stays in the cache


def can_pack(model: "SentenceTransformer") -> bool:
    """Whether a plain model's transformer is a BERT, of which all parts are known here."""
    from transformers import BertModel

    bert = model.transformers_model
    return (
        type(bert) is BertModel
        and getattr(bert.config, "position_embedding_type", "absolute") in (None, "absolute")
        and not bert.config.is_decoder
        and bert.config.hidden_act in ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
    )


def int8_works() -> bool:
    """Whether this processor and this torch multiply 8-bit integers, tried on a product that is known."""
    import torch

    if not has_fast_int8():
        return False
    weight = torch.arange(-128, 128, dtype=torch.float32).view(16, 16) / 128
    values = torch.linspace(-3, 5, 64).view(4, 16)
    try:
        found = Int8Linear(weight, torch.ones(16), torch.float32)(values)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return bool(torch.allclose(found, values @ weight.T + 1, atol=0.3))


class BertBackend:
    """A BERT, for which :func:`can_pack` holds, with sentence-transformers' own pooling, on the CPU; its weights are copied.

    In 8 bits (``int8``, of the linear layers) this is the plain form of :class:`gecko.encoder.fused.FusedBackend`, for
    where numba is not. ``rest`` is the float type of what is not in 8 bits; none: bfloat16 where that is fast.
    """

    def __init__(self, model: "SentenceTransformer", precision: str, rest: "torch.dtype | None" = None) -> None:
        import torch

        self.precision = precision
        self.batch_tokens = PACKED_TOKENS
        half = precision == "bfloat16" or (precision == "int8" and has_fast_bfloat16("cpu"))
        self._dtype = rest or (torch.bfloat16 if half else torch.float32)
        bert: Any = model.transformers_model
        config = bert.config
        self._heads = int(config.num_attention_heads)
        self._eps = float(config.layer_norm_eps)
        self._act = str(config.hidden_act)
        with torch.inference_mode():
            parts = bert.embeddings
            self._words = self._fixed(parts.word_embeddings.weight)
            self._places = self._fixed(parts.position_embeddings.weight + parts.token_type_embeddings.weight[0])
            self._first_norm = self._norm(parts.LayerNorm)
            self._layers = [self._layer(layer, precision) for layer in bert.encoder.layer]
        self._after = [copy.deepcopy(module).eval() for module in list(model)[1:]]

    def _fixed(self, tensor: "Tensor") -> "Tensor":
        return tensor.detach().to("cpu", self._dtype, copy=True)

    def _norm(self, module: Any) -> "tuple[Tensor, Tensor]":
        return self._fixed(module.weight), self._fixed(module.bias)

    def _layer(self, layer: Any, precision: str) -> dict[str, Any]:
        import torch

        attention = layer.attention
        three = (attention.self.query, attention.self.key, attention.self.value)
        parts = {
            "qkv": (torch.cat([part.weight for part in three]), torch.cat([part.bias for part in three])),
            "mix": (attention.output.dense.weight, attention.output.dense.bias),
            "up": (layer.intermediate.dense.weight, layer.intermediate.dense.bias),
            "down": (layer.output.dense.weight, layer.output.dense.bias),
        }
        kind = Int8Linear if precision == "int8" else Linear
        linears = {
            name: kind(weight.detach().float().cpu(), bias.detach().float().cpu(), self._dtype)
            for name, (weight, bias) in parts.items()
        }
        return linears | {"norm1": self._norm(attention.output.LayerNorm), "norm2": self._norm(layer.output.LayerNorm)}

    def __call__(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Unit vectors, float32 (B, D), of B rows of tokens."""
        import torch
        from torch.nn.functional import normalize

        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        lengths = [len(rows[row]) for row in order]
        groups = equal_runs(lengths)
        ids = torch.from_numpy(np.concatenate([np.asarray(rows[row], dtype=np.int64) for row in order]))  # (N,)
        places = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))
        with torch.inference_mode():
            x = self._words[ids] + self._places[places]  # (N, D)
            x = self._through(self._normed(x, self._first_norm), groups)
            features: dict[str, Any] = self._padded(x, lengths, groups)
            for module in self._after:
                features = module(features)
            vectors = normalize(features["sentence_embedding"].float(), dim=1).numpy()
        result: Vectors = np.empty_like(vectors)
        result[order] = vectors
        return result

    def _through(self, x: "Tensor", groups: list[tuple[int, int, int]]) -> "Tensor":
        """The layers; (N, D) to (N, D)."""
        for layer in self._layers:
            mixed = layer["mix"](self._attend(layer["qkv"](x), groups))
            x = self._normed(mixed.add_(x), layer["norm1"])
            x = self._normed(layer["down"](self._activate(layer["up"](x))).add_(x), layer["norm2"])
        return x

    def _attend(self, qkv: "Tensor", groups: list[tuple[int, int, int]]) -> "Tensor":
        """Self-attention of each text with itself; (N, 3 D) to (N, D)."""
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        found = []
        for start, texts, length in groups:
            part = qkv[start : start + texts * length].view(texts, length, 3, self._heads, -1)
            query, key, value = part.permute(2, 0, 3, 1, 4)  # (texts, heads, length, D / heads) each
            mixed = scaled_dot_product_attention(query, key, value)
            found.append(mixed.transpose(1, 2).reshape(texts * length, -1))
        return torch.cat(found)

    def _activate(self, x: "Tensor") -> "Tensor":
        from torch.nn.functional import gelu, relu

        return relu(x) if self._act == "relu" else gelu(x, approximate="none" if self._act == "gelu" else "tanh")

    def _normed(self, x: "Tensor", parts: "tuple[Tensor, Tensor]") -> "Tensor":
        from torch.nn.functional import layer_norm

        return layer_norm(x, (x.shape[1],), parts[0], parts[1], self._eps)

    def _padded(self, x: "Tensor", lengths: list[int], groups: list[tuple[int, int, int]]) -> dict[str, Any]:
        """What the pooling reads: float32 (B, T, D) and its mask (B, T)."""
        import torch

        tokens = torch.zeros(len(lengths), lengths[0], x.shape[1])
        row = 0
        for start, texts, length in groups:
            tokens[row : row + texts, :length] = x[start : start + texts * length].view(texts, length, -1)
            row += texts
        mask = (torch.arange(lengths[0]) < torch.tensor(lengths)[:, None]).long()
        return {"token_embeddings": tokens, "attention_mask": mask, "modality": "text"}


class Linear:
    """A linear layer in one precision."""

    def __init__(self, weight: "Tensor", bias: "Tensor", dtype: "torch.dtype") -> None:
        self._weight, self._bias = weight.to(dtype), bias.to(dtype)

    def __call__(self, x: "Tensor") -> "Tensor":
        """(N, in) to (N, out)."""
        from torch.nn.functional import linear

        return linear(x, self._weight, self._bias)


class Int8Linear:
    """A linear layer whose product is of 8-bit integers.

    Row i of the input is written as ``s_i q_i`` (:func:`gecko.compute.int8.round_rows`), row j of the weights as ``t_j w_j``.
    oneDNN computes ``q_i · w_j t_j``; the token's scale and the bias are applied after it.
    """

    def __init__(self, weight: "Tensor", bias: "Tensor", dtype: "torch.dtype") -> None:
        from gecko.compute.int8 import PackedWeights

        self.weight = PackedWeights(weight)
        self.bias = bias.to(dtype)

    def stretch(self, rows: slice, factor: float) -> None:
        """Multiply some of the results by a factor, from now on."""
        import torch

        with torch.inference_mode():
            self.weight.scale[rows] *= factor
            self.bias[rows] *= factor

    def __call__(self, x: "Tensor") -> "Tensor":
        """(N, in) to (N, out)."""
        import torch

        from gecko.compute.int8 import round_rows

        rounded, scale = round_rows(x)
        product = self.weight.multiply(rounded, self.bias.dtype)
        return torch.addcmul(self.bias, product, scale, out=product)  # in its place: half the time of fresh memory


def equal_runs(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first token, texts, length) of each run of equal lengths."""
    runs: list[tuple[int, int, int]] = []
    start = first = 0
    for index in range(1, len(lengths) + 1):
        if index == len(lengths) or lengths[index] != lengths[first]:
            runs.append((start, index - first, lengths[first]))
            start += (index - first) * lengths[first]
            first = index
    return runs
