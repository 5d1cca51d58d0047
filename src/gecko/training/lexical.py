"""Listwise distillation from any ranking into the side of the queries, against stored passage vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch.nn.functional import kl_div, log_softmax, normalize, softmax

from gecko.compute.device import has_fast_bfloat16
from gecko.core.errors import TrainingError
from gecko.core.progress import Silent, Ui

BATCH = 32
WARMUP = 0.1  # of the steps
LONGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class Ranked:
    """Texts, each with C passages whose order is learned.

    Attributes:
        texts: n texts as the model reads them.
        candidates: (n, C) places of passages.
        targets: (n, C) float32; their softmax is what the model's softmax over the candidates becomes like.
    """

    texts: list[str]
    candidates: np.ndarray
    targets: np.ndarray


def learn_ranking(
    model: SentenceTransformer,
    vectors: np.ndarray,
    rows: Ranked,
    *,
    dims: Sequence[int],
    temperature: float,
    learning_rate: float,
    bf16: bool | None,
    seed: int,
    ui: Ui | None = None,
) -> None:
    """Train a model for one pass by :func:`divergence` of its softmax from that of the targets.

    Only texts are encoded. The passages stay the stored vectors, so a row costs one short text, however many candidates
    it has.

    Args:
        model: it is changed.
        vectors: float32 (passages, D), unit rows, of the same model before.
        rows: what is learned.
        dims: widths of the prefixes, each from 1 to D.
        temperature: of the model's softmax.
        learning_rate: of AdamW, at its highest: it rises over a tenth of the steps and falls to 0.
        bf16: whether to compute in bfloat16; none: where that is fast.
        seed: of the rows' order and of dropout. The caller's random state is left as it was.
        ui: where progress goes.

    Raises:
        TrainingError: the vectors have another width than the model, or the divergence is no number.
    """
    if vectors.shape[1] != (width := model.get_embedding_dimension()):
        raise TrainingError(
            f"the passages' vectors have {vectors.shape[1]} numbers and the model has {width}; embed anew"
        )
    targets = softmax(torch.from_numpy(rows.targets), dim=1)
    parts = np.array_split(np.random.default_rng(seed).permutation(len(rows.texts)), -(-len(rows.texts) // BATCH))
    warm = max(1, round(WARMUP * len(parts)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (len(parts) - step) / max(1, len(parts) - warm))
    )
    device = model.device
    halved = has_fast_bfloat16(device.type) if bf16 is None else bf16
    with torch.random.fork_rng(), (ui or Silent()).bar("learning BM25's order", len(parts), "steps") as advance:
        torch.manual_seed(seed)
        model.train()
        for step, part in enumerate(parts):
            inputs = batch_to_device(model.preprocess([rows.texts[at] for at in part]), device)
            with torch.autocast(device.type, torch.bfloat16, enabled=halved):
                asked = model(inputs)["sentence_embedding"].float()
            passages, shares = torch.from_numpy(vectors[rows.candidates[part]]), targets[torch.from_numpy(part)]
            loss = divergence(asked, passages.to(device), shares.to(device), dims, temperature)
            if not torch.isfinite(loss):
                raise TrainingError(f"the divergence is {loss.item()} after {step} steps; lower lexical.learning_rate")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), LONGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            advance(1, f"divergence {loss.item():.3f}")
        model.eval()


def divergence(
    queries: torch.Tensor, passages: torch.Tensor, shares: torch.Tensor, dims: Sequence[int], temperature: float
) -> torch.Tensor:
    """Mean KL divergence of softmax(cosine / ``temperature``) over the candidates from ``shares``, over rows and widths.

    ``queries`` (B, D) and ``passages`` (B, C, D) need not be unit vectors; ``shares`` (B, C) sum to 1.
    """
    found = []
    for dim in dims:
        q, p = normalize(queries[:, :dim], dim=-1), normalize(passages[..., :dim], dim=-1)
        logs = log_softmax(torch.einsum("bd,bcd->bc", q, p) / temperature, dim=1)
        found.append(kl_div(logs, shares, reduction="batchmean"))
    return torch.stack(found).mean()
