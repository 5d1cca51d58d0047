"""How a transformer computes the vectors of a batch of token rows."""

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np

from gecko.compute.device import FASTER, has_fast_bfloat16
from gecko.core.arguments import one_of
from gecko.core.errors import ConfigError
from gecko.encoder.encode import pooled_in_float32
from gecko.encoder.vectors import Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Precision = Literal["auto", "float32", "bfloat16", "int8"]

CPU_BATCH_TOKENS = 4096
GPU_BATCH_TOKENS = 32768
INT8_COSINE = 0.99  # all-MiniLM-L6-v2 keeps 0.997 and its ranking; a model that does not bear int8 falls far below
TIMED = 2048  # tokens: a tenth of a second on two cores
SAMPLE = (
    "how do I open a file for reading",
    "The museum opens at nine and closes at six, except on Mondays.",
    "title: Photosynthesis | text: Plants turn light, water and carbon dioxide into sugar and oxygen.",
    "def area(width: float, height: float) -> float:\n    return width * height",
    "She had not expected the letter, and when it came she left it unopened on the kitchen table for three days.",
    "2 cups flour, 1 cup sugar, 3 eggs; bake for 35 minutes at 180 °C",
    "task: fact checking | query: the river is longer than any other on the continent",
    "Error 404: the page was not found",
)


class Backend(Protocol):
    """Computes vectors. Must be safe to call from several threads.

    Attributes:
        precision: what it computes in.
        batch_tokens: padded tokens a batch at which it runs best.
    """

    precision: str
    batch_tokens: int

    def __call__(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Unit vectors, float32 (B, D), of B rows of tokens, special tokens among them."""


def is_plain(model: "SentenceTransformer") -> bool:
    """Whether a model reads one row of tokens a text and nothing else, with a tokenizer that runs without Python."""
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    first = model[0]
    return (
        isinstance(first, Transformer)
        and first.transformer_task == "feature-extraction"
        and set(first.modality_config) == {"text"}
        and not first.do_lower_case
        and not first.processing_kwargs
        and not (first.query_length or first.document_length or first.query_expansion)
        and getattr(model.tokenizer, "backend_tokenizer", None) is not None
        and all(module.include_prompt for module in model if isinstance(module, Pooling))
    )


def torch_backend(model: "SentenceTransformer", precision: Precision) -> Backend:
    """The backend of a plain model on the device where it is.

    ``auto`` is int8 for a BERT on a CPU that multiplies 8-bit integers, if that leaves the vectors of :data:`SAMPLE`
    where they are, and, where bfloat16 is fast, is faster than that still, which is tried; else bfloat16 where it is
    fast; else float32. Raises ConfigError: the model or the device has no such precision.
    """
    from gecko.encoder.packed import BertBackend, can_pack, int8_works

    one_of("precision", precision, get_args(Precision))
    device = model.device.type
    packs = device == "cpu" and can_pack(model)
    if precision == "auto":
        precision = "bfloat16" if device in ("cpu", "cuda") and has_fast_bfloat16(device) else "float32"
        if packs and int8_works():
            backend, rows = int8_backend(model), sample_rows(model)
            cosine = float((backend(rows) * TorchBackend(model, "float32")(rows)).sum(axis=1).min())
            if cosine >= INT8_COSINE and (
                precision == "float32" or is_faster(backend, BertBackend(model, precision), rows)
            ):
                return backend
    if precision == "bfloat16" and device == "cuda" and not has_fast_bfloat16("cuda"):
        raise ConfigError("precision 'bfloat16': this GPU has none; give float32")
    if precision == "int8":
        if not packs:
            raise ConfigError("precision 'int8' is for BERT models on a CPU; give bfloat16, or export with --int8")
        if not int8_works():
            raise ConfigError("precision 'int8': this processor does not multiply 8-bit integers; give float32")
        return int8_backend(model)
    return BertBackend(model, precision) if packs else TorchBackend(model, precision)


def int8_backend(model: "SentenceTransformer") -> Backend:
    """A BERT in 8 bits: compiled by numba where that is installed and can keep what it compiles, else by torch alone."""
    from gecko.encoder.packed import BertBackend

    try:
        from gecko.encoder.fused import FusedBackend

        backend = FusedBackend(model)
        backend([[0]])  # compiles
    except (ImportError, OSError):  # not installed, or told to compile nothing; a full disk
        return BertBackend(model, "int8")
    return backend


def sample_rows(model: "SentenceTransformer") -> list[list[int]]:
    """The tokens of :data:`SAMPLE`."""
    return [model.tokenizer(text, truncation=True)["input_ids"] for text in SAMPLE]


def is_faster(one: Backend, other: Backend, rows: Sequence[Sequence[int]]) -> bool:
    """Whether ``one`` takes clearly less time for some rows, repeated to :data:`TIMED` tokens; best of three, by turns."""
    rows = [*rows] * -(-TIMED // sum(map(len, rows)))
    best = [math.inf, math.inf]
    for _ in range(3):
        for place, backend in enumerate((one, other)):
            began = time.perf_counter()
            backend(rows)
            best[place] = min(best[place], time.perf_counter() - began)
    return best[1] > FASTER * best[0]


def saved_prompts(model: "SentenceTransformer") -> tuple[dict[str, str], str]:
    """A model's own prompts by name, without empty ones, and the one that is used where none is named."""
    prompts = {name: text for name, text in model.prompts.items() if text}
    return prompts, prompts.get(model.default_prompt_name or "", "")


class TorchBackend:
    """Any plain model, run by sentence-transformers' own modules on padded batches; pooling is in float32."""

    def __init__(self, model: "SentenceTransformer", precision: str) -> None:
        import torch

        self.precision = precision
        self.batch_tokens = CPU_BATCH_TOKENS if model.device.type == "cpu" else GPU_BATCH_TOKENS
        self._model = pooled_in_float32(model, torch.bfloat16 if precision == "bfloat16" else None).eval()
        self._padding = model.tokenizer.pad_token_id or 0

    def __call__(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """See :class:`Backend`."""
        import torch
        from torch.nn.functional import normalize

        device = self._model.device
        ids, mask = pad(rows, self._padding)
        features: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids).to(device),  # (B, T)
            "attention_mask": torch.from_numpy(mask).to(device),
            "modality": "text",
        }
        with torch.inference_mode():
            for module in self._model:
                features = module(features)
            vectors: torch.Tensor = normalize(features["sentence_embedding"].float(), dim=1)  # (B, D)
        return vectors.cpu().numpy()


def pad(rows: Sequence[Sequence[int]], padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Token rows as int64 (B, T), filled up on the right, and their mask."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
    ids = np.full(mask.shape, padding, dtype=np.int64)
    ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return ids, mask.astype(np.int64)
