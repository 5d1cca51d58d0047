"""The objective of the paper: Eq. 3, its special case Eq. 2, and the switches that later work added.

Notable here:

- one function computes one row's softmax over four blocks of candidates: the positives of the batch, the other
  queries (same-tower negatives), the row's own hard negatives, and, if asked for, the other rows' hard negatives;
- what must not be a negative is removed from a block by a mask; the row's own positive is never removed;
- everything a row is besides its texts (ids, group, weight) travels in one integer tensor;
- the loss sees embeddings only, so that however they came about (one pass, cached, gathered) it is the same code.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gecko.config import LossConfig
from gecko.errors import TrainingError

ABSENT = -1
FIXED_COLUMNS = 4


@dataclass(frozen=True, slots=True)
class RowIds:
    """Who is who in a batch of B rows with up to K hard negatives.

    Attributes:
        query: (B,) integers; equal texts have equal numbers, on whichever side they stand.
        positive: (B,) integers, from the same numbers.
        group: (B,) integers; ``ABSENT``: the row belongs to no group.
        negatives: (B, K) integers, from the same numbers as ``positive``; ``ABSENT``: the row has fewer than K.
        weight: (B,) floats, at least 0.
    """

    query: Tensor
    positive: Tensor
    group: Tensor
    negatives: Tensor
    weight: Tensor

    @classmethod
    def from_labels(cls, labels: Tensor) -> "RowIds":
        """Read the (B, 4 + K) tensor that :func:`gecko.training.rows.to_dataset` writes into the column ``label``.

        Its columns: query, positive, group, weight (the bits of a float32), one per hard negative. The weight travels
        as bits because a tensor has one type, and a float would round the ids.

        Raises:
            TrainingError: the tensor has another shape.
        """
        if labels.ndim != 2 or labels.shape[1] < FIXED_COLUMNS:
            raise TrainingError(
                f"labels have the shape {tuple(labels.shape)}; needed is (rows, {FIXED_COLUMNS} + hard negatives), "
                "as gecko.training.to_dataset makes them"
            )
        weight = labels[:, 3].to(torch.int32).view(torch.float32)
        return cls(labels[:, 0], labels[:, 1], labels[:, 2], labels[:, FIXED_COLUMNS:], weight)

    def related(self) -> Tensor:
        """(B, B) bool: rows that share a text, on either side, or a group; they are not each other's negatives."""
        q, p, g = self.query, self.positive, self.group
        same_text = (q[:, None] == q) | (p[:, None] == p) | (q[:, None] == p) | (p[:, None] == q)
        return same_text | ((g[:, None] == g) & (g != ABSENT))


def gecko_loss(queries: Tensor, positives: Tensor, negatives: Tensor, ids: RowIds, config: LossConfig) -> Tensor:
    """Eq. 3 of the paper for one batch, at one width.

    ::

        L = 1/B Σ_i −w_i log( e^{s(q_i,p_i⁺)/τ} / Z_i )
        Z_i = Σ_j ( e^{s(q_i,p_j⁺)/τ} + 1[j≠i] e^{s(q_i,q_j)/τ} ) + e^{s(q_i,p_i⁻)/τ}

    with s the cosine and w_i = 1 in the paper. Eq. 2 is the same with ``same_tower`` off and no hard negatives. A row
    with several hard negatives has one last term for each.

    Args:
        queries: (B, D) embeddings; they need not be unit vectors.
        positives: (B, D) embeddings; row i belongs to query i.
        negatives: (B, K, D) hard negatives; K may be 0. Where ``ids.negatives`` says ``ABSENT`` they count for nothing.
        ids: who is who.
        config: temperature and switches. ``mask_groups`` removes, from row i's negatives, what belongs to a related row
            (:meth:`RowIds.related`) and hard negatives that are i's own positive. ``false_negative_margin`` m
            removes texts of *other* rows with s > s(q_i, p_i⁺) + m; a row's own hard negatives were chosen on purpose
            and stay. ``hardness`` α multiplies the own hard negatives' terms by exp(α · s(q_i, p_i⁻)), the exponent
            taken as a constant (EmbeddingGemma).

    Returns:
        A scalar.
    """
    q = normalize(queries, dim=-1)  # (B, D)
    p = normalize(positives, dim=-1)  # (B, D)
    n = normalize(negatives, dim=-1)  # (B, K, D)
    rows, hard = ids.negatives.shape
    itself = torch.eye(rows, dtype=torch.bool, device=q.device)  # (B, B)
    related = ids.related() if config.mask_groups else itself  # (B, B)
    absent = ids.negatives == ABSENT  # (B, K)
    positive = (q * p).sum(dim=-1)  # (B,) s(q_i, p_i)

    def from_others(scores: Tensor, removed: Tensor) -> Tensor:
        """Logits of other rows' texts: (B, M) cosines and which of them to leave out."""
        if config.false_negative_margin is not None:
            removed = removed | (scores > positive[:, None] + config.false_negative_margin)
        return (scores / config.temperature).masked_fill(removed, -torch.inf)

    logits = [positive[:, None] / config.temperature]  # (B, 1); the other positives follow, without the diagonal
    logits.append(from_others(q @ p.T, related | itself))  # (B, B)
    if config.same_tower:
        logits.append(from_others(q @ q.T, related | itself))  # (B, B)
    if config.hard_negatives != "none" and hard > 0:
        own = torch.einsum("bd,bkd->bk", q, n)  # (B, K) s(q_i, p_i⁻)
        removed = absent
        if config.mask_groups:
            removed = removed | (ids.negatives == ids.positive[:, None])
        own_logits = own / config.temperature + config.hardness * own.detach()
        logits.append(own_logits.masked_fill(removed, -torch.inf))
    match config.hard_negatives:
        case "all":
            removed = absent.flatten() | itself.repeat_interleave(hard, dim=1)  # (B, B·K)
            if config.mask_groups:
                removed = removed | (ids.negatives.flatten() == ids.positive[:, None])
            logits.append(from_others(q @ n.flatten(0, 1).T, removed))  # (B, B·K)
        case "own" | "none":
            pass
        case _:
            assert_never(config.hard_negatives)
    log_sum = torch.logsumexp(torch.cat(logits, dim=1), dim=1)  # (B,)
    per_row = log_sum - positive / config.temperature  # (B,) −log of the fraction
    return (ids.weight.to(per_row.dtype) * per_row).mean()


