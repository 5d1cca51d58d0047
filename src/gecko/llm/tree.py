"""Attention over a tree of prompts without a mask: every token meets the keys that it sees, and no others.

A mask over a pack of T tokens costs T² scores, of which a few in a hundred are needed, and keeps a GPU from its fast kernels;
it is what bounds a pack. Here the same tree is cut into stretches, each of which a kernel for sequences of different lengths
reads as it is (FlashAttention, https://arxiv.org/abs/2205.14135). The tokens lie bodies first, tails after them::

    bodies               causal, over the preamble and themselves
    tails of a group     over the preamble and the group's body
    tails                causal, over themselves

The two parts of a tail are joined by their log-sum-exps. When texts are written, keys and values lie in one slot a text, so
that nothing is copied when a text grows or ends, and heads that share keys read them once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch

from gecko.core.errors import TeacherError

KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]  # one pair a layer, each (1, heads, P, width of a head)
NAME = "gecko_tree"  # of the attention among those of transformers


@dataclass(frozen=True)
class Segments:
    """Stretches of tokens that lie one after the other.

    ``starts`` (S + 1,) int32: where each begins, and the end of the last. ``used`` (S,) int32: how many tokens of each
    are read, from its start; none: all.
    """

    starts: torch.Tensor
    longest: int
    used: torch.Tensor | None = None


# (queries (Q, H, D), keys and values (K, H / n, D), their segments, causal, scale) -> output (Q, H, D), log-sum-exp (H, Q)
Kernel = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, Segments, Segments, bool, float], tuple[torch.Tensor, torch.Tensor]
]


def flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    asks: Segments,
    sees: Segments,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each segment of queries over the segment of keys of the same number, by torch's FlashAttention.

    Causal: the last query of a segment sees all of its keys, the one before it one less.
    """
    # A longest of 1 would take a path that orders its log-sum-exps in another way; more than the longest is allowed.
    longest = max(asks.longest, 2)
    output, logsumexp, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, asks.starts, sees.starts, longest, sees.longest, 0.0, causal, False, scale=scale,
        seqused_k=sees.used,
    )  # fmt: skip
    return output, logsumexp


