"""What this machine computes with: detected, never assumed."""

import platform
import time
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GPU_TEXTS = 512  # written at a time: a step is many small kernels, whose launches take longer than they do
FASTER = 1.25  # what a precision has to be for its lost digits: bfloat16 is 2 to 4 times as fast as float32, or half


def best_device() -> str:
    """``cuda``, ``mps`` or ``cpu``: the fastest that is here."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def device_memory(device: str) -> int:
    """Bytes of memory: a GPU's own, else the machine's."""
    import psutil
    import torch

    if device == "cuda":
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return int(psutil.virtual_memory().total)


def texts_together(llm: str) -> int:
    """How many texts an LLM SPEC is best given to write at a time: a GPU reads its weights as fast for many as for few."""
    elsewhere = llm == "fake" or llm.startswith("openai:")
    return GPU_TEXTS if not elsewhere and best_device() == "cuda" else 32


def has_fast_bfloat16(device: str) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32.

    Without instructions of their own they never are. With them it depends: an AMD core sums twice as many products a cycle
    as in float32, an Intel core without its matrix unit (AMX), as in many virtual machines, half as many. So it is tried.
    """
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu" and platform.machine().lower() in ("x86_64", "amd64"):
        # The library's own question, mkldnn's, is answered with yes where bfloat16 is only emulated.
        return (rounds_to_bfloat16() or _cpu_has("_is_amx_tile_supported")) and _bfloat16_speed() > FASTER
    if device == "cpu":
        probe = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        return probe is not None and bool(probe())
    return False


def rounds_to_bfloat16() -> bool:
    """Whether the CPU has an instruction for it; products in bfloat16 may still be slow."""
    return _cpu_has("_is_avx512_bf16_supported")


def _cpu_has(*probes: str) -> bool:
    """Whether one of some probes of ``torch.cpu`` says yes; what there is depends on torch's version."""
    import torch

    return any(bool(getattr(torch.cpu, name)()) for name in probes if hasattr(torch.cpu, name))


@cache
def _bfloat16_speed() -> float:
    """Products in bfloat16 over those in float32 in the same time, best of eight each; a few hundredths of a second.

    One thread's own processor time: on a machine with other work, several threads wait for the slowest, and wall time
    says anything.
    """
    import torch

    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            pairs = {dtype: (torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)) for dtype in best}
            for _ in range(8):
                for dtype, (states, weight) in pairs.items():
                    began = time.thread_time()
                    torch.nn.functional.linear(states, weight)
                    best[dtype] = min(best[dtype], time.thread_time() - began)
    finally:
        torch.set_num_threads(threads)
    return best[torch.float32] / best[torch.bfloat16]


def fast_dtype(device: str) -> "torch.dtype":
    """The data type in which a large model is read: bfloat16 where it is fast, else float32."""
    import torch

    return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32


def has_int8() -> bool:
    """Whether this torch can multiply 8-bit matrices on the CPU at all."""
    import torch

    return bool(torch._C._has_mkldnn) and platform.machine().lower() in ("x86_64", "amd64")


def has_vnni() -> bool:
    """Whether the CPU sums products of 8-bit integers in 32 bits; without VNNI, pairs of them are summed in 16."""
    return _cpu_has("_is_vnni_supported", "_is_avx512_vnni_supported")


def has_fast_int8() -> bool:
    """Whether 8-bit products are faster than float32 ones: with VNNI four times, with AVX2 alone twice or more."""
    return has_int8() and (has_vnni() or _cpu_has("_is_avx2_supported"))
