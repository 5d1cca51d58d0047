import copy
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import gelu, layer_norm, relu

from gecko.compute.device import rounds_to_bfloat16
from gecko.encoder import backend as backends
from gecko.encoder.backend import TorchBackend, int8_backend
from gecko.encoder.packed import BertBackend, int8_works

pytest.importorskip("numba")

from numba import njit

import gecko
from gecko.compute import attention, kernels
from gecko.encoder import fused
from gecko.encoder.fused import FusedBackend, cut

needs_vnni = pytest.mark.skipif(
    not attention.works(), reason="this processor does not multiply 64 pairs of bytes at once"
)
needs_int8 = pytest.mark.skipif(not int8_works(), reason="this processor does not multiply 8-bit integers")


def random_rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = np.maximum(np.abs(values).max(1), 1e-30) / 127
    return values / scale[:, None] + 128, scale


def assert_bytes(values: np.ndarray, found: np.ndarray, scales: np.ndarray, off: float = 1e-5) -> None:
    exact, scale = rounded(values)
    np.testing.assert_allclose(scales[: len(values)], scale, rtol=off)
    # half a step, and the last digits of floats
    assert np.abs(found[: len(values)] - exact).max() <= 0.5 + 127 * off + 1e-2


def test_rows_are_rounded() -> None:
    values = random_rows(20, 70) * np.logspace(-20, 20, 20, dtype=np.float32)[:, None]
    values[3] = 0
    found, scales = np.zeros((24, 70), np.uint8), np.zeros(24, np.float32)
    kernels.round_rows(values, found, scales)
    assert_bytes(values, found, scales)
    assert (found[3] == 128).all()
    assert found[:20].min() == 1
    assert found.max() == 255
    assert not found[20:].any()


@pytest.mark.parametrize(
    ("act", "function"),
    [
        ("gelu", gelu),
        ("gelu_new", lambda x: gelu(x, approximate="tanh")),
        ("gelu_pytorch_tanh", lambda x: gelu(x, approximate="tanh")),
        ("relu", relu),
    ],
)
def test_activations_are_those_of_torch(act: str, function) -> None:
    product = np.linspace(-12, 12, 30 * 67, dtype=np.float32).reshape(67, 30).T.copy()  # all sizes in each row
    scales, bias = np.abs(random_rows(32)) + 0.1, random_rows(67, seed=1)
    expected = function(torch.from_numpy(product * scales[:30, None] + bias).double()).float().numpy()
    found, into = np.zeros((30, 67), np.uint8), np.zeros(30, np.float32)
    kernels.activate(product, scales, bias, kernels.ACTIVATIONS[act], found, into)
    assert_bytes(expected, found, into, off=1e-4)


def test_products_in_bfloat16() -> None:
    product, states = torch.from_numpy(random_rows(9, 64)).bfloat16(), random_rows(9, 64, seed=1)
    bits, widened = product.view(torch.uint16).numpy(), product.float().numpy()
    one = np.ones(64, np.float32)
    for kernel in (
        lambda values, into, scales: kernels.activate(values, one, one, 0, into, scales),
        lambda values, into, scales: kernels.add_norm(values, one, one, states.copy(), one, one, 1e-6, into, scales),
    ):
        results = []
        for values in (bits, widened):
            into, scales = np.zeros((9, 64), np.uint8), np.zeros(9, np.float32)
            kernel(values, into, scales)
            results.append((into, scales))
        (bytes_, scales), (others, other_scales) = results
        assert np.abs(bytes_.astype(int) - others).max() <= 1  # the last digits of floats
        np.testing.assert_allclose(scales, other_scales, rtol=1e-6)
    heads = [np.zeros((3, 3, 2, 3, 8), np.float32) for _ in range(2)]
    for values, into in zip((bits, widened), heads, strict=True):
        kernels.split_heads(np.ascontiguousarray(values[:, :48]), one, one, into)
    np.testing.assert_array_equal(*heads)


def test_widening_is_the_same_without_the_compiler() -> None:
    values = torch.from_numpy(random_rows(50)).bfloat16()
    found = [kernels.wide(bits) for bits in values.view(torch.uint16).numpy()]
    np.testing.assert_array_equal(np.array(found, np.float32), values.float().numpy())
    assert kernels.wide(np.float32(1.5)) == 1.5