def matryoshka_loss(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    ids: RowIds,
    config: LossConfig,
    dims: Sequence[int],
    weights: Sequence[float] = (),
) -> Tensor:
    """:func:`gecko_loss` on the first d numbers of each embedding, for each d in ``dims``, averaged (MRL, Section 3.3).

    Args:
        queries: (B, D), as the others are for :func:`gecko_loss`, which makes each prefix a unit vector again.
        positives: (B, D).
        negatives: (B, K, D).
        ids: who is who.
        config: temperature and switches; masks and hardness see the cosines of the width at hand.
        dims: widths, each from 1 to D.
        weights: one per width, for a weighted mean; none: all equal.

    Returns:
        A scalar.

    Raises:
        TrainingError: a width is out of range, or there are not as many weights as widths.
    """
    full = queries.shape[-1]
    if not dims or not all(1 <= dim <= full for dim in dims):
        raise TrainingError(f"Matryoshka widths {list(dims)} do not fit embeddings of {full} numbers; use 1 to {full}")
    if weights and len(weights) != len(dims):
        raise TrainingError(f"{len(weights)} weights for {len(dims)} widths {list(dims)}; give one for each width")
    shares = list(weights) or [1.0] * len(dims)
    losses = [
        share * gecko_loss(queries[..., :dim], positives[..., :dim], negatives[..., :dim], ids, config)
        for dim, share in zip(dims, shares, strict=True)
    ]
    return torch.stack(losses).sum() / sum(shares)


class GeckoLoss(torch.nn.Module):
    """:func:`matryoshka_loss` as a loss of sentence-transformers: it calls the encoder on each text column.

    Args:
        model: the encoder; called with the features of one column it gives ``sentence_embedding``, (B, D).
        config: the switches of :func:`gecko_loss`.
        dims: widths that are trained; none: only the full one.
        weights: one per width; none: all equal.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        config: LossConfig,
        dims: Sequence[int] = (),
        weights: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.dims = tuple(dims)
        self.weights = tuple(weights)

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor) -> Tensor:
        """The loss of a batch: features of query, positive and K negatives, and the (B, 4 + K) labels.

        Raises:
            TrainingError: the labels do not fit the columns.
        """
        embeddings = [self.model(features)["sentence_embedding"] for features in sentence_features]
        return self.from_embeddings(embeddings, labels)

    def from_embeddings(self, embeddings: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The loss of embeddings, (B, D) for query, positive and each of K negatives.

        Half-precision embeddings are compared in float32: at τ = 0.05, bfloat16's steps near 1 are 0.08 in a logit.

        Raises:
            TrainingError: the labels do not fit the columns.
        """
        ids = RowIds.from_labels(labels)
        if len(embeddings) != 2 + ids.negatives.shape[1]:
            raise TrainingError(
                f"{len(embeddings)} text columns, but labels for {2 + ids.negatives.shape[1]}; "
                "make the dataset with gecko.training.to_dataset"
            )
        columns = torch.stack(list(embeddings), dim=1)  # (B, 2 + K, D)
        if columns.dtype in (torch.float16, torch.bfloat16):
            columns = columns.float()
        with torch.autocast(columns.device.type, enabled=False):
            queries, positives, negatives = columns[:, 0], columns[:, 1], columns[:, 2:]
            dims = self.dims or (columns.shape[-1],)
            return matryoshka_loss(queries, positives, negatives, ids, self.config, dims, self.weights)

    def get_config_dict(self) -> dict[str, Any]:
        """What a model card may say of the loss."""
        return {**self.config.model_dump(), "dims": list(self.dims), "weights": list(self.weights)}
