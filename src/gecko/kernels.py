"""What stands between two 8-bit products, compiled by numba: one pass over memory where torch takes four to six.

What is notable here:

* a kernel takes a product as oneDNN leaves it, before the scale of a row, and leaves bytes and scales for the next
  product; between its passes a row stays in the innermost cache
* a product may be in float32 or in bfloat16, whose bits are read as integers: rounding to bytes loses as much again, and half
  as much passes through the caches
* rows are independent: a row gives the same bytes, whatever stands beside it
* the largest size in a row is found in the bits of its floats, as integers, since the compiler makes no vector
  instructions of a maximum of floats
* kernels release Python's lock and use one thread: the caller has one for each core

Numba keeps the compiled code on disk, where it finds a folder that it can write, so the first process alone waits for it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.extending import overload

Floats = npt.NDArray[np.float32]
Product = npt.NDArray[np.float32] | npt.NDArray[np.uint16]
Bytes = npt.NDArray[np.uint8]

ACTIVATIONS = {"gelu": 0, "gelu_new": 1, "gelu_pytorch_tanh": 1, "relu": 2}

_SETTINGS: Any = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"nnan", "ninf", "nsz", "arcp", "contract", "reassoc"},
}
_SIZE = np.int32(0x7FFFFFFF)  # a float without its sign
_LEAST = np.float32(1e-30)
LOG2_E = 1.4426950408889634


def _kernel(function: Callable[..., Any]) -> Any:
    try:
        return njit(cache=True, **_SETTINGS)(function)
    except RuntimeError:  # no folder that numba knows can be written
        return njit(**_SETTINGS)(function)


def _inline(function: Callable[..., Any]) -> Any:
    return njit(forceinline=True, **_SETTINGS)(function)


@_inline
def _from_bits(value: Any) -> Any:
    return np.int32(np.int32(value) << np.int32(16)).view(np.float32)


def _wide(value: Any) -> Any:
    """A float32 as it is; the bits of a bfloat16 as a float32."""
    return _from_bits(value) if isinstance(value, np.uint16) else value


@overload(_wide, jit_options=_SETTINGS, strict=False)
def _wide_of_type(value: Any) -> Any:
    """:func:`_wide` where the type, not the value, is known: compiled code has one of the two and no question."""
    if value == types.uint16:
        return lambda value: _from_bits(value)  # noqa: PLW0108 - numba asks for a function that is not compiled yet
    return lambda value: value


@_inline
def _exp2(x: Any) -> Any:
    """2 to the x, within 4e-6 of itself, for x up to 126."""
    x = max(x, np.float32(-126.0))
    whole = np.floor(x + np.float32(0.5))
    f = x - whole
    # 2 to the f on [-1/2, 1/2], interpolated at Chebyshev points
    p = np.float32(0.00966637) * f + np.float32(0.05592198)
    p = p * f + np.float32(0.24022349)
    p = p * f + np.float32(0.69312105)
    p = p * f + np.float32(1.0)
    return p * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)


@_inline
def _gelu(x: Any) -> Any:
    """GELU, x Φ(x), within 8e-6 or 3e-6 of x, whichever is more: a step of 8 bits is a 127th of the largest in a row."""
    z = min(max(x, np.float32(-4.6)), np.float32(4.6))
    t = z * z * np.float32(2 / 4.6**2) - np.float32(1.0)
    # (Φ(z) - 1/2) / z, interpolated at Chebyshev points of t
    p = np.float32(1.2480127e-3) * t + np.float32(-2.9759504e-3)
    p = p * t + np.float32(3.2209823e-3)
    p = p * t + np.float32(-5.7510894e-3)
    p = p * t + np.float32(1.2491533e-2)
    p = p * t + np.float32(-2.0283232e-2)
    p = p * t + np.float32(2.9148542e-2)
    p = p * t + np.float32(-4.0341562e-2)
    p = p * t + np.float32(5.4166328e-2)
    p = p * t + np.float32(-7.5771161e-2)
    p = p * t + np.float32(1.5354314e-1)
    return x * (np.float32(0.5) + z * p)


@_inline
def _gelu_tanh(x: Any) -> Any:
    inner = np.float32(1.5957691216) * (x + np.float32(0.044715) * x * x * x)
    return x / (np.float32(1.0) + _exp2(min(np.float32(-LOG2_E) * inner, np.float32(126.0))))


@_inline
def _act(line: Any, act: Any) -> None:
    if act == 0:
        for column in range(line.shape[1]):
            line[0, column] = _gelu(line[0, column])
    elif act == 1:
        for column in range(line.shape[1]):
            line[0, column] = _gelu_tanh(line[0, column])
    else:
        for column in range(line.shape[1]):
            line[0, column] = max(line[0, column], np.float32(0.0))


@_inline
def _round(values: Any, bits: Any, row: Any, into: Any, scales: Any, place: Any) -> None:
    """Row ``row`` of ``values`` as ``scale * (byte - 128)``; ``bits`` is the same memory as integers."""
    largest = np.int32(0)
    for column in range(bits.shape[1]):
        largest = max(largest, np.int32(bits[row, column] & _SIZE))
    peak = max(np.int32(largest).view(np.float32), _LEAST)
    scales[place] = peak * np.float32(1 / 127)
    steps = np.float32(127.0) / peak
    for column in range(bits.shape[1]):
        into[place, column] = np.uint8(np.int32(values[row, column] * steps + np.float32(128.5)))


@_kernel
def round_rows(values: Floats, into: Bytes, scales: Floats) -> None:
    """Bytes and scales of float rows.

    Args:
        values: (N, D), contiguous.
        into: (N or more, D).
        scales: (N or more,).
    """
    bits = values.view(np.int32)
    for row in range(values.shape[0]):
        _round(values, bits, row, into, scales, row)


@_kernel
def activate(product: Product, scales: Floats, bias: Floats, act: int, into: Bytes, found: Floats) -> None:
    """Bytes and scales of the activation of ``product * scales + bias``.

    Args:
        product: (N, D).
        scales: (N or more,), of the rows of the product.
        bias: (D,).
        act: one of :data:`ACTIVATIONS`.
        into: (N or more, D).
        found: (N or more,), scales of the bytes.
    """
    line = np.empty((1, product.shape[1]), np.float32)
    bits = line.view(np.int32)
    for row in range(product.shape[0]):
        scale = scales[row]
        for column in range(product.shape[1]):
            line[0, column] = _wide(product[row, column]) * scale + bias[column]
        _act(line, act)
        _round(line, bits, 0, into, found, row)


@_kernel
def add_norm(
    product: Product,
    scales: Floats,
    bias: Floats,
    states: Floats,
    gain: Floats,
    shift: Floats,
    eps: float,
    into: Bytes,
    found: Floats,
) -> None:
    """The layer norm of ``states + product * scales + bias``, in the place of ``states``, and its bytes and scales.

    Args:
        product: (N, D).
        scales: (N or more,), of the rows of the product; may be ``found``.
        bias: (D,).
        states: (N, D), contiguous.
        gain: (D,), of the norm.
        shift: (D,), of the norm.
        eps: of the norm.
        into: (N or more, D).
        found: (N or more,), scales of the bytes.
    """
    bits = states.view(np.int32)
    width = np.float32(states.shape[1])
    for row in range(states.shape[0]):
        scale = scales[row]
        total = np.float32(0.0)
        for column in range(states.shape[1]):
            value = _wide(product[row, column]) * scale + bias[column] + states[row, column]
            states[row, column] = value
            total += value
        mean = total / width
        total = np.float32(0.0)
        for column in range(states.shape[1]):
            away = states[row, column] - mean
            total += away * away
        factor = np.float32(1.0) / np.sqrt(total / width + np.float32(eps))
        for column in range(states.shape[1]):
            states[row, column] = (states[row, column] - mean) * factor * gain[column] + shift[column]
        _round(states, bits, row, into, found, row)


@_kernel
def split_heads(product: Product, scales: Floats, bias: Floats, states: Floats) -> None:
    """Query, key and value of texts of one length, ``product * scales + bias``, head by head.

    Args:
        product: (B T, 3 D), text after text, with the query first.
        scales: (B T or more,), of the rows of the product.
        bias: (3 D,).
        states: (3, B, heads, T, D / heads), what is found.
    """
    parts, texts, heads, length, size = states.shape
    for text in range(texts):
        for part in range(parts):
            for head in range(heads):
                first = (part * heads + head) * size
                for token in range(length):
                    scale = scales[text * length + token]
                    for column in range(size):
                        found = _wide(product[text * length + token, first + column])
                        states[part, text, head, token, column] = found * scale + bias[first + column]


@_kernel
def powers(scores: Floats, shares: Floats) -> None:
    """Replace each row by 2 to it, less its largest; ``shares`` becomes what a row must be multiplied with to sum to 1.

    Args:
        scores: (N, T), contiguous.
        shares: (N or more,).
    """
    bits = scores.view(np.int32)
    for row in range(scores.shape[0]):
        largest = np.int32(0)
        for column in range(scores.shape[1]):
            largest = max(largest, bits[row, column])  # floats from zero on stand in the order of their bits
        peak = np.int32(largest).view(np.float32)
        if largest == 0:  # none is above zero: the bits of floats below stand the other way round
            least = np.uint32(0xFFFFFFFF)
            for column in range(scores.shape[1]):
                least = min(least, np.uint32(bits[row, column]))
            peak = np.uint32(least).view(np.float32)
        total = np.float32(0.0)
        for column in range(scores.shape[1]):
            power = _exp2(scores[row, column] - peak)
            scores[row, column] = power
            total += power
        shares[row] = np.float32(1.0) / total


@_kernel
def join_heads(mixed: Floats, shares: Floats, into: Bytes, found: Floats) -> None:
    """Bytes and scales of what attention gives texts of one length.

    Args:
        mixed: (B, heads, T, D / heads), values summed by :func:`powers`.
        shares: (B, heads, T).
        into: (B T or more, D).
        found: (B T or more,), scales of the bytes.
    """
    texts, heads, length, size = mixed.shape
    line = np.empty((1, heads * size), np.float32)
    bits = line.view(np.int32)
    for text in range(texts):
        for token in range(length):
            for head in range(heads):
                share = shares[text, head, token]
                for column in range(size):
                    line[0, head * size + column] = mixed[text, head, token, column] * share
            _round(line, bits, 0, into, found, text * length + token)