def test_sum_and_norm_are_those_of_torch() -> None:
    product, states = random_rows(9, 65), random_rows(9, 65, seed=1) * 3
    scales, bias, gain, shift = (random_rows(size, seed=2 + size) for size in (9, 65, 65, 65))
    total = torch.from_numpy(states + product * scales[:, None] + bias).double()
    expected = layer_norm(total, (65,), torch.from_numpy(gain).double(), torch.from_numpy(shift).double(), 1e-3)
    found = np.zeros((9, 65), np.uint8)
    kernels.add_norm(product, scales, bias, states, gain, shift, 1e-3, found, scales)  # the scales in the same place
    np.testing.assert_allclose(states, expected.numpy(), atol=2e-6)
    assert_bytes(states, found, scales)


@pytest.mark.parametrize("length", [1, 3, 33])
def test_attention_is_that_of_torch(length: int) -> None:
    texts, heads, size = 4, 3, 8
    tokens, width = texts * length, heads * size
    product, bias = random_rows(tokens + 2, 3 * width) * 3, random_rows(3 * width, seed=1)
    flow = fused._Rows(tokens + 2, width)
    flow.scales[:] = np.abs(random_rows(tokens + 2, seed=2))
    product[:, :width] -= np.where(np.arange(width) < size, 20, 0)  # one head whose scores are all far below zero
    product[:, width : width + size] = np.abs(product[:, width : width + size]) + 3
    states = product * flow.scales[:, None] + bias
    query, key, value = torch.from_numpy(states[1:-1]).view(texts, length, 3, heads, size).permute(2, 0, 3, 1, 4)
    expected = torch.nn.functional.scaled_dot_product_attention(query * np.log(2), key, value, scale=1.0)
    groups = [(1, texts, length)]
    fused._FloatAttention(groups, heads, width)(product, bias, flow)
    assert_bytes(expected.transpose(1, 2).reshape(tokens, width).numpy(), flow.bytes[1:], flow.scales[1:], off=2e-4)


@needs_vnni
@pytest.mark.parametrize("function", [attention._scores, attention._sums])
def test_words_are_multiplied_exactly(function) -> None:
    multiply = njit(lambda *arguments: function(*arguments))
    left, right = (np.random.default_rng(seed).integers(0, 256, (40, 160)).astype(np.uint8) for seed in range(2))
    left[8], right[:, :80] = 255, 0x80
    first, into = np.arange(40, dtype=np.int32) - 20, np.zeros((8, 40), np.int32)
    multiply(left.view(np.int32), 8, right.view(np.int32), 16, 7, first, into, 24)
    unsigned, signed = np.uint8, np.int8
    kinds = (unsigned, signed) if function is attention._sums else (signed, unsigned)
    ours, theirs = left.view(kinds[0])[8:16, :28].astype(np.int64), right.view(kinds[1])[:7].astype(np.int64)
    columns = theirs.reshape(7, 40, 4)[:, 16:32].transpose(0, 2, 1).reshape(28, 16)
    np.testing.assert_array_equal(into[:, 24:], ours @ columns + first[8:16, None])
    assert not into[:, :24].any()


def in_bytes(product: np.ndarray, scales: np.ndarray, bias: np.ndarray, groups: list[tuple[int, int, int]]):
    width = product[0, 0].size
    flow = fused._Rows(len(product), width)
    flow.scales[:] = scales
    heads = product.shape[2]
    fused._ByteAttention(groups, heads, width)(product.reshape(len(product), -1), bias.reshape(-1), flow)
    return flow


@needs_vnni
@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_attention_in_bytes_is_that_of_torch(size: int, kind: torch.dtype) -> None:
    heads = 3
    groups = [(0, 1, 300), (300, 2, 33), (366, 3, 16), (414, 5, 7), (449, 4, 1)]
    values = random_rows(460, 3, heads, size)
    values[:, 0] *= 1.5 / np.sqrt(size)
    values[:, 0, 0] -= 1  # one head whose scores are all below zero
    values[:, 1, 0] = np.abs(values[:, 1, 0]) + 1
    scales, bias = np.abs(random_rows(460, seed=1)) + 0.5, random_rows(3, heads, size, seed=2) * 0.1
    product = torch.from_numpy(values).to(kind)
    states = (product.float() * torch.from_numpy(scales)[:, None, None, None] + torch.from_numpy(bias)).numpy()
    given = product.numpy() if kind == torch.float32 else product.view(torch.uint16).numpy()
    flow = in_bytes(given, scales, bias, groups)
    got = (flow.bytes.astype(np.float32) - 128) * flow.scales[:, None]
    offs = []
    for start, texts, length in groups:
        for first in range(start, start + texts * length, length):
            part = slice(first, first + length)
            query, key, value = states[part].transpose(1, 2, 0, 3)  # (heads, T, size) each
            expected = attended(query, key, value).transpose(1, 0, 2).reshape(length, -1)
            off = np.abs(got[part] - expected).max(1) / np.abs(expected).max(1)
            # half a step of the result; now and then one of a query or a power, too
            assert off.max() < 0.5 / 127 + 0.01
            offs.append(off)
            three = [torch.from_numpy(these) for these in (query, key, value)]
            exact = torch.nn.functional.scaled_dot_product_attention(*three, scale=np.log(2))
            assert np.abs(expected - exact.transpose(0, 1).reshape(length, -1).numpy()).max() < 0.1 * exact.abs().max()
    assert np.concatenate(offs).mean() < 0.5 / 127 + 0.0005


