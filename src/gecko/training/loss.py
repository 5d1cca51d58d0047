"""The objective of the paper: Eq. 3, its special case Eq. 2, and the switches that later work added.

Notable here:

- one function computes one row's softmax over four blocks of candidates: the positives of the batch, the other
  queries (same-tower negatives), the row's own hard negatives, and, if asked for, the other rows' hard negatives;
- what must not be a negative is removed from a block by a mask; the row's own positive is never removed;
- everything a row is besides its texts (ids, group, weight, fused scores) travels in one integer tensor;
- the loss sees embeddings only, so that however they came about (one pass, cached, gathered from other devices) it is
  the same code; what differs is which rows are this device's, and how many of them are computed at a time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, assert_never

import torch
from sentence_transformers.base.losses import CachedLossMixin
from sentence_transformers.util import all_gather, all_gather_with_grad
from torch import Tensor
from torch.nn.functional import log_softmax, normalize, softmax

from gecko.config.training import LossConfig
from gecko.core.errors import TrainingError

ABSENT = -1
FIXED_COLUMNS = 8
BLOCK = 256  # rows of the softmax at a time, where memory must not grow with the square of the batch


@dataclass(frozen=True, slots=True)
class RowIds:
    """Who is who in a batch of B rows with up to K hard negatives and up to C scored candidates.

    Attributes:
        query: (B,) integers; equal texts have equal numbers, on whichever side they stand.
        positive: (B,) integers, from the same numbers.
        group: (B,) integers; ``ABSENT``: the row belongs to no group.
        weight: (B,) floats, at least 0.
        same_tower: (B,) bool; whether other queries are negatives of this row, where the loss has such at all.
        row: (B,) integers; the row's place in its dataset.
        negatives: (B, K) integers, from the same numbers as ``positive``; ``ABSENT``: the row has fewer than K.
        candidates: (B, C) integers, likewise.
        fused: (B, C) floats, the teacher's fused scores of the candidates.
    """

    query: Tensor
    positive: Tensor
    group: Tensor
    weight: Tensor
    same_tower: Tensor
    row: Tensor
    negatives: Tensor
    candidates: Tensor
    fused: Tensor

    @classmethod
    def from_labels(cls, labels: Tensor) -> "RowIds":
        """Read the (B, 8 + K + 2 C) tensor that :func:`gecko.training.rows.to_dataset` writes into ``label``.

        Its columns: query, positive, group, weight, same tower, row, K, C; then one per hard negative, one per
        candidate, one per fused score. Weight and fused scores are the bits of a float32: a tensor has one type, and
        a float would round the ids. What the collator adds behind them is for :func:`places`.

        Raises:
            TrainingError: the tensor has another shape.
        """
        hard, scored = _widths(labels)
        ends = (FIXED_COLUMNS + hard, FIXED_COLUMNS + hard + scored, FIXED_COLUMNS + hard + 2 * scored)
        return cls(
            query=labels[:, 0],
            positive=labels[:, 1],
            group=labels[:, 2],
            weight=_floats(labels[:, 3]),
            same_tower=labels[:, 4] != 0,
            row=labels[:, 5],
            negatives=labels[:, FIXED_COLUMNS : ends[0]],
            candidates=labels[:, ends[0] : ends[1]],
            fused=_floats(labels[:, ends[1] : ends[2]]),
        )

    def of(self, rows: slice) -> "RowIds":
        """The same, of some rows."""
        return RowIds(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def related(self, rows: slice = slice(None)) -> Tensor:
        """(R, B) bool: with which rows each of ``rows`` shares a text, on either side, or a group.

        They are not each other's negatives.
        """
        q, p, g = self.query[rows, None], self.positive[rows, None], self.group[rows, None]
        same_text = (q == self.query) | (p == self.positive) | (q == self.positive) | (p == self.query)
        return same_text | ((g == self.group) & (g != ABSENT))


def places(labels: Tensor) -> Tensor | None:
    """(B, 2 + K + C) integers: where in the batch's distinct texts each text of a row is; none: the labels tell not."""
    hard, scored = _widths(labels)
    start = FIXED_COLUMNS + hard + 2 * scored
    return labels[:, start:] if labels.shape[1] > start else None


def _floats(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).contiguous().view(torch.float32)


