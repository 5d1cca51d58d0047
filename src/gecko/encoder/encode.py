"""Rendered texts to vectors, by the modules of sentence-transformers.

What is notable here:

* texts are tokenised once, sorted by length, and cut into batches by padded tokens, not by rows
* pooling and norm are in float32, whatever the transformer computes in
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gecko.core.progress import Advance, Silent, progress_bar
from gecko.encoder.forked import survives_fork
from gecko.encoder.vectors import Vectors

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

BATCH_TOKENS = 8192  # padded tokens a batch
WINDOW = 1024  # texts tokenised at once
_WAIT = 2.0  # seconds of work left before a progress bar is worth showing


def pooled_in_float32(model: "SentenceTransformer", dtype: "torch.dtype | None" = None) -> "SentenceTransformer":
    """A copy whose transformer computes in ``dtype`` (none: as it does); what follows it gets float32.

    Its buffers stay as they are: rotary frequencies in bfloat16 would turn every position by something else.
    """
    import torch

    twin = copy.deepcopy(model)
    first = twin[0]
    for weight in first.parameters() if dtype is not None else ():
        weight.data = weight.data.to(dtype)

    def widen(_module: Any, _inputs: Any, features: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value
            for name, value in features.items()
        }

    first.register_forward_hook(widen)
    return twin


@survives_fork
def encode_texts(
    model: "SentenceTransformer",
    texts: Sequence[str],
    dim: int,
    *,
    prompt: str = "",
    side: Literal["query", "document"] = "document",
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
) -> Vectors:
    """Embed rendered texts, as ``model.encode(..., normalize_embeddings=True)`` does, in batches of equal work.

    Texts longer than the model's window are cut, as the model cuts them.

    Args:
        model: the model; it is put into evaluation mode.
        texts: n texts, rendered.
        dim: dimensions to keep.
        prompt: put in front of each text by the model's own preprocessing.
        side: told to models that treat queries and documents differently.
        batch_tokens: padded tokens a batch, at most, except that a batch has at least one row.
        progress: show a bar when it takes long.

    Returns:
        float32 (n, dim), unit rows, in the order of ``texts``.
    """
    import torch
    from torch.nn.functional import normalize

    result = np.zeros((len(texts), dim), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))  # longest first: an honest time to go
    pending: list[tuple[list[int], torch.Tensor]] = []

    def flush() -> None:  # waits for the device, so it is called when the next window's text is ready
        for rows, vectors in pending:
            result[rows] = vectors.cpu().numpy()
        pending.clear()

    model.eval()
    with torch.inference_mode(), embedding_bar(texts, wanted=progress) as advance:
        for start in range(0, len(order), WINDOW):
            window = order[start : start + WINDOW]
            features = model.preprocess([texts[index] for index in window], prompt=prompt or None, task=side)
            flush()
            for positions, batch in _batches(features, len(window), batch_tokens, model.device):
                vectors = model(batch, task=side)["sentence_embedding"]  # (B, D)
                rows = [window[position] for position in positions]
                pending.append((rows, normalize(vectors[:, :dim].float(), p=2, dim=1)))  # (B, dim)
                advance(sum(len(texts[row]) for row in rows))
        flush()
    return result


def _batches(
    features: dict[str, Any], rows: int, batch_tokens: int, device: "torch.device"
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Cut the tokens of one window into batches of neighbours in length, with no more padding than each needs."""
    import torch

    mask = features.get("attention_mask")
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in features.items()}
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or len(mask) != rows:
        yield list(range(rows)), moved  # a model without padding (static embeddings, flattened inputs)
        return
    width = mask.shape[1]  # (rows, width)
    lengths = mask.sum(dim=1).tolist()
    left = bool((mask[:, -1] == 1).all()) and min(lengths) < width
    order = sorted(range(rows), key=lambda row: -lengths[row])
    for part in token_batches([lengths[row] for row in order], batch_tokens):
        chosen = order[part]
        longest = max(1, lengths[chosen[0]])
        index = torch.tensor(chosen, device=device)
        columns = slice(width - longest, width) if left else slice(0, longest)
        batch = dict(moved)
        for name, value in moved.items():
            if isinstance(value, torch.Tensor) and value.ndim >= 1 and len(value) == rows:
                cut = value.index_select(0, index)
                batch[name] = cut[:, columns] if value.ndim >= 2 and value.shape[1] == width else cut  # (B, longest)
        yield chosen, batch


def token_batches(tokens: Sequence[int], budget: int) -> Iterator[slice]:
    """Cut rows, longest first, into batches of at most ``budget`` padded tokens, and at least one row."""
    start = 0
    while start < len(tokens):
        stop = start + max(1, budget // max(1, tokens[start]))
        yield slice(start, stop)
        start = stop


def embedding_bar(texts: Sequence[str], *, wanted: bool) -> AbstractContextManager[Advance]:
    """A bar over the characters of texts, where one is wanted and more than two seconds are left."""
    return progress_bar("embedding", sum(map(len, texts)), "", wait=_WAIT) if wanted else Silent().bar("", None, "")