def attended(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The same, with whole numbers in place of bytes; (heads, T, size) each."""
    query, key, value = (part.astype(np.float64) for part in (query, key, value))
    steps = [np.abs(part).max(axis, keepdims=True) / 127 for part, axis in ((query, 2), (key, 2), (value, 1))]
    query, key, value = (np.floor(part / step + 0.5) for part, step in zip((query, key, value), steps, strict=True))
    scores = query @ key.transpose(0, 2, 1) * steps[0] * steps[1].transpose(0, 2, 1)
    powers = np.floor(255 * 2 ** (scores - scores.max(2, keepdims=True)) + 0.5)
    return powers @ value * steps[2] / powers.sum(2, keepdims=True)


@needs_vnni
@pytest.mark.parametrize("size", [0, 1e-25, 1e6])
def test_attention_in_bytes_of_queries_of_any_size(size: float) -> None:
    values, one = random_rows(5, 3, 1, 16), np.ones(5, np.float32)
    values[:, 0] = size * np.abs(values[:, 0])
    values[:, 1, 0, 0] += 5 * np.arange(5)  # the last key is the largest
    values[:, 1, 0, 1:] = 0
    flow = in_bytes(values, one, np.zeros((3, 1, 16), np.float32), [(0, 1, 5)])
    got = (flow.bytes.astype(np.float32) - 128) * flow.scales[:, None]
    expected = values[:, 2, 0].mean(0) if size < 1 else values[4, 2, 0]
    assert np.abs(got - expected).max() < 0.02 * np.abs(values[:, 2]).max()


@needs_vnni
def test_attention_in_bytes_of_a_text_does_not_depend_on_others() -> None:
    values, bias = random_rows(120, 3, 2, 16), random_rows(3, 2, 16, seed=2)
    scales = np.abs(random_rows(120, seed=1)) + 0.1
    groups = [(0, 1, 70), (70, 2, 21), (112, 1, 8)]
    together = in_bytes(values, scales, bias, groups)
    backwards = in_bytes(values, scales, bias, groups[::-1])
    np.testing.assert_array_equal(backwards.bytes, together.bytes)
    np.testing.assert_array_equal(backwards.scales, together.scales)
    for start, length in ((0, 70), (70, 21), (91, 21), (112, 8)):
        part = slice(start, start + length)
        alone = in_bytes(values[part], scales[part], bias, [(0, 1, length)])
        np.testing.assert_array_equal(alone.bytes, together.bytes[part])
        np.testing.assert_array_equal(alone.scales, together.scales[part])


def test_a_kernel_is_compiled_anew_when_a_part_of_it_in_another_file_changes(tmp_path: Path) -> None:
    shutil.copytree(
        Path(gecko.__file__).parent, tmp_path / "gecko", ignore=shutil.ignore_patterns("__pycache__", "data")
    )
    parts = tmp_path / "gecko/compute/kernels.py"
    code = """
import numpy as np
from gecko.compute import kernels

@kernels.kernel
def write(line, into, scales):
    kernels.round_line(line, kernels.larger(np.int32(0), line[0]), into, scales, 0)

scales = np.zeros(1, np.float32)
write(np.ones(1, np.float32), np.zeros((1, 1), np.uint8), scales)
print(round(127 * float(scales[0]), 3), len(write.stats.cache_hits))
"""
    (tmp_path / "run.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def run() -> str:
        command = [sys.executable, str(tmp_path / "run.py")]
        return subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout

    assert [run(), run()] == ["1.0 0\n", "1.0 1\n"]
    parts.write_text(parts.read_text().replace("peak * np.float32(1 / 127)", "peak * np.float32(2 / 127)"))
    assert run() == "2.0 0\n"


@pytest.mark.parametrize("setting", [{"NUMBA_CPU_NAME": "generic"}, {"NUMBA_CPU_FEATURES": "+avx2"}])
def test_attention_in_bytes_only_for_a_processor_that_has_it(setting: dict[str, str]) -> None:
    code = "from gecko.compute import attention; print(attention.works())"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, **setting}, capture_output=True, text=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize("in_bytes", [False, pytest.param(True, marks=needs_vnni)])
@needs_int8
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
def test_equals_the_plain_form(
    model: SentenceTransformer, rows: list[list[int]], act: str, in_bytes: bool, kept: torch.dtype
) -> None:
    if kept == torch.bfloat16 and not rounds_to_bfloat16():
        pytest.skip("this processor does not round to bfloat16")
    other = copy.deepcopy(model)
    other.transformers_model.config.hidden_act = act
    plain, quick = BertBackend(other, "int8", torch.float32), FusedBackend(other)
    quick._kept, quick._attends_in_bytes = kept, in_bytes
    expected, got = plain(rows), quick(rows)
    assert quick.precision == "int8"
    # a byte that was just below a half is now above it
    assert (got * expected).sum(axis=1).min() > (0.998 if in_bytes else 0.9995)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    if act == "gelu":
        assert (got * TorchBackend(model, "float32")(rows)).sum(axis=1).min() > 0.99


@needs_int8
@pytest.mark.parametrize("threads", [1, 3])
def test_pieces_on_threads(
    model: SentenceTransformer, rows: list[list[int]], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "PIECE_TOKENS", 40)
    monkeypatch.setattr(fused, "ALONE", 8)
    monkeypatch.setattr(fused, "SCORES", 200)  # attention in several steps
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        backend = FusedBackend(model)
        got = np.concatenate([backend(rows), backend(rows[::-1])[::-1], [backend([row])[0] for row in rows]])
        assert torch.get_num_threads() == threads
        seen: list[int] = []
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert seen == [threads]
    finally:
        torch.set_num_threads(usual)
    monkeypatch.undo()
    expected = np.concatenate([FusedBackend(model)(rows)] * 3)
    assert (got * expected).sum(axis=1).min() > 0.9999


@needs_int8
def test_a_caller_keeps_its_threads_and_so_do_others(model: SentenceTransformer, rows: list[list[int]]) -> None:
    usual, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        backend = FusedBackend(model)

        def call() -> None:
            torch.get_num_threads()
            torch.set_num_threads(3)
            backend(rows * 20)
            seen.append(torch.get_num_threads())

        def look() -> None:
            seen.append(torch.get_num_threads())

        for target in (call, look):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        assert backend._pool is not None
        assert seen == [3, 3]  # a thread to come has the number that the caller set last
        assert torch.get_num_threads() == 2
        assert set(backend._pool.map(lambda _: torch.get_num_threads(), range(4))) == {1}
    finally:
        torch.set_num_threads(usual)


@needs_int8
def test_many_callers(model: SentenceTransformer, rows: list[list[int]]) -> None:
    backend = FusedBackend(model)
    batch = rows * 20
    expected = backend(batch)
    found: list[np.ndarray] = []
    callers = [threading.Thread(target=lambda: found.append(backend(batch))) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 6
    for vectors in found:
        np.testing.assert_array_equal(vectors, expected)


def test_cut() -> None:
    rows = [[0] * length for length in (5, 290, 40, 290, 80, 290, 20)]
    assert cut(rows, 1) == [[1, 3, 5, 4, 2, 6, 0]]
    assert cut(rows, 3) == [[1], [3], [5, 4, 2, 6, 0]]
    for threads in (1, 2, 5):
        many = cut(rows * 9, threads)
        assert sorted(row for piece in many for row in piece) == list(range(63))
        assert len(many) % threads == 0
        sizes = [sum(len((rows * 9)[row]) for row in piece) for piece in many]
        assert max(sizes) <= fused.PIECE_TOKENS + 290
    assert cut([[0] * 20], 4) == [[0]]  # a query is not worth a second thread


@pytest.mark.slow
@needs_int8
def test_where_numba_is_told_to_compile_nothing(tiny_model: Path) -> None:
    code = (
        f"import gecko; print(type(gecko.load({str(tiny_model)!r}, precision='int8')._sides['query'].backend).__name__)"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
    assert done.stdout == "BertBackend\n"


@needs_int8
def test_without_numba(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(int8_backend(model), FusedBackend)
    for name in [name for name in sys.modules if name in ("gecko.compute.kernels", "gecko.encoder.fused")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delattr(backends.__package__ + ".fused")
    monkeypatch.delattr("gecko.compute.kernels")
    plain = int8_backend(model)
    assert type(plain) is BertBackend
    assert plain.precision == "int8"