def _widths(labels: Tensor) -> tuple[int, int]:
    """K and C of labels."""
    if labels.ndim == 2 and len(labels) > 0 and labels.shape[1] >= FIXED_COLUMNS:
        hard, scored = labels[0, 6:FIXED_COLUMNS].tolist()
        short = FIXED_COLUMNS + hard + 2 * scored
        if min(hard, scored) >= 0 and labels.shape[1] in (short, short + 2 + hard + scored):
            return hard, scored
    raise TrainingError(
        f"labels of the shape {tuple(labels.shape)} are not such as gecko.training.to_dataset makes; "
        f"needed is (rows, {FIXED_COLUMNS} + hard negatives + 2 * candidates)"
    )


def gecko_loss(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    ids: RowIds,
    config: LossConfig,
    *,
    candidates: Tensor | None = None,
    rows: slice = slice(None),
) -> Tensor:
    """Eq. 3 of the paper for one batch, at one width, and what ``config`` adds to it.

    ::

        L = 1/B Σ_i −w_i log( e^{s(q_i,p_i⁺)/τ} / Z_i )
        Z_i = Σ_j ( e^{s(q_i,p_j⁺)/τ} + 1[j≠i] e^{s(q_i,q_j)/τ} ) + e^{s(q_i,p_i⁻)/τ}

    with s the cosine and w_i = 1 in the paper. Eq. 2 is the same with ``same_tower`` off and no hard negatives. A row
    with several hard negatives has one last term for each. The added terms are weighted by w_i, too.

    Args:
        queries: (B, D) embeddings; they need not be unit vectors.
        positives: (B, D) embeddings; row i belongs to query i.
        negatives: (B, K, D) hard negatives; K may be 0. Where ``ids.negatives`` says ``ABSENT`` they count for nothing.
        ids: who is who.
        config: temperature and switches. ``mask_groups`` removes, from row i's negatives, what belongs to a related row
            (:meth:`RowIds.related`) and hard negatives that are i's own positive. ``false_negative_margin`` m
            removes texts of *other* rows with s > s(q_i, p_i⁺) + m; a row's own hard negatives were chosen on purpose
            and stay. ``hardness`` α multiplies the own hard negatives' terms by exp(α · s(q_i, p_i⁻)), the exponent
            taken as a constant (EmbeddingGemma). For ``distill`` see :func:`divergence`.
        candidates: (R, C, D) embeddings of the scored candidates of ``rows``; needed if ``distill`` is not 0.
        rows: the R rows whose loss is asked for; the others only serve as negatives.

    Returns:
        A scalar, the mean over ``rows``.
    """
    q = normalize(queries, dim=-1)  # (B, D)
    p = normalize(positives, dim=-1)  # (B, D)
    n = normalize(negatives, dim=-1)  # (B, K, D)
    mine = ids.of(rows)
    per_row = _contrast(q, p, n, ids, config, rows)  # (R,)
    if config.distill and ids.candidates.shape[1] >= 2:
        assert candidates is not None
        per_row = per_row + config.distill * divergence(q[rows], normalize(candidates, dim=-1), mine, config)
    return (mine.weight.to(per_row.dtype) * per_row).mean()


def _contrast(q: Tensor, p: Tensor, n: Tensor, ids: RowIds, config: LossConfig, rows: slice) -> Tensor:
    """(R,) −log of the fraction in Eq. 3, of unit vectors."""
    mine = ids.of(rows)
    hard = ids.negatives.shape[1]
    every = torch.arange(len(ids.query), device=ids.query.device)
    itself = every[rows, None] == every  # (R, B), the diagonal
    related = ids.related(rows) if config.mask_groups else itself  # (R, B)
    absent = ids.negatives == ABSENT  # (B, K)
    positive = (q[rows] * p[rows]).sum(dim=-1)  # (R,) s(q_i, p_i)

    def from_others(scores: Tensor, removed: Tensor) -> Tensor:
        """Logits of other rows' texts: (R, M) cosines and which of them to leave out."""
        if config.false_negative_margin is not None:
            removed = removed | (scores > positive[:, None] + config.false_negative_margin)
        return (scores / config.temperature).masked_fill(removed, -torch.inf)

    logits = [positive[:, None] / config.temperature]  # (R, 1); the other positives follow, without the diagonal
    logits.append(from_others(q[rows] @ p.T, related | itself))  # (R, B)
    if config.same_tower:
        logits.append(from_others(q[rows] @ q.T, related | itself | ~mine.same_tower[:, None]))  # (R, B)
    if config.hard_negatives != "none" and hard > 0:
        own = torch.einsum("bd,bkd->bk", q[rows], n[rows])  # (R, K) s(q_i, p_i⁻)
        removed = absent[rows]
        if config.mask_groups:
            removed = removed | (mine.negatives == mine.positive[:, None])
        own_logits = own / config.temperature + config.hardness * own.detach()
        logits.append(own_logits.masked_fill(removed, -torch.inf))
    match config.hard_negatives:
        case "all":
            removed = absent.flatten() | itself.repeat_interleave(hard, dim=1)  # (R, B·K)
            if config.mask_groups:
                others = ids.negatives.flatten()  # of a symmetric set they may be this row's very query
                removed = removed | (others == mine.positive[:, None]) | (others == mine.query[:, None])
            logits.append(from_others(q[rows] @ n.flatten(0, 1).T, removed))  # (R, B·K)
        case "own" | "none":
            pass
        case _:
            assert_never(config.hard_negatives)
    return torch.logsumexp(torch.cat(logits, dim=1), dim=1) - positive / config.temperature


