"""What is done to unit vectors after the model: shorter, or fewer bits."""

from collections.abc import Sequence
from typing import Any, Literal, assert_never, get_args

import numpy as np
import numpy.typing as npt

from gecko.core.arguments import one_of
from gecko.core.errors import ConfigError, NonFiniteError

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
    """Unit vectors, float32 (n, dim), in the form of ``output``.

    ``float32``: as they are. ``int8`` (n, dim): each row scaled so that its largest entry is 127, which keeps its
    direction; compare by cosine. ``binary``, uint8 (n, dim / 8): a bit a dimension, 1 where positive, the first dimension
    the highest bit of the first byte, as numpy packs; compare by Hamming distance.

    Raises ConfigError: ``output`` is none of these; or binary, and ``dim`` is no multiple of 8.
    """
    one_of("output", output, get_args(Output))
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


def refuse_not_finite(vectors: Vectors, texts: Sequence[str], places: Sequence[int], spec: str) -> None:
    """Refuse unit vectors (n, dim) that hold NaN or infinity, which compare as nothing and cannot be written as JSON.

    ``places`` are those of the ``texts`` in the call, from 0. Raises NonFiniteError: a vector does; of several, the one
    whose place is first.
    """
    if np.isfinite(vectors.sum()):
        return
    place, row = min((places[row], row) for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist())
    raise NonFiniteError(not_finite(f"text {place + 1}", texts[row], spec), place)


def not_finite(name: str, text: str, spec: str) -> str:
    """What to say of a text whose vector is not finite."""
    return (
        f"{name} ({text[:60]!r}): its vector holds NaN or infinity; leave the text out, give precision float32 if it was "
        f"another, or mend the model {spec!r}, whose weights may be damaged"
    )
