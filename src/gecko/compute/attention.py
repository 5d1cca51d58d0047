"""Self-attention of short texts in products of bytes, compiled by numba, for processors with AVX-512 VNNI.

A head of a text at a time, and eight of its queries, so that scores never leave the innermost cache:

    product → queries, keys (a scale a token), values (a scale a channel), all in bytes
            → scores → powers of two, in bytes → sums of values → floats → bytes for the next product

Rejected: products of floats by torch, whose scores and powers pass through memory, and which are called once for each length
of text: 1.5 times slower; and products of floats compiled here, three times slower than torch's.

Words of four bytes are what the processor multiplies and sums at once (``vpdpbusd``): unsigned bytes by signed ones. So
keys are kept as ``key + 128``, which each score is rid of by where its sum begins; powers are never negative.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import config, types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic
from numba.np import arrayobj

from gecko.compute.kernels import (
    LEAST,
    LOWEST,
    Bytes,
    Floats,
    Product,
    exp2,
    fill,
    float_of,
    higher,
    inline,
    kernel,
    round_floats,
    round_line,
    same,
    size_of,
    wide,
    wide_vectors,
)

Whole = npt.NDArray[np.int64]

ROWS = 8  # queries at once: so many sums hide how long one takes
LANES = 16  # words of a vector
_SHIFT = np.float32(7.9943534)  # 255 is two to it
_FAR, _NEAR = np.float32(-1e30), np.float32(1e-20)  # the score of no column; a query times which that is still far
_WORD = ir.IntType(32)
_VECTOR = ir.VectorType(_WORD, LANES)
_VNNI = "llvm.x86.avx512.vpdpbusd.512"


def works() -> bool:
    """Whether numba compiles for a processor that multiplies 64 pairs of bytes at once."""
    features = config.CPU_FEATURES
    return "+avx512vnni" in (get_host_cpu_features() if features is None else features).split(",")


def _splat(builder: Any, word: Any) -> Any:
    none = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(none, word, _WORD(0))
    return builder.shuffle_vector(one, none, ir.Constant(_VECTOR, [0] * LANES))


def _products(rows_unsigned: bool) -> Any:
    """The function that multiplies eight rows of words by sixteen columns of words, and sums."""

    @intrinsic  # type: ignore[untyped-decorator]
    def dots(
        context: Any, left: Any, row: Any, right: Any, column: Any, steps: Any, first: Any, into: Any, place: Any
    ) -> Any:
        """``into[r, place + c] = first[row + r] + sum over g < steps of left[row + r, g] · right[g, column + c]``.

        All are C-contiguous int32: left (R, G), right (G, C), first (R,), into (8, P).
        """
        whole = types.intp

        def make(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            row, column, steps, place = (arguments[at] for at in (1, 3, 4, 7))
            arrays = [arrayobj.make_array(signature.args[at])(context, b, arguments[at]) for at in (0, 2, 5, 6)]
            lefts, rights, firsts, intos = (array.data for array in arrays)
            left_width, right_width, _, into_width = (
                b.extract_value(array.shape, array.shape.type.count - 1) for array in arrays
            )
            number = row.type
            vectors = _VECTOR.as_pointer()
            multiply = b.module.globals.get(_VNNI) or ir.Function(
                b.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), _VNNI
            )
            rows = [b.add(row, number(r)) for r in range(ROWS)]
            starts = [b.gep(lefts, [b.mul(r, left_width)]) for r in rows]
            begin = [_splat(b, b.load(b.gep(firsts, [r]))) for r in rows]
            right_start = b.gep(rights, [column])
            before, loop, after = b.block, b.append_basic_block("dots"), b.append_basic_block("dots.end")
            b.branch(loop)
            b.position_at_end(loop)
            step = b.phi(number)
            step.add_incoming(number(0), before)
            sums = [b.phi(_VECTOR) for _ in rows]
            vector = b.load(b.bitcast(b.gep(right_start, [b.mul(step, right_width)]), vectors), align=4)
            found = []
            for start, total in zip(starts, sums, strict=True):
                word = _splat(b, b.load(b.gep(start, [step])))
                pair = (word, vector) if rows_unsigned else (vector, word)
                found.append(b.call(multiply, [total, *pair]))
            following = b.add(step, number(1))
            step.add_incoming(following, loop)
            for total, started, summed in zip(sums, begin, found, strict=True):
                total.add_incoming(started, before)
                total.add_incoming(summed, loop)
            b.cbranch(b.icmp_signed("<", following, steps), loop, after)
            b.position_at_end(after)
            for r, total in enumerate(found):
                b.store(total, b.bitcast(b.gep(intos, [b.add(b.mul(number(r), into_width), place)]), vectors), align=4)
            return context.get_dummy_value()

        return types.void(left, whole, right, whole, whole, first, into, whole), make

    return dots


_scores = _products(rows_unsigned=False)
_sums = _products(rows_unsigned=True)


@inline
def _signed(value: Any) -> Any:
    """The nearest whole number of one in -128 to 127."""
    return np.int32(np.int32(value + np.float32(128.5)) - np.int32(128))


@inline
def _read_queries(
    product: Any, head: Any, scales: Any, bias: Any, line: Any, bytes_: Any, found: Any, first: Any
) -> None:
    for token in range(len(product)):
        peak = size_of(fill(product[token, 0, head], scales[token], bias[0, head], same, line))
        found[token] = max(peak, _NEAR) * np.float32(1 / 127)
        steps = np.float32(127.0) / peak
        row = bytes_[token]
        total = np.int32(0)
        for column in range(len(line)):
            value = _signed(line[column] * steps)
            row[column] = np.int8(value)
            total += value
        first[token] = np.int32(np.int32(-128) * total)


@inline
def _read_keys(
    product: Any, head: Any, scales: Any, bias: Any, line: Any, bytes_: Any, words: Any, keys: Any, found: Any
) -> None:
    """``bytes_`` and ``words`` are the same memory."""
    for token in range(len(product)):
        largest = fill(product[token, 1, head], scales[token], bias[1, head], same, line)
        round_line(line, largest, bytes_, found, token)
        for word in range(len(keys)):
            keys[word, token] = words[token, word]


@inline
def _read_values(
    product: Any, head: Any, scales: Any, bias: Any, floats: Any, values: Any, found: Any, steps: Any
) -> None:
    shift = bias[2, head]
    for column in range(len(found)):
        found[column] = LEAST
    for token in range(len(product)):
        row, line, scale = product[token, 2, head], floats[token], scales[token]
        for column in range(len(found)):
            value = wide(row[column]) * scale + shift[column]
            line[column] = value
            found[column] = max(found[column], abs(value))
    for column in range(len(found)):
        steps[column] = np.float32(127.0) / found[column]
        found[column] = found[column] * np.float32(1 / 127)
    for word in range(len(values)):
        row = values[word]
        one, two, three, four = floats[4 * word], floats[4 * word + 1], floats[4 * word + 2], floats[4 * word + 3]
        for column in range(len(found)):
            step = steps[column]
            low = (_signed(one[column] * step) & 255) | ((_signed(two[column] * step) & 255) << 8)
            high = (_signed(three[column] * step) & 255) | (_signed(four[column] * step) << 8)
            row[column] = np.int32(low | (high << 16))


@inline
def _powers(scores: Any, keys: Any, places: Any, queries: Any, floats: Any, bytes_: Any, shares: Any) -> None:
    """255 times two to the scores, less the largest of a row, in bytes; ``shares`` are one over their sums."""
    rows, columns = bytes_.shape
    for row in range(rows):
        line, score = floats[row], scores[row]
        highest = LOWEST
        for column in range(columns):
            value = np.float32(score[column]) * keys[column] + places[column]
            line[column] = value
            highest = higher(highest, value)
        scale, peak = queries[row], float_of(highest)
        for column in range(columns):
            line[column] = (line[column] - peak) * scale + _SHIFT
    flat, into = floats[:rows].reshape(-1), bytes_.reshape(-1)  # rows are seldom a whole number of the compiler's steps
    for place in range(len(flat)):
        into[place] = np.uint8(np.int32(exp2(flat[place]) + np.float32(0.5)))
    for row in range(rows):
        line = bytes_[row]
        total = np.int32(0)
        for column in range(columns):
            total += np.int32(line[column])
        shares[row] = np.float32(1.0) / np.float32(total)


@inline
def _write(sums: Any, shares: Any, scales: Any, into: Any) -> None:
    """The sums of values in floats, for the rows that ``into`` has."""
    for row in range(len(into)):
        share, total, line = shares[row], sums[row], into[row]
        for column in range(len(line)):
            line[column] = np.float32(total[column]) * share * scales[column]


@kernel
def attend(
    product: Product,
    scales: Floats,
    bias: Floats,
    groups: tuple[Whole, Whole, Whole],
    into: Bytes,
    found: Floats,
) -> None:
    """Bytes and scales of what each text's attention to itself gives.

    Args:
        product: (N, 3, heads, D / heads) of queries, keys and values before their scale and bias, D / heads a multiple of
            16. Queries are such that a softmax takes powers of two of the scores.
        scales: (N or more,), of the rows of the product; may be ``found``.
        bias: (3, heads, D / heads).
        groups: of texts of one length: each group's first token, how many texts, and tokens of a text, above 0.
        into: (N or more, D).
        found: (N or more,), scales of the bytes.
    """
    wide_vectors()
    starts, texts, lengths = groups
    _, _, heads, size = product.shape
    most = lengths.max()
    columns = (most + LANES - 1) // LANES * LANES
    line = np.empty(size, np.float32)
    query_bytes, query_scales = np.zeros((columns, size), np.int8), np.zeros(columns, np.float32)
    query_words, first = query_bytes.view(np.int32), np.zeros(columns, np.int32)
    key_bytes = np.empty((columns, size), np.uint8)
    key_words = key_bytes.view(np.int32)
    all_keys, key_scales = np.empty(size // 4 * columns, np.int32), np.empty(columns, np.float32)
    places = np.empty(columns, np.float32)
    value_floats, all_values = np.empty((columns, size), np.float32), np.empty((columns // 4, size), np.int32)
    value_scales, value_steps = np.empty(size, np.float32), np.empty(size, np.float32)
    all_scores, all_floats = np.empty(ROWS * columns, np.int32), np.empty(ROWS * columns, np.float32)
    all_powers, nothing = np.empty(ROWS * columns, np.uint8), np.zeros(ROWS, np.int32)
    all_power_words = all_powers.view(np.int32)
    shares, sums = np.empty(ROWS, np.float32), np.empty((ROWS, size), np.int32)
    mixed = np.empty((most, heads, size), np.float32)
    lines = mixed.reshape(most, heads * size)
    for group in range(len(lengths)):
        length = lengths[group]
        columns = (length + LANES - 1) // LANES * LANES
        keys = all_keys[: size // 4 * columns].reshape(size // 4, columns)
        values = all_values[: columns // 4]
        scores = all_scores[: ROWS * columns].reshape(ROWS, columns)
        floats = all_floats[: ROWS * columns].reshape(ROWS, columns)
        powers = all_powers[: ROWS * columns].reshape(ROWS, columns)
        power_words = all_power_words[: ROWS * columns // 4].reshape(ROWS, columns // 4)
        places[:length] = np.float32(0.0)
        places[length:columns] = _FAR  # columns past the end of the text: no power
        key_scales[length:columns] = np.float32(0.0)
        value_floats[length:columns] = np.float32(0.0)
        for text in range(texts[group]):
            start = starts[group] + text * length
            mine = product[start : start + length]
            its = scales[start : start + length]
            for head in range(heads):
                _read_queries(mine, head, its, bias, line, query_bytes, query_scales, first)
                _read_keys(mine, head, its, bias, line, key_bytes, key_words, keys, key_scales)
                _read_values(mine, head, its, bias, value_floats, values, value_scales, value_steps)
                for row in range(0, length, ROWS):
                    rows = min(ROWS, length - row)
                    for column in range(0, columns, LANES):
                        _scores(query_words, row, keys, column, size // 4, first, scores, column)
                    _powers(scores, key_scales, places, query_scales[row:], floats, powers[:rows], shares)
                    for column in range(0, size, LANES):
                        _sums(power_words, 0, values, column, columns // 4, nothing, sums, column)
                    _write(sums, shares, value_scales, mixed[row : row + rows, head])
            for token in range(length):
                round_floats(lines[token], into, found, start + token)