def divergence(q: Tensor, candidates: Tensor, ids: RowIds, config: LossConfig) -> Tensor:
    """(R,) KL divergence of the student's softmax over a query's candidates from the teacher's: listwise distillation.

    The teacher's is softmax(fused / ``distill_temperature``), the student's softmax(s(q, c) / ``temperature``). Rows
    with fewer than two candidates count 0. ``q`` (R, D) and ``candidates`` (R, C, D) are unit vectors.
    """
    absent = ids.candidates == ABSENT  # (R, C)
    absent = absent & ~absent.all(dim=1, keepdim=True)  # a row without any: all equal, and left out below
    teacher = (ids.fused.to(q.dtype) / config.distill_temperature).masked_fill(absent, -torch.inf)
    student = torch.einsum("bd,bcd->bc", q, candidates) / config.temperature
    shares = softmax(teacher, dim=1)
    logs = log_softmax(teacher, dim=1) - log_softmax(student.masked_fill(absent, -torch.inf), dim=1)
    terms = (shares * logs.masked_fill(absent, 0)).sum(dim=1)
    return terms * ((ids.candidates != ABSENT).sum(dim=1) >= 2)


def matryoshka_loss(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    ids: RowIds,
    config: LossConfig,
    dims: Sequence[int],
    weights: Sequence[float] = (),
    *,
    candidates: Tensor | None = None,
    rows: slice = slice(None),
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
        candidates: as for :func:`gecko_loss`.
        rows: likewise.

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
        share
        * gecko_loss(
            queries[..., :dim],
            positives[..., :dim],
            negatives[..., :dim],
            ids,
            config,
            candidates=None if candidates is None else candidates[..., :dim],
            rows=rows,
        )
        for dim, share in zip(dims, shares, strict=True)
    ]
    return torch.stack(losses).sum() / sum(shares)


