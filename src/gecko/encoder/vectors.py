"""What is done to unit vectors after the model: shorter, or fewer bits."""

from typing import Any, Literal, assert_never

import numpy as np
import numpy.typing as npt

from gecko.errors import ConfigError

Output = Literal["float32", "int8", "binary"]
Vectors = npt.NDArray[np.float32]
Packed = npt.NDArray[Any]  # float32 (n, dim), int8 (n, dim) or uint8 (n, dim / 8)


def shorten(vectors: Vectors, dim: int) -> Vectors:
    """The first ``dim`` dimensions of unit vectors, again of unit length; (n, D) to (n, dim)."""
    if dim >= vectors.shape[1]:
        return vectors
    cut = vectors[:, :dim]
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    result: Vectors = np.divide(cut, lengths, out=np.zeros_like(cut), where=lengths > 0)
    return result


def encode_output(vectors: Vectors, output: Output) -> Packed:
    """Unit vectors in the form of ``output``.

    Args:
        vectors: float32 (n, dim).
        output: ``float32``: as they are. ``int8``: each row scaled so that its largest entry is 127, which keeps its
            direction; compare by cosine. ``binary``: a bit a dimension, 1 where positive, the first dimension the
            highest bit of the first byte, as numpy packs; compare by Hamming distance.

    Returns:
        float32 or int8 (n, dim), or uint8 (n, dim / 8).

    Raises:
        ConfigError: binary, and ``dim`` is no multiple of 8.
    """
    match output:
        case "float32":
            return vectors
        case "int8":
            largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
            return np.rint(vectors * (127 / np.where(largest > 0, largest, 1))).astype(np.int8)
        case "binary":
            if vectors.shape[1] % 8:
                raise ConfigError(f"output 'binary' with {vectors.shape[1]} dimensions: give a multiple of 8")
            return np.packbits(vectors > 0, axis=1)
        case _:
            assert_never(output)
