"""BERT in 8 bits on the CPU, with what stands between the products in one pass each (:mod:`gecko.compute.kernels`).

The data flow of a layer, for the tokens of some texts (N, D), states in float32 and, beside them, their bytes and scales:

    bytes → product → split heads → scores → powers → sums of values → bytes      attention
          → product → + states, norm → bytes                                      its output
          → product → activation → bytes → product → + states, norm → bytes       the inner layer

Attention is in :mod:`gecko.compute.attention` where the processor has what that takes, else its products are torch's, of
floats.

Rejected: torch's own operators between the products (:class:`gecko.encoder.packed.BertBackend`), each of which passes over
memory on its own: 1.9 times slower.

A matrix product on many threads waits for the slowest of them, some thirty times a batch. So a batch is cut into pieces of
whole texts, and each thread takes one piece through all layers alone.
"""

import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from gecko.compute import attention, kernels
from gecko.compute.device import rounds_to_bfloat16
from gecko.compute.int8 import padded
from gecko.encoder.forked import Lock
from gecko.encoder.packed import BertBackend, Int8Linear
from gecko.encoder.vectors import Vectors

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

PIECE_TOKENS = 1024  # of a piece
BATCH_PIECES = 32  # for each thread: the last ones leave some idle
ALONE = 128  # tokens that are not worth a thread
SCORES = 1 << 18  # attention scores at once
_MAKING = Lock()  # for all backends: making workers changes the process's thread count for a moment


