"""What this machine computes with: detected, never assumed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def best_device() -> str:
    """``cuda``, ``mps`` or ``cpu``: the fastest that is here."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def has_fast_bfloat16(device: str) -> bool:
    """Whether matrix products in bfloat16 have instructions of their own; elsewhere they are slower than float32."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "amx_bf16_tile", "bf16"))
    return False


def fast_dtype(device: str) -> "torch.dtype":
    """The data type in which a large model is read: bfloat16 where it is fast, else float32."""
    import torch

    return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