def joined(one: tuple[torch.Tensor, torch.Tensor], two: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Attention over two sets of keys, from that over each: (Q, H, D)."""
    weight = torch.sigmoid(two[1] - one[1]).T[..., None]  # (Q, H, 1)
    return torch.lerp(one[0], two[0], weight.to(one[0].dtype))


def segments(lengths: Sequence[int], device: torch.device) -> Segments:
    """Segments of these lengths."""
    return Segments(placed([0, *accumulate(lengths)], device, torch.int32), max(lengths, default=0))


def placed(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.long) -> torch.Tensor:
    """A tensor on a device; a GPU goes on with what it was told before while the values are on their way."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Tree(Protocol):
    """What the layers of a model are given in the place of a mask."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """(T, H, D) queries of a layer with their own keys and values, (T, H / n, D) each, to (T, H, D)."""
        ...


class Pack:
    """Bodies and tails below one preamble, all read at once.

    Args:
        preamble: its keys and values.
        bodies: tokens of each group's body.
        tails: of each group the tokens of each of its tails; a group may have none.
        device: where they are read.
        kernel: attention of segments.
        keep: called with the number of a layer and the bodies' keys and values there.
    """

    def __init__(
        self,
        preamble: KeysAndValues,
        bodies: Sequence[int],
        tails: Sequence[Sequence[int]],
        device: torch.device,
        kernel: Kernel,
        keep: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
    ) -> None:
        self._preamble, self._kernel, self._keep = preamble, kernel, keep
        past = preamble[0][0].shape[-2]
        context = [
            row
            for start, length in zip(accumulate(bodies, initial=past), bodies, strict=False)
            for row in (*range(past), *range(start, start + length))
        ]
        self._bodies = sum(bodies)
        self._context = placed(context, device)  # of each group the preamble and its body
        self._of_context = segments([past + length for length in bodies], device)
        self._of_bodies = segments(bodies, device)
        self._of_groups = segments([sum(group) for group in tails], device)
        self._of_tails = segments([length for group in tails for length in group], device)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See :class:`Tree`."""
        end = self._bodies
        if self._keep is not None:
            self._keep(layer, key[:end], value[:end])
        keys, values = (
            torch.cat([before[0].transpose(0, 1), own[:end]])[self._context]
            for before, own in zip(self._preamble[layer], (key, value), strict=True)
        )
        output, _ = self._kernel(query[:end], keys, values, self._of_bodies, self._of_context, True, scale)
        if end == len(query):
            return output
        rest = query[end:]
        seen = self._kernel(rest, keys, values, self._of_groups, self._of_context, False, scale)
        own = self._kernel(rest, key[end:], value[end:], self._of_tails, self._of_tails, True, scale)
        return torch.cat([output, joined(seen, own)])


class Slots:
    """Texts that grow by a token at a time below one preamble, the keys and values of each in a slot of its own.

    Text i begins with ``lengths[i]`` tokens and may have ``room[i]`` in the end.
    """

    def __init__(
        self, preamble: KeysAndValues, lengths: Sequence[int], room: int, device: torch.device, kernel: Kernel
    ) -> None:
        self._preamble, self._kernel, self._room, self._device = preamble, kernel, room, device
        self._past = preamble[0][0].shape[-2]
        self._lengths = list(lengths)
        self._slots: list[tuple[torch.Tensor, torch.Tensor]] = []  # one pair a layer, each (texts * room, heads, width)

    def begin(self, rows: Sequence[int]) -> Pack:
        """The tree by which the first tokens of some of the texts are read, one text a body."""
        lengths = [self._lengths[row] for row in rows]
        places = [row * self._room + place for row in rows for place in range(self._lengths[row])]
        self._places = placed(places, self._device)  # of what is read in the slots, end to end
        return Pack(self._preamble, lengths, [()] * len(lengths), self._device, self._kernel, self._fill)

    def _fill(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        if len(self._slots) == layer:
            size = (len(self._lengths) * self._room, *key.shape[1:])
            self._slots.append((key.new_zeros(size), value.new_zeros(size)))
        for slots, own in zip(self._slots[layer], (key, value), strict=True):
            slots[self._places] = own

    def grow(self, rows: Sequence[int]) -> list[int]:
        """Go on with some of the texts, by one token each; their positions."""
        positions = [self._past + self._lengths[row] for row in rows]
        starts = [row * self._room for row in rows]
        self._places = placed(
            [start + self._lengths[row] for start, row in zip(starts, rows, strict=True)], self._device
        )
        for row in rows:
            self._lengths[row] += 1
        used = [self._lengths[row] for row in rows]
        ends = placed([*starts, len(self._lengths) * self._room], self._device, torch.int32)
        self._own = Segments(ends, max(used), placed(used, self._device, torch.int32))
        self._starts = placed(range(len(rows) + 1), self._device, torch.int32)
        self._before = segments([self._past], self._device)
        self._together = segments([len(rows)], self._device)
        return positions

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See :class:`Tree`."""
        self._fill(layer, key, value)
        before, slots = self._preamble[layer], self._slots[layer]
        keys, values = (part[0].transpose(0, 1) for part in before)
        seen = self._kernel(query, keys, values, self._together, self._before, False, scale)
        # The heads that share keys stand as so many queries of one, so that these keys are read once.
        rows, heads, width = query.shape
        shared = slots[0].shape[1]
        share = heads // shared
        asks = Segments(self._starts * share, share)
        output, logsumexp = self._kernel(
            query.view(rows, shared, share, width).transpose(1, 2).reshape(-1, shared, width),
            *slots, asks, self._own, False, scale,
        )  # fmt: skip
        own = (
            output.view(rows, share, shared, width).transpose(1, 2).reshape(query.shape),
            logsumexp.view(shared, rows, share).transpose(1, 2).reshape(heads, rows),
        )
        return joined(seen, own)


def offer_tree() -> None:
    """Make the attention known to transformers under :data:`NAME`; without a tree it is torch's own."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        tree: Tree | None = None,
        scaling: float | None = None,
        **rest: Any,
    ) -> tuple[torch.Tensor, None]:
        if tree is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
        if unknown := [name for name in ("softcap", "s_aux", "position_bias") if rest.get(name) is not None]:
            raise TeacherError(f"attention with {', '.join(unknown)} cannot be read without a mask")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
        layer: Any = module.layer_idx
        return tree.attend(layer, query, key, value, scale)[None], None

    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def kernel_for(model: Any) -> Kernel | None:
    """The kernel that can read a model's segments here; none: there is none, or the model's attention is its own."""
    device, config = model.device, model.config.get_text_config()
    if (
        device.type != "cuda"
        or model.dtype not in (torch.bfloat16, torch.float16)
        or torch.cuda.get_device_capability(device) < (8, 0)
        or config._attn_implementation not in ("sdpa", NAME)
        or getattr(config, "attn_temperature_tuning", None)  # by a token's place in the pack, not in its text
    ):
        return None
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return flash if width % 8 == 0 and width <= 256 else None