class FusedBackend(BertBackend):
    """A BERT in 8 bits on the CPU, with sentence-transformers' own pooling; :func:`gecko.encoder.packed.can_pack` holds."""

    def __init__(self, model: "SentenceTransformer") -> None:
        import torch

        super().__init__(model, "int8", torch.float32)
        width = self._words.shape[1]
        for layer in self._layers:  # a softmax takes powers of two of the scores here
            layer["qkv"].stretch(slice(width), kernels.LOG2_E / math.sqrt(width / self._heads))
        self._kept = torch.bfloat16 if rounds_to_bfloat16() else torch.float32
        self._attends_in_bytes = attention.works() and width // self._heads % attention.LANES == 0
        self._threads = torch.get_num_threads()
        self.batch_tokens = BATCH_PIECES * PIECE_TOKENS * self._threads
        self._pool: ThreadPoolExecutor | None = None
        self._made_in = 0  # the process; a child of fork has its own threads to make

    def __call__(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Unit vectors, float32 (B, D), of B rows of tokens."""
        pieces = cut(rows, self._threads)
        if len(pieces) == 1:
            return super().__call__(rows)
        with _MAKING:
            if self._threads > 1 and self._made_in != os.getpid():
                self._pool, self._made_in = _workers(self._threads), os.getpid()
        run = map if self._pool is None else self._pool.map
        found = list(run(super().__call__, [[rows[row] for row in piece] for piece in pieces]))
        result: Vectors = np.empty((len(rows), found[0].shape[1]), dtype=np.float32)
        for piece, vectors in zip(pieces, found, strict=True):
            result[piece] = vectors
        return result

    def _through(self, x: "torch.Tensor", groups: list[tuple[int, int, int]]) -> "torch.Tensor":
        import torch

        tokens, width = x.shape
        act = kernels.ACTIVATIONS[self._act]
        states = x.numpy()
        flow = _Rows(padded(tokens), width)
        inner = _Rows(padded(tokens), len(self._layers[0]["up"].bias))
        kind = _ByteAttention if self._attends_in_bytes else _FloatAttention
        attend = kind(groups, self._heads, width)
        kernels.round_rows(states, flow.bytes, flow.scales)
        for layer in self._layers:
            attend(self._product(layer["qkv"], flow), layer["qkv"].bias.numpy(), flow)
            self._add(layer["mix"], flow, states, layer["norm1"], flow)
            product = self._product(layer["up"], flow)[:tokens]
            kernels.activate(product, flow.scales, layer["up"].bias.numpy(), act, inner.bytes, inner.scales)
            self._add(layer["down"], inner, states, layer["norm2"], flow)
        return torch.from_numpy(states)

    def _product(self, layer: Int8Linear, rows: "_Rows") -> kernels.Product:
        import torch

        found = layer.weight.multiply(torch.from_numpy(rows.bytes), self._kept)
        product: kernels.Product = (found if found.dtype == torch.float32 else found.view(torch.uint16)).numpy()
        return product

    def _add(self, layer: Int8Linear, rows: "_Rows", states: kernels.Floats, norm: Any, into: "_Rows") -> None:
        gain, shift = (part.numpy() for part in norm)
        product = self._product(layer, rows)
        kernels.add_norm(
            product, rows.scales, layer.bias.numpy(), states, gain, shift, self._eps, into.bytes, into.scales
        )


class _Rows:
    """Bytes (N, D) and their scales (N,)."""

    def __init__(self, rows: int, width: int) -> None:
        self.bytes = np.empty((rows, width), np.uint8)
        self.scales = np.empty(rows, np.float32)

    def part(self, start: int, rows: int) -> "_Rows":
        found = _Rows.__new__(_Rows)
        found.bytes, found.scales = self.bytes[start : start + rows], self.scales[start : start + rows]
        return found


class _ByteAttention:
    """Self-attention of each text with itself, with products of bytes."""

    def __init__(self, groups: list[tuple[int, int, int]], heads: int, width: int) -> None:
        self._heads = heads
        self._groups = tuple(np.array(groups, np.int64).T.copy())  # starts, texts, lengths

    def __call__(self, product: kernels.Product, bias: kernels.Floats, rows: _Rows) -> None:
        """Of the (N, 3 D) product with ``rows``, whose bytes and scales become the result's."""
        parts = product.reshape(len(product), 3, self._heads, -1)
        shift = bias.reshape(parts.shape[1:])
        attention.attend(parts, rows.scales, shift, self._groups, rows.bytes, rows.scales)


class _FloatAttention:
    """The same with products of floats by torch, for texts of one length at a time; its memory serves all layers."""

    def __init__(self, groups: list[tuple[int, int, int]], heads: int, width: int) -> None:
        self._heads, self._width = heads, width
        self._groups = [
            (start + first * length, min(step, texts - first), length)
            for start, texts, length in groups
            for step in [max(1, SCORES // (heads * length * length))]
            for first in range(0, texts, step)
        ]
        tokens = max(texts * length for _, texts, length in self._groups)
        self._states = np.empty(3 * tokens * width, np.float32)
        self._scores = np.empty(max(SCORES, groups[0][2] ** 2), np.float32)  # the longest text is the first
        self._shares = np.empty(tokens * heads, np.float32)

    def __call__(self, product: kernels.Product, bias: kernels.Floats, rows: _Rows) -> None:
        """Of the (N, 3 D) product with ``rows``, whose bytes and scales become the result's."""
        import torch

        size = self._width // self._heads
        for start, texts, length in self._groups:
            tokens, matrices = texts * length, texts * self._heads
            part = rows.part(start, tokens)
            states = self._states[: 3 * tokens * self._width].reshape(3, texts, self._heads, length, size)
            kernels.split_heads(product[start : start + tokens], part.scales, bias, states)
            query, key, value = torch.from_numpy(states.reshape(3, matrices, length, size))
            shares = self._shares[: matrices * length]
            together = max(1, SCORES // (length * length))
            for first in range(0, matrices, together):  # some texts at once, or some heads of a long one
                some = slice(first, first + together)
                keys = key[some]
                scores = self._scores[: len(keys) * length * length].reshape(-1, length)
                found = torch.from_numpy(scores).view(-1, length, length)
                torch.bmm(query[some], keys.transpose(1, 2), out=found)
                kernels.powers(scores, shares[first * length :])
                torch.bmm(found, value[some], out=query[some])
            kernels.join_heads(states[0], shares.reshape(texts, self._heads, length), part.bytes, part.scales)


def cut(rows: Sequence[Sequence[int]], threads: int) -> list[list[int]]:
    """Numbers of rows, longest first, in pieces of about equal tokens: one for each thread, or as many more as it takes."""
    total = sum(map(len, rows))
    pieces = max(1, -(-total // PIECE_TOKENS), min(threads, total // ALONE))
    pieces += -pieces % threads if pieces > threads else 0
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    found: list[list[int]] = [[]]
    before = 0
    for row in order:
        if found[-1] and before + len(rows[row]) / 2 >= len(found) * total / pieces:
            found.append([])
        found[-1].append(row)
        before += len(rows[row])
    return found


def _workers(threads: int) -> ThreadPoolExecutor:
    """Threads in each of which torch uses no other; all other threads keep what they have."""
    import torch

    pools: list[ThreadPoolExecutor] = []
    all_here = threading.Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread takes the usual number when it is first asked, even if it was told another
        torch.set_num_threads(1)
        all_here.wait()

    def make() -> None:
        usual = torch.get_num_threads()
        pool = ThreadPoolExecutor(threads, "gecko-int8", begin)
        try:
            for _ in range(threads):
                pool.submit(int)
            all_here.wait()
            pools.append(pool)
        except RuntimeError:  # no more threads can be started
            all_here.abort()
        finally:
            torch.set_num_threads(usual)  # the number that was set last, in any thread, is that of the threads to come

    maker = threading.Thread(target=make)
    maker.start()
    maker.join()
    if not pools:
        raise RuntimeError(
            f"{threads} threads cannot be started here; call torch.set_num_threads with fewer before load"
        )
    return pools[0]
