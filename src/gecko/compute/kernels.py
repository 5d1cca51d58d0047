"""What stands between two 8-bit products, compiled by numba: one pass over memory where torch takes four to six.

What is notable here:

* a kernel takes a product as oneDNN leaves it, before the scale of a row, and leaves bytes and scales for the next
  product; between its passes a row stays in the innermost cache
* a product may be in float32 or in bfloat16, whose bits are read as integers: rounding to bytes loses as much again, and half
  as much passes through the caches
* rows are independent: a row gives the same bytes, whatever stands beside it
* the largest size in a row is found in the bits of its floats, as integers, since the compiler makes no vector
  instructions of a maximum of floats
* vectors are as wide as the processor has them (:func:`wide_vectors`); the compiler by itself stops at half of AVX-512
* kernels release Python's lock and use one thread: the caller has one for each core

Numba keeps the compiled code on disk, where it finds a folder that it can write, so the first process alone waits for it.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import config, njit, types
from numba.extending import intrinsic, overload

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, and these kernels are there compiled alone; torch takes their place")

Floats = npt.NDArray[np.float32]
Product = npt.NDArray[np.float32] | npt.NDArray[np.uint16]
Bytes = npt.NDArray[np.uint8]

ACTIVATIONS = {"gelu": 0, "gelu_new": 1, "gelu_pytorch_tanh": 1, "relu": 2}

_SETTINGS: Any = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"nnan", "ninf", "nsz", "arcp", "contract", "reassoc"},
}
LEAST = np.float32(1e-30)
LOWEST = np.int32(-0x80000000)
_SIZE = np.int32(0x7FFFFFFF)  # a float without its sign
LOG2_E = 1.4426950408889634
_THIS = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]


def _has_place() -> bool:
    """Whether numba has a folder to keep kernels in; for a user without a home it would make one named ``~`` right here."""
    try:
        Path.home()
    except RuntimeError:
        if not config.CACHE_DIR and (cache := os.environ.get("GECKO_CACHE")):
            config.CACHE_DIR = str(Path(cache) / "numba")
        return bool(config.CACHE_DIR) or os.access(Path(__file__).parent, os.W_OK)
    return True


def kernel(function: Callable[..., Any]) -> Any:
    """A function, compiled, and kept on disk where that can be."""
    try:
        if not _has_place():
            return njit(**_SETTINGS)(function)
        # Numba compiles a kernel anew when its own file has changed; it holds parts of this one, too, so they are in its name
        function.__qualname__ += f"_{_THIS}"
        return njit(cache=True, **_SETTINGS)(function)
    except RuntimeError:  # no folder that numba knows can be written
        return njit(**_SETTINGS)(function)


def inline(function: Callable[..., Any]) -> Any:
    """A function that becomes a part of the kernels which call it."""
    return njit(forceinline=True, **_SETTINGS)(function)


@intrinsic  # type: ignore[untyped-decorator]
def wide_vectors(context: Any) -> Any:
    """In a kernel: vectors of 512 bits where there are some, which LLVM avoids for what they cost the clock of old ones."""

    def change(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # llvmlite's own ``add`` knows no attributes with a value
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), change


@inline
def _from_bits(value: Any) -> Any:
    return np.int32(np.int32(value) << np.int32(16)).view(np.float32)


def wide(value: Any) -> Any:
    """A float32 as it is; the bits of a bfloat16 as a float32."""
    return _from_bits(value) if isinstance(value, np.uint16) else value


@overload(wide, jit_options=_SETTINGS, strict=False)  # type: ignore[untyped-decorator]
def _wide_of_type(value: Any) -> Any:
    """:func:`wide` where the type, not the value, is known: compiled code has one of the two and no question."""
    if value == types.uint16:
        return lambda value: _from_bits(value)  # noqa: PLW0108 - numba asks for a function that is not compiled yet
    return lambda value: value


@inline
def exp2(x: Any) -> Any:
    """2 to the x, within 8e-5 of itself, for x up to 126; nothing, or next to it, far below."""
    x = max(x, np.float32(-125.0))
    whole = np.floor(x + np.float32(0.5))
    f = x - whole
    # 2 to the f on [-1/2, 1/2], the polynomial that is the least off
    p = np.float32(0.05517167) * f + np.float32(0.24261113)
    p = p * f + np.float32(0.69326099)
    p = p * f + np.float32(0.99992807)
    return np.int32(np.float32(p).view(np.int32) + np.int32(np.int32(whole) << np.int32(23))).view(np.float32)


@inline
def _gelu(x: Any) -> Any:
    """GELU, x Φ(x), within 7e-5 or 3e-5 of x, whichever is more: a step of 8 bits is a 127th of the largest in a row."""
    z = min(max(x, np.float32(-4.2)), np.float32(4.2))
    t = z * z * np.float32(2 / 4.2**2) - np.float32(1.0)
    # (Φ(z) - 1/2) / z: the polynomial of t whose x Φ(x) is the least off
    p = np.float32(-3.9918082e-3) * t + np.float32(1.1273623e-2)
    p = p * t + np.float32(-1.6128493e-2)
    p = p * t + np.float32(2.3672135e-2)
    p = p * t + np.float32(-3.8053649e-2)
    p = p * t + np.float32(5.5975284e-2)
    p = p * t + np.float32(-8.1560102e-2)
    p = p * t + np.float32(1.6785367e-1)
    return x * (np.float32(0.5) + z * p)


@inline
def _gelu_tanh(x: Any) -> Any:
    inner = np.float32(1.5957691216) * (x + np.float32(0.044715) * x * x * x)
    return x / (np.float32(1.0) + exp2(min(np.float32(-LOG2_E) * inner, np.float32(126.0))))


@inline
def _relu(x: Any) -> Any:
    return max(x, np.float32(0.0))


@inline
def larger(largest: Any, value: Any) -> Any:
    """The larger size of two floats, in the bits of one without its sign."""
    return max(largest, np.int32(np.float32(value).view(np.int32) & _SIZE))


@inline
def higher(highest: Any, value: Any) -> Any:
    """The higher of two floats, as an integer in whose order floats stand; begin with :data:`LOWEST`."""
    return max(highest, _ordered(np.float32(value).view(np.int32)))


@inline
def float_of(highest: Any) -> Any:
    """The float of :func:`higher`."""
    return np.int32(_ordered(highest)).view(np.float32)


@inline
def _ordered(bits: Any) -> Any:
    """The bits of floats as integers of the same order, and back."""
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & _SIZE))


@inline
def same(x: Any) -> Any:
    """The activation that is none."""
    return x


@inline
def size_of(largest: Any) -> Any:
    """The float of :func:`larger`, which may be divided by."""
    return max(np.int32(largest).view(np.float32), LEAST)


@inline
def round_line(line: Any, largest: Any, into: Any, scales: Any, row: Any) -> None:
    """Floats as ``scale * (byte - 128)`` in a row of bytes; ``largest`` is that of :func:`larger`."""
    peak = size_of(largest)
    scales[row] = peak * np.float32(1 / 127)
    steps = np.float32(127.0) / peak
    for column in range(len(line)):
        into[row, column] = np.uint8(np.int32(line[column] * steps + np.float32(128.5)))


@inline
def round_floats(line: Any, into: Any, scales: Any, row: Any) -> None:
    """The same of floats whose largest is not known."""
    largest = np.int32(0)
    for column in range(len(line)):
        largest = larger(largest, line[column])
    round_line(line, largest, into, scales, row)


@kernel
def round_rows(values: Floats, into: Bytes, scales: Floats) -> None:
    """Bytes (N or more, D) and scales (N or more,) of float rows (N, D), which are contiguous."""
    wide_vectors()
    for row in range(values.shape[0]):
        round_floats(values[row], into, scales, row)


@inline
def fill(product: Any, scale: Any, bias: Any, act: Any, line: Any) -> Any:
    """A line becomes the activation of ``product * scale + bias``; returns its :func:`larger`.

    One function of one value at a time, so that it is one pass.
    """
    largest = np.int32(0)
    for column in range(len(product)):
        value = act(wide(product[column]) * scale + bias[column])
        line[column] = value
        largest = larger(largest, value)
    return largest


@kernel
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
    wide_vectors()
    line = np.empty(product.shape[1], np.float32)
    for row in range(product.shape[0]):
        if act == 0:
            largest = fill(product[row], scales[row], bias, _gelu, line)
        elif act == 1:
            largest = fill(product[row], scales[row], bias, _gelu_tanh, line)
        else:
            largest = fill(product[row], scales[row], bias, _relu, line)
        round_line(line, largest, into, found, row)


@kernel
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
    wide_vectors()
    width = np.float32(states.shape[1])
    for row in range(states.shape[0]):
        scale = scales[row]
        total = np.float32(0.0)
        for column in range(states.shape[1]):
            value = wide(product[row, column]) * scale + bias[column] + states[row, column]
            states[row, column] = value
            total += value
        mean = total / width
        total = np.float32(0.0)
        for column in range(states.shape[1]):
            away = states[row, column] - mean
            total += away * away
        factor = np.float32(1.0) / np.sqrt(total / width + np.float32(eps))
        largest = np.int32(0)
        for column in range(states.shape[1]):
            value = (states[row, column] - mean) * factor * gain[column] + shift[column]
            states[row, column] = value
            largest = larger(largest, value)
        round_line(states[row], largest, into, found, row)


@kernel
def split_heads(product: Product, scales: Floats, bias: Floats, states: Floats) -> None:
    """Query, key and value of texts of one length, ``product * scales + bias``, head by head.

    Args:
        product: (B T, 3 D), text after text, with the query first.
        scales: (B T or more,), of the rows of the product.
        bias: (3 D,).
        states: (3, B, heads, T, D / heads), what is found.
    """
    wide_vectors()
    parts, texts, heads, length, size = states.shape
    for text in range(texts):
        for part in range(parts):
            for head in range(heads):
                first = (part * heads + head) * size
                for token in range(length):
                    scale = scales[text * length + token]
                    for column in range(size):
                        found = wide(product[text * length + token, first + column])
                        states[part, text, head, token, column] = found * scale + bias[first + column]


@kernel
def powers(scores: Floats, shares: Floats) -> None:
    """Replace each row by 2 to it, less its largest; ``shares`` becomes what a row must be multiplied with to sum to 1.

    Scores are (N, T), contiguous, and shares (N or more,).
    """
    wide_vectors()
    for row in range(scores.shape[0]):
        highest = LOWEST
        for column in range(scores.shape[1]):
            highest = higher(highest, scores[row, column])
        peak = float_of(highest)
        total = np.float32(0.0)
        for column in range(scores.shape[1]):
            power = exp2(scores[row, column] - peak)
            scores[row, column] = power
            total += power
        shares[row] = np.float32(1.0) / total


@kernel
def join_heads(mixed: Floats, shares: Floats, into: Bytes, found: Floats) -> None:
    """Bytes (B T or more, D) and scales (B T or more,) of what attention gives texts of one length.

    ``mixed`` (B, heads, T, D / heads) are values summed by :func:`powers`, with its shares (B, heads, T).
    """
    texts, heads, length, size = mixed.shape
    wide_vectors()
    line = np.empty(heads * size, np.float32)
    for text in range(texts):
        for token in range(length):
            largest = np.int32(0)
            for head in range(heads):
                share = shares[text, head, token]
                for column in range(size):
                    value = mixed[text, head, token, column] * share
                    line[head * size + column] = value
                    largest = larger(largest, value)
            round_line(line, largest, into, found, text * length + token)
