"""A teacher on transformers: the default backend, and the one the others are held against.

What is notable here:

- A prompt is cut into a preamble, a passage and a tail. The preamble's keys and values are computed once a prompt, a
  passage's once a group, and every query is a branch below them.
- Groups are packed one after the other into one sequence: no padding. A mask lets a branch see the preamble, its own
  passage and itself; on a GPU :mod:`gecko.llm.tree` reads the same without one. Position numbers run along each branch as
  if it stood alone.

::

      keys:        preamble   passage A   A.q1   A.q2   passage B   B.q1
      passage A       x           x\
      A.q1            x           x         x\
      A.q2            x           x                x\
      passage B       x                                    x\
      B.q1            x                                    x          x\

- Query likelihood and relevance can be read in one pass over one prompt: the query's tokens, and the label after them.
- Only the positions that are read go through the output layer, in float32 from there on.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from gecko.compute.device import device_memory
from gecko.core.errors import TeacherError
from gecko.llm.base import NOTHING, Group, Judgement, LanguageModel, Sampling, Usage
from gecko.llm.decoding import Growing, Padded, Slotted, Writer
from gecko.llm.prompt_tokens import Branches, Cut, PromptTokens, bodies_first, masked
from gecko.llm.tree import NAME, Kernel, KeysAndValues, Pack, Tree, kernel_for, offer_tree, placed
from gecko.prompts import Prompt

# A family of models may make its logits or read its masks in ways of its own: each is asked this, once, in both ways.
KNOWN_PROMPT = Prompt("known", "completion", "Read.\n\nPassage: {passage}\nQuery: {query}", (), (), (), (), "known")
KNOWN_GROUP = Group("The cat sat on the mat, and the dog lay beside it.", ("Who sat on the mat?", "a dog beside a cat"))
TOLERATED = 0.15  # of a token's log-probability: packs are rounded otherwise in half precision
FULL = "full_attention"
WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}  # kind of layer: setting
CACHE_SHARE = (
    0.2  # of the memory, for keys and values of texts being written; without slots they are copied as they grow
)
PADDED_TOKENS = 32_768  # of padded bodies that are read at once, as far as 32 of them are not more
READ_ROWS = 256  # rows of the output layer computed together: 256 x 152k x 6 bytes = 230 MB


class TransformersLM(LanguageModel):
    """A causal language model from transformers as a teacher.

    Args:
        model: a causal LM with attention in every layer; prompts must be shorter than its window, where it has one.
        tokenizer: its tokenizer.
        name: what to call it.
        identity: hash of its weights.
        passage_tokens: longer passages are cut to so many tokens, and counted in ``usage.truncated``.
        pack_tokens: tokens of one forward pass; bounds the memory, whatever the number of pairs.
        head: the output layer in another precision, (R, width) states to (R, vocabulary) logits; none: the model's own.
        kernel: attention without a mask; none: the one that this GPU has, or a mask.

    Attributes:
        by_tree: whether packs are read without a mask.
        no_tree: why not, where a kernel was there for it; else empty.

    Raises:
        TeacherError: some layers are not attention, or the model gives other scores in a pack than alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        identity: str,
        passage_tokens: int = 256,
        pack_tokens: int = 1024,
        head: nn.Module | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        self.model: Any = model
        self.model.requires_grad_(False)
        self.output = OutputLayer(model, head)
        self.tokenizer = tokenizer
        self.name = name
        self.identity = identity
        self.passage_tokens = passage_tokens
        self.pack_tokens = pack_tokens
        self.usage = Usage()
        self.tokens = PromptTokens(tokenizer, name, passage_tokens, self.usage)
        self.writer = Writer(model, tokenizer)
        self._caches: dict[str, KeysAndValues] = {}
        config: Any = model.config.get_text_config()
        self._window = _window(config, name)
        self._kernel = kernel or kernel_for(model)
        self.no_tree = ""
        if self._kernel is not None:
            own = config._attn_implementation
            offer_tree()
            config._attn_implementation = NAME  # of the text model alone: what else there is may not know it
            self.no_tree = self._unlike_alone()
            if self.no_tree:
                config._attn_implementation = "sdpa" if own == NAME else own
                self._kernel = None
        if self._kernel is None:
            self._refuse_unlike()
        self.needs_many = self.by_tree

    @property
    def by_tree(self) -> bool:
        """See the class."""
        return self._kernel is not None

    # --- the protocol

    def score(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[tuple[float, int]]]:
        """See :class:`gecko.llm.base.LanguageModel`."""
        read = self._read(prompt, groups, query=True, labels=[])
        return [[(found.ql_sum, found.ql_tokens) for found in row] for row in read]

    def label_logprobs(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[tuple[float, ...]]]:
        """See :class:`gecko.llm.base.LanguageModel`."""
        read = self._read(prompt, groups, query=False, labels=self.tokens.labels(prompt))
        return [[found.labels for found in row] for row in read]

    def judge(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[Judgement]]:
        """See :class:`gecko.llm.base.LanguageModel`."""
        return self._read(prompt, groups, query=True, labels=self.tokens.labels(prompt))

    @torch.inference_mode()
    def _read(
        self, prompt: Prompt, groups: Sequence[Group], *, query: bool, labels: list[int]
    ) -> list[list[Judgement]]:
        """One pass over all groups that reads the query's tokens, the labels after the prompt's end, or both."""
        if not prompt.has_query:
            raise TeacherError(f"prompt {prompt.name!r} has no {{query}}, so there is nothing to score; add it")
        results = [[NOTHING] * len(group.queries) for group in groups]
        end = len(self.tokens.cut(prompt).end) if labels else 0
        before: Callable[[], None] | None = None
        for pack in self.tokens.packs(prompt, groups, self.pack_tokens, with_end=bool(labels)):
            # A GPU is given the next pack before the answers of the last are waited for.
            answers = self._launch(prompt, pack, results, query=query, labels=labels, end=end)
            if before is not None:
                before()
            before = answers
        if before is not None:
            before()
        return results

    def _launch(
        self,
        prompt: Prompt,
        pack: list[Branches],
        results: list[list[Judgement]],
        *,
        query: bool,
        labels: list[int],
        end: int,
    ) -> Callable[[], None]:
        """Begin to read a pack; what is returned waits for it and puts its answers among the results."""
        hidden = self._forward(prompt, pack)
        rows: list[int] = []  # states that predict a token of a query, pair after pair
        targets: list[int] = []
        finals: list[int] = []  # states that predict a label
        owners: list[tuple[int, int, int]] = []
        offset = 0
        for branches in pack:
            last = offset + len(branches.passage) - 1
            start = last + 1
            for number, tail in enumerate(branches.tails):
                length = len(tail) - end
                if query:
                    # The state before a token predicts it: the passage's last state the query's first token.
                    rows += [last, *range(start, start + length - 1)]
                    targets += tail[:length]
                start += len(tail)
                finals.append(start - 1)
                owners.append((branches.index, branches.first + number, length))
            offset += len(branches)
        device = hidden.device
        likelihoods = answers = None
        if rows:
            likelihoods = self.output.logprobs(hidden[placed(rows, device)], placed(targets, device))
        if labels:
            wanted = placed(labels, device).expand(len(finals), -1)
            answers = self.output.logprobs(hidden[placed(finals, device)], wanted)

        def collect() -> None:
            tokens = iter([] if likelihoods is None else likelihoods.tolist())
            found = [()] * len(finals) if answers is None else answers.tolist()
            for (group, place, length), answer in zip(owners, found, strict=True):
                total = sum(next(tokens) for _ in range(length)) if query else 0.0
                results[group][place] = Judgement(total, length, tuple(answer))

        return collect

    def generate(
        self, prompt: Prompt, passages: Sequence[str], sampling: Sampling, variables: Sequence[str] = ()
    ) -> list[str]:
        """See :class:`gecko.llm.base.LanguageModel`.

        As many passages are decoded together as have room for their keys and values; a finished one leaves the batch.
        """
        if not passages:
            return []
        bodies = self.tokens.bodies(self.tokens.cut(prompt), passages, variables)
        together = self._rows_with_room(prompt, max(map(len, bodies)), sampling.max_new_tokens)
        texts: list[str] = []
        for start in range(0, len(bodies), together):
            part = slice(start, start + together)
            texts += self._decode(prompt, bodies[part], replace(sampling, seeds=sampling.seeds[part]))
        return texts

    def _rows_with_room(self, prompt: Prompt, longest: int, more: int) -> int:
        """How many texts, of a body of so many tokens and so many more, may be decoded together.

        Some of the memory is theirs. By a mask each has a copy of the preamble's keys and values, and all bodies are read at
        once; padding counts among what a layer with a window looks back to, so what is longer is written one by one.
        """
        preamble = self._preamble(prompt)
        past = preamble[0][0].shape[-2]
        bytes_of_a_token = sum(keys.nbytes + values.nbytes for keys, values in preamble) / past
        room = device_memory(self.model.device.type) * CACHE_SHARE / bytes_of_a_token  # tokens
        if self._by_slots(prompt, longest + more):
            return max(1, int(room / (longest + more)))
        if not self._in_window(prompt, longest + more):
            return 1
        return max(1, min(int(room / (past + longest + more)), max(32, PADDED_TOKENS // longest)))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See :class:`gecko.llm.base.LanguageModel`."""
        return [len(ids) for ids in self.tokens.data(texts)]

    # --- reading

    def _forward(self, prompt: Prompt, pack: list[Branches]) -> torch.Tensor:
        """Final hidden states of a pack: (tokens, width)."""
        preamble = self._preamble(prompt)
        past = preamble[0][0].shape[-2]
        self._refuse_long(past + max(len(one.passage) + max(map(len, one.tails), default=0) for one in pack))
        if self._kernel is not None:
            return self._forward_by_tree(preamble, pack, self._kernel)
        ids, mask, positions = masked(pack, past, self.model.device)
        if self.model.config.get_text_config()._attn_implementation == "eager":  # which adds the mask
            least = torch.finfo(self.model.dtype).min
            mask = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device).masked_fill(~mask, least)
        self.usage.read += ids.shape[1]
        output = self._body()(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=DynamicCache(preamble),
            use_cache=True,
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def _forward_by_tree(self, preamble: KeysAndValues, pack: list[Branches], kernel: Kernel) -> torch.Tensor:
        """The same without a mask: bodies first, tails after them, and the states back in the order of the pack."""
        device = self.model.device
        ids, positions, order = bodies_first(pack, preamble[0][0].shape[-2])
        bodies = [len(branches.passage) for branches in pack]
        tails = [[len(tail) for tail in branches.tails] for branches in pack]
        self.usage.read += len(ids)
        hidden = self._run(ids, positions, Pack(preamble, bodies, tails, device, kernel))
        return hidden[placed(order, device)]

    def _run(self, ids: Sequence[int], positions: Sequence[int], tree: Tree) -> torch.Tensor:
        """Final hidden states (T, width) of tokens that see what a tree lets them see."""
        device = self.model.device
        output = self._body()(
            input_ids=placed([ids], device),
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),  # so that none is made
            position_ids=placed([positions], device),
            use_cache=False,
            tree=tree,
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def _refuse_long(self, tokens: int) -> None:
        if self._window is not None and tokens > self._window:
            raise TeacherError(
                f"{self.name} looks back {self._window} tokens in some of its layers, and a prompt with passage and query "
                f"has {tokens}; lower relabel.passage_tokens (it is {self.passage_tokens}), or take another teacher"
            )

    def _preamble(self, prompt: Prompt) -> KeysAndValues:
        """Keys and values of the prompt's preamble, one pair a layer: each (1, heads, P, width of a head)."""
        if prompt.hash not in self._caches:
            ids = self.tokens.cut(prompt).preamble
            cache = DynamicCache()
            with torch.inference_mode():
                self._body()(
                    input_ids=torch.tensor([ids], device=self.model.device), past_key_values=cache, use_cache=True
                )
            self.usage.read += len(ids)
            self._caches[prompt.hash] = [(layer.keys, layer.values) for layer in cast("list[Any]", cache.layers)]
        return self._caches[prompt.hash]

    def _body(self) -> Any:
        return self.model.base_model

    def _unlike_alone(self) -> str:
        """What is wrong with the tree: whether it can be read, with the scores of whole texts, also where a text grows."""
        try:
            self._refuse_unlike()
            return "" if self._grows_alike() else "a text that grows in a slot gets other scores than alone"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a kernel or a model makes of it: with a mask it is tried again
            return f"{type(error).__name__}: {error}".splitlines()[0]

    @torch.inference_mode()
    def _refuse_unlike(self) -> None:
        """Hold what is read off a pack against the model's own logits of the whole text, query by query."""
        cut = self.tokens.cut(KNOWN_PROMPT)
        try:
            [row] = self.score(KNOWN_PROMPT, [KNOWN_GROUP])
        finally:
            self._forget(KNOWN_PROMPT)
        for query, (total, count) in zip(self._known_queries(), row, strict=True):
            own = self._alone(self._known_context(cut), query)
            if abs(own - total) > TOLERATED * count:
                raise TeacherError(
                    f"{self.name} ({type(self.model).__name__}) gives other scores when queries share a passage than when "
                    f"they are asked alone ({total / count:.2f} a token, not {own / count:.2f}), so it cannot be used here; "
                    "serve it and take it with openai:, or take another teacher"
                )

    def _forget(self, prompt: Prompt) -> None:
        self._caches.pop(prompt.hash, None)
        self.usage = self.tokens.usage = Usage()

    def _known_queries(self) -> list[list[int]]:
        return self.tokens.data([f" {text}" for text in KNOWN_GROUP.queries])

    def _known_context(self, cut: Cut) -> list[int]:
        [passage] = self.tokens.data([f" {KNOWN_GROUP.passage}"])
        return cut.preamble + passage[: self.passage_tokens] + cut.middle

    def _alone(self, context: list[int], query: list[int]) -> float:
        """Log-probability of a query after its context, by the model's own logits of the whole text."""
        ids = torch.tensor([context + query], device=self.model.device)
        logits = self.model(input_ids=ids, use_cache=False).logits[0].float()  # (T, V)
        table = torch.log_softmax(logits[len(context) - 1 : -1], dim=-1)
        return float(table.gather(1, ids[0, len(context) :, None]).sum())

    @torch.inference_mode()
    def _grows_alike(self) -> bool:
        """Whether a text that grows by a token at a time in a slot is read as it is alone, and after another has ended."""
        cut = self.tokens.cut(KNOWN_PROMPT)
        context, queries = self._known_context(cut), self._known_queries()
        state = self._begin(KNOWN_PROMPT, [context[len(cut.preamble) :]] * 2, len(queries[1]))
        hidden, total = state.begin()[1], 0.0
        for place, token in enumerate(queries[1]):
            total += float(self.output.logprobs(hidden[None], torch.tensor([token], device=hidden.device)))
            if place == 0:
                state.keep([1])
            hidden = state.grow([token])[0]
        self._forget(KNOWN_PROMPT)
        return abs(total - self._alone(context, queries[1])) <= TOLERATED * len(queries[1])

    # --- generation

    @torch.inference_mode()
    def _decode(self, prompt: Prompt, bodies: list[list[int]], sampling: Sampling) -> list[str]:
        state = self._begin(prompt, bodies, sampling.max_new_tokens)
        self.usage.read += sum(map(len, bodies))
        return self.writer.write(state, self.output.logits, prompt.stop, sampling, self.usage)

    def _begin(self, prompt: Prompt, bodies: list[list[int]], more: int) -> Growing:
        """Texts of one preamble that begin with these bodies, and grow by so many tokens at most."""
        preamble = self._preamble(prompt)
        if self._kernel is not None and self._by_slots(prompt, max(map(len, bodies)) + more):
            return Slotted(self._run, preamble, bodies, more, self.pack_tokens, self._kernel)
        return Padded(self._body(), preamble, bodies, self.tokenizer.pad_token_id or 0)

    def _by_slots(self, prompt: Prompt, tokens: int) -> bool:
        """Whether texts of so many tokens after the preamble are written in slots, where a token sees all before it."""
        return self.by_tree and self._in_window(prompt, tokens)

    def _in_window(self, prompt: Prompt, tokens: int) -> bool:
        return self._window is None or len(self.tokens.cut(prompt).preamble) + tokens <= self._window


class OutputLayer:
    """A model's output layer, perhaps in another precision (``head``), and what its family makes of the logits."""

    def __init__(self, model: Any, head: nn.Module | None) -> None:
        self._own = model.get_output_embeddings()
        self.head: Any = head or self._own
        config = model.config.get_text_config()
        self.scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
        self.scale /= getattr(config, "logits_scaling", None) or 1.0
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)

    def logprobs(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of ``targets`` (R,) or (R, L), float32 of that shape, by the states (R, width) that predict.

        The targets' own logits are exact, in float32, and part of the normaliser; the others' are as precise as the head,
        and their errors cancel in a sum over the vocabulary.
        """
        output = self._own
        wanted = targets if targets.ndim == 2 else targets[:, None]
        parts = []
        for start in range(0, len(hidden), READ_ROWS):
            rows = hidden[start : start + READ_ROWS]
            ids = wanted[start : start + READ_ROWS]
            logits = torch.einsum("rd,rld->rl", rows.float(), output.weight[ids].float())  # (r, L)
            if output.bias is not None:
                logits = logits + output.bias[ids].float()
            logits = self._final(logits)
            everything = self.logits(rows).scatter_(1, ids, logits)  # (r, V)
            parts.append(logits - torch.logsumexp(everything, dim=-1, keepdim=True))
        logprobs = torch.cat(parts) if parts else hidden.new_zeros((0, wanted.shape[1]), dtype=torch.float32)
        return logprobs if targets.ndim == 2 else logprobs[:, 0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(R, width) states to (R, vocabulary) logits, float32."""
        return self._final(self.head(hidden).float())

    def _final(self, logits: torch.Tensor) -> torch.Tensor:
        """What the model makes of its output layer's logits: some families scale or cap them."""
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def _window(config: Any, name: str) -> int | None:
    """How many tokens the most short-sighted layer looks back; none: all of them.

    Raises TeacherError: a layer has no attention, so that it cannot be told who sees whom.
    """
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        window: int | None = getattr(config, "sliding_window", None)
        return window
    if other := sorted(set(kinds) - {FULL, *WINDOWS}):
        raise TeacherError(
            f"{name} has layers of the kind {', '.join(other)}, by which queries cannot share a passage; serve it and take "
            "it with openai:, or take another teacher"
        )
    sizes = [getattr(config, WINDOWS[kind], None) for kind in set(kinds) - {FULL}]
    return min(filter(None, sizes), default=None)
