"""Products with 8-bit weights on the CPU, by oneDNN: what the teacher's layers and the encoder's are made of."""

import torch

from gecko.compute.device import has_vnni

ZERO = 128  # oneDNN is fast for unsigned activations only, so a signed value v is kept as v + 128
ROUNDED = 96 * 1024  # values rounded together: their float32 copy stays in the cache of a core


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


def padded(rows: int) -> int:
    """How many rows are multiplied in the place of ``rows``."""
    return rows + -rows % row_step(rows)


def round_rows(source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to ``scale * (byte - 128)``, bytes in 1 to 255; a row's bytes do not depend on the rows beside it.

    Rows (rows, width) of any float type give bytes of that shape and scales (rows, 1) in their type.
    """
    rounded = torch.empty(source.shape, dtype=torch.int8)  # floats are cast to unsigned bytes far more slowly
    scale = source.new_empty((len(source), 1))
    together = max(1, ROUNDED // source.shape[1])
    for start in range(0, len(source), together):
        part = slice(start, start + together)
        values = source[part].float()
        peak = torch.maximum(values.amax(dim=-1, keepdim=True), -values.amin(dim=-1, keepdim=True))
        # Kept in the type that they will be multiplied in, so that both directions use the same number. That may be a
        # little less than peak / 127; 127.4 still fits a byte.
        scale[part] = peak.clamp(min=1e-30) / 127
        rounded[part] = (values * scale[part].float().reciprocal()).round_()
    return rounded.view(torch.uint8).bitwise_xor_(ZERO), scale  # v + 128, without a carry


class PackedWeights:
    """Weights (out, in), rounded with a scale an output channel, in the layout that the kernel reads."""

    def __init__(self, weight: torch.Tensor) -> None:
        weight = weight.float()
        self.scale = weight.abs().amax(dim=1).clamp(min=1e-30) / weight_levels()
        self._bytes = torch.ops.onednn.qlinear_prepack((weight / self.scale[:, None]).round().to(torch.int8), None)
        self._zero = torch.zeros(len(weight), dtype=torch.int8)

    def multiply(self, rounded: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
        """The product (rows, out) of type ``kind`` with ``byte - 128``, before the scale of a row.

        ``rounded`` are bytes (rows, in), as :func:`round_rows` gives them.
        """
        rows = len(rounded)
        if missing := padded(rows) - rows:
            rounded = torch.nn.functional.pad(rounded, (0, 0, 0, missing))
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, ZERO, self._bytes, self.scale, self._zero, None, 1.0, 0, kind, "none", [], ""
        )
        return product[:rows]