class GeckoLoss(CachedLossMixin, torch.nn.Module):
    """:func:`matryoshka_loss` as a loss of sentence-transformers.

    It encodes the texts of a batch, with the stock collator column by column, with :class:`gecko.training.Collator`
    each distinct text once. Under ``torchrun`` the rows of all devices are each other's negatives.

    Args:
        model: the encoder; called with the features of some texts it gives ``sentence_embedding``, (texts, D).
        config: the switches of :func:`gecko_loss`.
        dims: widths that are trained; none: only the full one.
        weights: one per width; none: all equal.
        part_tokens: a batch of more tokens, padding included, is encoded twice, first without and then with gradients,
            one part at a time (GradCache): memory then does not grow with the batch. The parts are those that the
            collator makes. Where several devices train, each batch is encoded so. None: all batches are encoded once.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        config: LossConfig,
        dims: Sequence[int] = (),
        weights: Sequence[float] = (),
        *,
        part_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.dims = tuple(dims)
        self.weights = tuple(weights)
        self.part_tokens = part_tokens
        self.uses_gradient_cache = part_tokens is not None
        self.mini_batch_size = 1 << 40  # a part is never cut again

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            sentence_features: features of query, positive, K negatives and C candidates, as the stock collator gives
                them; or of the batch's distinct texts, part by part, if the labels tell their places.
            labels: (B, 8 + K + 2 C), or with places (B, 10 + 2 K + 3 C).

        Raises:
            TrainingError: the labels do not fit the columns.
        """
        parts = list(sentence_features)
        if self.part_tokens is not None and not self._fits(parts, self.part_tokens):
            loss: Tensor = self.forward_cached(parts, labels)
            return loss
        # (texts, D) of each part; frozen passages come as vectors
        made = [part if "sentence_embedding" in part else self.model(part) for part in parts]
        return self.calculate_loss([[part["sentence_embedding"]] for part in made], labels)

    def _fits(self, parts: Sequence[dict[str, Any]], tokens: int) -> bool:
        """Whether a batch has no more tokens. Several devices must do the same, so there it is never asked."""
        if torch.distributed.is_initialized() or not all("input_ids" in part for part in parts):
            return False
        return sum(int(part["input_ids"].numel()) for part in parts) <= tokens

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of embeddings, each (texts, D), in the order of :meth:`forward`'s features.

        Half-precision embeddings are compared in float32: at τ = 0.05, bfloat16's steps near 1 are 0.08 in a logit.

        Args:
            reps: per column or part, a list of embeddings that belong behind each other.
            labels: as for :meth:`forward`.
            with_backward: leave the gradients in ``reps``, block by block of the softmax, and give a value without any.

        Raises:
            TrainingError: the labels do not fit the columns.
        """
        assert labels is not None
        texts = torch.cat([rep for column in reps for rep in column])  # (texts, D)
        if texts.dtype in (torch.float16, torch.bfloat16):
            texts = texts.float()
        with torch.autocast(texts.device.type, enabled=False):
            batch = self._arrange(texts, labels)
            if not with_backward:
                return self._loss(batch, batch.rows)
            leaf = batch.detached()
            loss = texts.new_zeros(())
            for start in range(batch.rows.start, batch.rows.stop, BLOCK):
                rows = slice(start, min(start + BLOCK, batch.rows.stop))
                part = self._loss(leaf, rows) * ((rows.stop - rows.start) / (batch.rows.stop - batch.rows.start))
                part.backward()
                loss += part.detach()
            kept = [(one, other.grad) for one, other in zip(batch.tensors, leaf.tensors, strict=True)]
            used = [(one, grad) for one, grad in kept if grad is not None]
            torch.autograd.backward([one for one, _ in used], [grad for _, grad in used])
            return loss

    def _arrange(self, texts: Tensor, labels: Tensor) -> "_Batch":
        """Embeddings of distinct texts, (texts, D), as the columns of rows, those of other devices included."""
        ids, place = RowIds.from_labels(labels), places(labels)
        hard, scored = ids.negatives.shape[1], ids.candidates.shape[1]
        wanted = 2 + hard + scored
        if place is None:
            if len(texts) != len(labels) * wanted:
                raise TrainingError(
                    f"{len(texts) / len(labels):g} text columns, but labels for {wanted}; "
                    "make the dataset with gecko.training.to_dataset"
                )
            place = torch.arange(len(texts), device=texts.device).view(wanted, len(labels)).T
        columns = texts[place]  # (B, 2 + K + C, D)
        compared, candidates = columns[:, : 2 + hard], columns[:, 2 + hard :]
        rows = slice(0, len(labels))
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            first = torch.distributed.get_rank() * len(labels)
            rows = slice(first, first + len(labels))
            compared = all_gather_with_grad(compared.contiguous())  # (devices · B, 2 + K, D)
            ids = RowIds.from_labels(all_gather(labels[:, : FIXED_COLUMNS + hard + 2 * scored].contiguous()))
        return _Batch(compared, candidates, ids, rows)

    def _loss(self, batch: "_Batch", rows: slice) -> Tensor:
        compared = batch.compared
        local = slice(rows.start - batch.rows.start, rows.stop - batch.rows.start)
        return matryoshka_loss(
            compared[:, 0],
            compared[:, 1],
            compared[:, 2:],
            batch.ids,
            self.config,
            self.dims or (compared.shape[-1],),
            self.weights,
            candidates=batch.candidates[local],
            rows=rows,
        )

    def get_config_dict(self) -> dict[str, Any]:
        """What a model card may say of the loss."""
        return {**self.config.model_dump(), "dims": list(self.dims), "weights": list(self.weights)}


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows of all devices, and which of them are this one's.

    Attributes:
        compared: (B, 2 + K, D) embeddings of query, positive and hard negatives.
        candidates: (R, C, D), of this device's rows.
        ids: of the B rows.
        rows: this device's R.
    """

    compared: Tensor
    candidates: Tensor
    ids: RowIds
    rows: slice

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.compared, self.candidates

    def detached(self) -> "_Batch":
        """The same with embeddings that collect their gradient."""
        compared, candidates = (tensor.detach().requires_grad_() for tensor in self.tensors)
        return _Batch(compared, candidates, self.ids, self.rows)
