"""Texts that grow by a token at a time: how they are kept in memory, drawn and ended."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch.nn import functional
from transformers import DynamicCache, PreTrainedTokenizerBase

from gecko.llm.base import Sampling, Usage, cut_at_stop
from gecko.llm.tree import Kernel, KeysAndValues, Slots, Tree, placed

NUCLEUS = 256  # the nucleus of top-p sampling is looked for among so many of the likeliest tokens


class Growing(Protocol):
    """Texts that are written together. States are of the last tokens, (B, width), of the texts that are left."""

    def begin(self) -> torch.Tensor:
        """Read the bodies."""
        ...

    def keep(self, places: list[int]) -> None:
        """Go on with some of the texts that are left."""
        ...

    def grow(self, tokens: list[int]) -> torch.Tensor:
        """Read one more token of each."""
        ...


class Padded:
    """Bodies padded to one length, with a mask; keys and values grow and shrink with the batch.

    ``body`` is the model below its output layer; ``preamble`` has keys and values of what stands before all bodies.
    """

    def __init__(self, body: Any, preamble: KeysAndValues, bodies: list[list[int]], pad: int) -> None:
        device, rows = preamble[0][0].device, len(bodies)
        past, width = preamble[0][0].shape[-2], max(map(len, bodies))
        self._body = body
        self._ids = torch.tensor([[pad] * (width - len(body)) + body for body in bodies], device=device)  # (B, W)
        real = torch.tensor([[False] * (width - len(body)) + [True] * len(body) for body in bodies], device=device)
        self._seen = torch.cat([torch.ones(rows, past, dtype=torch.bool, device=device), real], dim=1)
        self._positions = past + (real.long().cumsum(dim=1) - 1).clamp(min=0)
        self._cache = DynamicCache(
            [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in preamble]
        )

    def begin(self) -> torch.Tensor:
        """See :class:`Growing`."""
        output = self._body(
            input_ids=self._ids, attention_mask=self._seen, position_ids=self._positions,
            past_key_values=self._cache, use_cache=True,
        )  # fmt: skip
        hidden: torch.Tensor = output.last_hidden_state[:, -1]
        return hidden

    def keep(self, places: list[int]) -> None:
        """See :class:`Growing`."""
        index = torch.tensor(places, device=self._seen.device)
        self._cache.batch_select_indices(index)
        self._seen, self._positions = self._seen[index], self._positions[index]

    def grow(self, tokens: list[int]) -> torch.Tensor:
        """See :class:`Growing`."""
        self._ids = torch.tensor([[token] for token in tokens], device=self._seen.device)
        self._positions = self._positions[:, -1:] + 1
        self._seen = torch.cat([self._seen, self._seen.new_ones(len(tokens), 1)], dim=1)
        return self.begin()


class Slotted:
    """Bodies end to end, and each text in a slot of its own: no padding, no mask, nothing copied as texts grow and end.

    Args:
        run: (ids, positions, who sees whom) to final states (T, width).
        preamble: keys and values of what stands before all bodies.
        bodies: token ids.
        more: tokens by which each grows at most.
        pack_tokens: tokens of bodies that are read at once.
        kernel: attention without a mask.
    """

    def __init__(
        self,
        run: Callable[[Sequence[int], Sequence[int], Tree], torch.Tensor],
        preamble: KeysAndValues,
        bodies: list[list[int]],
        more: int,
        pack_tokens: int,
        kernel: Kernel,
    ) -> None:
        lengths = [len(body) for body in bodies]
        self._run, self._bodies, self._pack_tokens = run, bodies, pack_tokens
        self._past = preamble[0][0].shape[-2]
        self._slots = Slots(preamble, lengths, max(lengths) + more, preamble[0][0].device, kernel)
        self._rows = list(range(len(bodies)))

    def begin(self) -> torch.Tensor:
        """See :class:`Growing`."""
        found, first, size = [], 0, 0
        for row, body in enumerate(self._bodies):
            if size and size + len(body) > self._pack_tokens:
                found.append(self._read(first, row))
                first, size = row, 0
            size += len(body)
        return torch.cat([*found, self._read(first, len(self._bodies))])

    def _read(self, first: int, last: int) -> torch.Tensor:
        """Last states of some of the bodies, which fill a pack."""
        bodies = self._bodies[first:last]
        ids = [token for body in bodies for token in body]
        positions = [self._past + place for body in bodies for place in range(len(body))]
        hidden = self._run(ids, positions, self._slots.begin(range(first, last)))
        return hidden[placed([end - 1 for end in accumulate(map(len, bodies))], hidden.device)]

    def keep(self, places: list[int]) -> None:
        """See :class:`Growing`."""
        self._rows = [self._rows[place] for place in places]

    def grow(self, tokens: list[int]) -> torch.Tensor:
        """See :class:`Growing`."""
        return self._run(tokens, self._slots.grow(self._rows), self._slots)


class Writer:
    """Draws texts and ends them; the model says which tokens end one."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._lasts: dict[int, str] = {}  # tokens as texts

    def write(
        self,
        state: Growing,
        logits: Callable[[torch.Tensor], torch.Tensor],
        stops: Sequence[str],
        sampling: Sampling,
        usage: Usage,
    ) -> list[str]:
        """The texts of ``state``, each up to its first stop string; a finished one leaves the batch. None is read yet.

        ``logits`` makes (B, vocabulary) of (B, width) states. What is written is counted in ``usage``.
        """
        hidden = state.begin()  # (B, width)
        generators = [torch.Generator().manual_seed(seed) for seed in sampling.seeds]
        written: list[list[int]] = [[] for _ in hidden]
        texts = [""] * len(hidden)
        alive = list(range(len(hidden)))
        ends, may_stop = self.ends(), self._may_stop(stops)
        for step in range(sampling.max_new_tokens):
            chosen = draw(logits(hidden), [generators[row] for row in alive], sampling)
            usage.written += len(alive)
            last = step == sampling.max_new_tokens - 1
            keep = []
            for place, (row, token) in enumerate(zip(alive, chosen, strict=True)):
                written[row].append(token)
                stopped = False
                if last or may_stop(token):
                    texts[row], stopped = self.cut_at_stop(written[row], stops)
                if token in ends:
                    texts[row], _ = self.cut_at_stop(written[row][:-1], stops)
                    stopped = True
                if not stopped:
                    keep.append(place)
            if not keep or last:
                break
            if len(keep) < len(alive):
                state.keep(keep)
                alive = [alive[place] for place in keep]
            hidden = state.grow([written[row][-1] for row in alive])
        return texts

    def _may_stop(self, stops: Sequence[str]) -> Callable[[int], bool]:
        """Whether a text can come to its first stop string with a token: not if that has no last letter of one."""
        visible = all(stop[-1:] == "\n" or ("!" <= stop[-1:] <= "~") for stop in stops)
        if not visible:
            return lambda _: True  # part of a letter, or white space that a token alone may be written without
        lasts, known = {stop[-1] for stop in stops}, self._lasts

        def may_stop(token: int) -> bool:
            if token not in known:
                known[token] = str(self._tokenizer.decode([token], skip_special_tokens=False))
            return not lasts.isdisjoint(known[token])

        return may_stop

    def cut_at_stop(self, tokens: list[int], stops: Sequence[str]) -> tuple[str, bool]:
        """The text of tokens before the first stop string in it, and whether there is one."""
        return cut_at_stop(str(self._tokenizer.decode(tokens, skip_special_tokens=False)), stops)

    def ends(self) -> set[int]:
        """The tokens that end a text."""
        config: Any = self._model.generation_config
        ends = config.eos_token_id if config is not None else None
        return set(ends if isinstance(ends, list) else [ends]) | {self._tokenizer.eos_token_id}


def draw(logits: torch.Tensor, generators: list[torch.Generator], sampling: Sampling) -> list[int]:
    """One token a row of (B, vocabulary) logits; a row's draw depends on its own generator only."""
    if sampling.temperature == 0:
        return [int(token) for token in logits.argmax(dim=-1)]
    likeliest, order = logits.topk(min(NUCLEUS, logits.shape[-1]), dim=-1)  # sorted, (B, 256)
    probabilities = functional.softmax(likeliest.cpu().double() / sampling.temperature, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities[before >= sampling.top_p] = 0.0
    above = probabilities.cumsum(dim=-1)
    spots = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    places = torch.searchsorted(above, spots * above[:, -1:]).clamp(max=above.shape[1] - 1)
    return [int(token) for token in order.cpu().gather(1, places)[:, 0]]
