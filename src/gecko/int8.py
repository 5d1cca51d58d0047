"""Products with 8-bit weights on the CPU, by oneDNN: what the teacher's layers and the encoder's are made of."""

import torch

from gecko.device import has_vnni

ZERO = 128  # oneDNN is fast for unsigned activations only, so a signed value v is kept as v + 128


def weight_levels() -> int:
    """The largest rounded weight: 127, or 63 without VNNI, where 2 x 255 x 127 would not fit the 16 bits of a sum."""
    return 127 if has_vnni() else 63


def row_step(rows: int) -> int:
    """What a number of rows is padded to a multiple of.

    oneDNN keeps a kernel, a quarter of a megabyte, for each number of rows that it meets, and a thousand of them.
    """
    if rows < 16:
        return 1
    return 16 if rows < 256 else 64


class PackedWeights:
    """Weights (out, in), rounded with a scale an output channel, in the layout that the kernel reads."""

    def __init__(self, weight: torch.Tensor) -> None:
        weight = weight.float()
        self._scale = weight.abs().amax(dim=1).clamp(min=1e-30) / weight_levels()
        self._bytes = torch.ops.onednn.qlinear_prepack((weight / self._scale[:, None]).round().to(torch.int8), None)
        self._zero = torch.zeros(len(weight), dtype=torch.int8)

    def multiply(self, rounded: torch.Tensor, kind: torch.dtype, step: float = 1.0) -> torch.Tensor:
        """The product with ``step * (byte - 128)``, before any scale of a row.

        Args:
            rounded: bytes (rows, in).
            kind: the float type of the result.
            step: what one unit of a byte stands for.

        Returns:
            (rows, out).
        """
        rows = len(rounded)
        rounded = torch.nn.functional.pad(rounded, (0, 0, 0, -rows % row_step(rows)))
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, step, ZERO, self._bytes, self._scale, self._zero, None, 1.0, 0, kind, "none", [], ""
        )
        return product[:rows]
