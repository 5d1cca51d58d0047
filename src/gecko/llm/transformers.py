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

- Control text and data are tokenised apart, so borders do not move with the passage and no control token is ever parsed
  out of a passage. A space before a slot belongs to the data (` how`, not ` ` + `how`), as in running text.
- Query likelihood and relevance can be read in one pass over one prompt: the query's tokens, and the label after them.
- Only the positions that are read go through the output layer, in float32 from there on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any, Protocol, cast

import torch
from jinja2 import TemplateError
from torch import nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from gecko.device import device_memory
from gecko.errors import TeacherError
from gecko.llm.base import NOTHING, Group, Judgement, LanguageModel, Sampling, Usage, cut_at_stop
from gecko.llm.tree import NAME, Kernel, KeysAndValues, Pack, Slots, Tree, kernel_for, offer_tree, placed
from gecko.prompts import Prompt

NUCLEUS = 256  # the nucleus of top-p sampling is looked for among so many of the likeliest tokens
# A family of models may make its logits or read its masks in ways of its own: each is asked this, once, in both ways.
KNOWN_PROMPT = Prompt("known", "completion", "Read.\n\nPassage: {passage}\nQuery: {query}", (), (), (), (), "known")
KNOWN_GROUP = Group("The cat sat on the mat, and the dog lay beside it.", ("Who sat on the mat?", "a dog beside a cat"))
TOLERATED = 0.15  # of a token's log-probability: packs are rounded otherwise in half precision
FULL = "full_attention"
WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}  # kind of layer: setting
CACHE_SHARE = (
    0.2  # of the memory, for keys and values while texts are written; without slots they are copied as they grow
)
PADDED_TOKENS = 32_768  # of padded bodies that are read at once, as far as 32 of them are not more
READ_ROWS = 256  # rows of the output layer computed together: 256 x 152k x 6 bytes = 230 MB


@dataclass(frozen=True)
class _Cut:
    """A prompt's control text as token ids; the slots lie between."""

    preamble: list[int]
    middle: list[int]
    end: list[int]
    space_before_passage: bool
    space_before_second: bool
    has_second: bool


@dataclass(frozen=True)
class _Branches:
    """One group as token ids: the passage with the text up to the query, and one tail a query."""

    index: int
    first: int
    passage: list[int]
    tails: list[list[int]]

    def __len__(self) -> int:
        return len(self.passage) + sum(map(len, self.tails))


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
        self._head: Any = head or cast("Any", model).get_output_embeddings()
        self.model.requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.identity = identity
        self.passage_tokens = passage_tokens
        self.pack_tokens = pack_tokens
        self.usage = Usage()
        self._cuts: dict[str, _Cut] = {}
        self._caches: dict[str, KeysAndValues] = {}
        self._lasts: dict[int, str] = {}  # tokens as texts
        config: Any = model.config.get_text_config()
        self._window = _window(config, name)
        self._kernel = kernel or kernel_for(model)
        self.no_tree = ""
        self._scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
        self._scale /= getattr(config, "logits_scaling", None) or 1.0
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)
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
        read = self._read(prompt, groups, query=False, labels=self._label_ids(prompt))
        return [[found.labels for found in row] for row in read]

    def judge(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[Judgement]]:
        """See :class:`gecko.llm.base.LanguageModel`."""
        return self._read(prompt, groups, query=True, labels=self._label_ids(prompt))

    @torch.inference_mode()
    def _read(
        self, prompt: Prompt, groups: Sequence[Group], *, query: bool, labels: list[int]
    ) -> list[list[Judgement]]:
        """One pass over all groups that reads the query's tokens, the labels after the prompt's end, or both."""
        if not prompt.has_query:
            raise TeacherError(f"prompt {prompt.name!r} has no {{query}}, so there is nothing to score; add it")
        results = [[NOTHING] * len(group.queries) for group in groups]
        end = len(self._cut(prompt).end) if labels else 0
        before: Callable[[], None] | None = None
        for pack in self._packs(prompt, groups, with_end=bool(labels)):
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
        pack: list["_Branches"],
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
            likelihoods = self._token_logprobs(hidden[placed(rows, device)], placed(targets, device))
        if labels:
            wanted = placed(labels, device).expand(len(finals), -1)
            answers = self._token_logprobs(hidden[placed(finals, device)], wanted)

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
        bodies = self._bodies(self._cut(prompt), passages, variables)
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
        return [len(ids) for ids in self._data_ids(texts)]

    # --- prompts to tokens

    def _cut(self, prompt: Prompt) -> _Cut:
        if prompt.hash not in self._cuts:
            text = prompt.text
            if prompt.form == "chat":
                if not self.tokenizer.chat_template:
                    raise TeacherError(f"{self.name} has no chat template, and prompt {prompt.name!r} needs one")
                messages = [{"role": role, "content": content} for role, content in prompt.messages]
                try:
                    text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
                except TemplateError as error:
                    raise TeacherError(
                        f"the chat template of {self.name} refuses prompt {prompt.name!r}: {error}; "
                        "give a prompt file without a system message in its place (prompts.generate, query_likelihood, "
                        "relevance or rate)"
                    ) from error
            before, _, after = text.partition("{passage}")
            middle, second, end = after.partition(prompt.slot)
            start = (
                [] if prompt.form == "chat" else list(self.tokenizer("")["input_ids"])
            )  # the BOS, where there is one
            preamble = start + self._control_ids(before.removesuffix(" "))
            if not preamble:
                raise TeacherError(
                    f"prompt {prompt.name!r}: no text stands before {{passage}}; write some, a word will do"
                )
            self._cuts[prompt.hash] = _Cut(
                preamble=preamble,
                middle=self._control_ids(middle.removesuffix(" ") if second else middle),
                end=self._control_ids(end),
                space_before_passage=before.endswith(" "),
                space_before_second=bool(second) and middle.endswith(" "),
                has_second=bool(second),
            )
        return self._cuts[prompt.hash]

    def _control_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _data_ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
        return [list(ids) for ids in encoded["input_ids"]]

    def _passage_ids(self, cut: _Cut, passages: Sequence[str]) -> list[list[int]]:
        space = " " if cut.space_before_passage else ""
        # A token is at least one character, and rarely more than a dozen: no need to tokenise a megabyte for 256 tokens.
        limit = 16 * self.passage_tokens
        encoded = self._data_ids([space + passage[:limit] for passage in passages])
        self.usage.truncated += sum(
            len(ids) > self.passage_tokens or len(passage) > limit
            for ids, passage in zip(encoded, passages, strict=True)
        )
        return [ids[: self.passage_tokens] for ids in encoded]

    def _bodies(self, cut: _Cut, passages: Sequence[str], variables: Sequence[str]) -> list[list[int]]:
        """What follows the preamble when a text is to be written for each passage."""
        bodies = [ids + cut.middle for ids in self._passage_ids(cut, passages)]
        if not cut.has_second:
            return bodies
        space = " " if cut.space_before_second else ""
        asked = self._data_ids([space + text for text in variables or [""] * len(passages)])
        return [body + ids + cut.end for body, ids in zip(bodies, asked, strict=True)]

    def _label_ids(self, prompt: Prompt) -> list[int]:
        ids = [self._control_ids(label)[0] for label in prompt.labels]
        if len(set(ids)) != len(ids) or len(ids) < 2:
            raise TeacherError(
                f"labels {', '.join(prompt.labels) or '(none)'} of prompt {prompt.name!r} do not begin with different tokens "
                f"for {self.name}; choose other labels"
            )
        return ids

    # --- packing

    def _packs(self, prompt: Prompt, groups: Sequence[Group], *, with_end: bool) -> Iterator[list[_Branches]]:
        cut = self._cut(prompt)
        passages = self._passage_ids(cut, [group.passage for group in groups])
        space = " " if cut.space_before_second else ""
        flat = self._data_ids([space + query for group in groups for query in group.queries])
        queries = iter(flat)
        pack: list[_Branches] = []
        size = 0
        for index, (group, passage) in enumerate(zip(groups, passages, strict=True)):
            body = passage + cut.middle
            tails = [next(queries) + (cut.end if with_end else []) for _ in group.queries]
            for part in self._fit(index, body, tails):
                if pack and size + len(part) > self.pack_tokens:
                    yield pack
                    pack, size = [], 0
                pack.append(part)
                size += len(part)
        if pack:
            yield pack

    def _fit(self, index: int, body: list[int], tails: list[list[int]]) -> Iterator[_Branches]:
        """Cut a group that is larger than a pack into several; each reads the passage again."""
        chosen: list[list[int]] = []
        first, size = 0, len(body)
        for tail in tails:
            if chosen and size + len(tail) > self.pack_tokens:
                yield _Branches(index, first, body, chosen)
                first, chosen, size = first + len(chosen), [], len(body)
            chosen.append(tail)
            size += len(tail)
        yield _Branches(index, first, body, chosen)

    def _forward(self, prompt: Prompt, pack: list[_Branches]) -> torch.Tensor:
        """Final hidden states of a pack: (tokens, width)."""
        preamble = self._preamble(prompt)
        if self._kernel is not None:
            return self._forward_by_tree(preamble, pack, self._kernel)
        ids, mask, positions = self._tree(pack, preamble[0][0].shape[-2])
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

    def _forward_by_tree(self, preamble: KeysAndValues, pack: list[_Branches], kernel: Kernel) -> torch.Tensor:
        """The same without a mask: bodies first, tails after them, and the states back in the order of the pack."""
        past, device = preamble[0][0].shape[-2], self.model.device
        bodies = [len(branches.passage) for branches in pack]
        tails = [[len(tail) for tail in branches.tails] for branches in pack]
        ids = [token for branches in pack for token in branches.passage]
        positions = [past + place for body in bodies for place in range(body)]
        order: list[int] = []
        body, tail = 0, len(ids)
        for branches in pack:
            depth, size = len(branches.passage), len(branches) - len(branches.passage)
            order += [*range(body, body + depth), *range(tail, tail + size)]
            body, tail = body + depth, tail + size
            ids += chain.from_iterable(branches.tails)
            positions += [past + depth + place for one in branches.tails for place in range(len(one))]
        self._refuse_long(1 + max(positions))
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

    def _tree(self, pack: list[_Branches], past: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A pack below a preamble of P tokens: ids (1, T), who sees whom (1, 1, T, P + T), positions (1, T)."""
        ids: list[int] = []
        positions: list[int] = []
        group_of: list[int] = []
        branch_of: list[int] = []
        for number, branches in enumerate(pack):
            depth = past + len(branches.passage)
            ids += branches.passage
            positions += range(past, depth)
            group_of += [number] * len(branches.passage)
            branch_of += [-1] * len(branches.passage)
            for place, tail in enumerate(branches.tails):
                ids += tail
                positions += range(depth, depth + len(tail))
                group_of += [number] * len(tail)
                branch_of += [place] * len(tail)
        self._refuse_long(1 + max(positions))
        device = self.model.device
        group = torch.tensor(group_of, device=device)
        branch = torch.tensor(branch_of, device=device)
        order = torch.arange(len(ids), device=device)
        sees = (
            (group[:, None] == group[None, :])
            & ((branch[None, :] == -1) | (branch[:, None] == branch[None, :]))
            & (order[:, None] >= order[None, :])
        )  # (T, T)
        mask = torch.cat([torch.ones(len(ids), past, dtype=torch.bool, device=device), sees], dim=1)
        return torch.tensor([ids], device=device), mask[None, None], torch.tensor([positions], device=device)

    def _preamble(self, prompt: Prompt) -> KeysAndValues:
        """Keys and values of the prompt's preamble, one pair a layer: each (1, heads, P, width of a head)."""
        if prompt.hash not in self._caches:
            ids = self._cut(prompt).preamble
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

    def _token_logprobs(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of tokens, float32.

        Args:
            hidden: (R, width) states that predict.
            targets: (R,) or (R, L) token ids.

        Returns:
            The same shape as ``targets``. The targets' own logits are exact, in float32, and part of the normaliser; the
            others' are as precise as the head, and their errors cancel in a sum over the vocabulary.
        """
        output: Any = self.model.get_output_embeddings()
        wanted = targets if targets.ndim == 2 else targets[:, None]
        parts = []
        for start in range(0, len(hidden), READ_ROWS):
            rows = hidden[start : start + READ_ROWS]
            ids = wanted[start : start + READ_ROWS]
            logits = torch.einsum("rd,rld->rl", rows.float(), output.weight[ids].float())  # (r, L)
            if output.bias is not None:
                logits = logits + output.bias[ids].float()
            logits = self._final(logits)
            everything = self._final(self._head(rows).float()).scatter_(1, ids, logits)  # (r, V)
            parts.append(logits - torch.logsumexp(everything, dim=-1, keepdim=True))
        logprobs = torch.cat(parts) if parts else hidden.new_zeros((0, wanted.shape[1]), dtype=torch.float32)
        return logprobs if targets.ndim == 2 else logprobs[:, 0]

    def _final(self, logits: torch.Tensor) -> torch.Tensor:
        """What the model makes of its output layer's logits: some families scale or cap them."""
        if self._scale != 1:
            logits = logits * self._scale
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)

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
        cut = self._cut(KNOWN_PROMPT)
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
        self._cuts.pop(prompt.hash, None)
        self._caches.pop(prompt.hash, None)
        self.usage = Usage()

    def _known_queries(self) -> list[list[int]]:
        return self._data_ids([f" {text}" for text in KNOWN_GROUP.queries])

    def _known_context(self, cut: _Cut) -> list[int]:
        [passage] = self._data_ids([f" {KNOWN_GROUP.passage}"])
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
        cut = self._cut(KNOWN_PROMPT)
        context, queries = self._known_context(cut), self._known_queries()
        state = self._begin(KNOWN_PROMPT, [context[len(cut.preamble) :]] * 2, len(queries[1]))
        hidden, total = state.begin()[1], 0.0
        for place, token in enumerate(queries[1]):
            total += float(self._token_logprobs(hidden[None], torch.tensor([token], device=hidden.device)))
            if place == 0:
                state.keep([1])
            hidden = state.grow([token])[0]
        self._forget(KNOWN_PROMPT)
        return abs(total - self._alone(context, queries[1])) <= TOLERATED * len(queries[1])

    # --- generation

    @torch.inference_mode()
    def _decode(self, prompt: Prompt, bodies: list[list[int]], sampling: Sampling) -> list[str]:
        state = self._begin(prompt, bodies, sampling.max_new_tokens)
        generators = [torch.Generator().manual_seed(seed) for seed in sampling.seeds]
        written: list[list[int]] = [[] for _ in bodies]
        texts = [""] * len(bodies)
        alive = list(range(len(bodies)))
        self.usage.read += sum(map(len, bodies))
        ends, may_stop = self._end_ids(), self._may_stop(prompt.stop)
        hidden = state.begin()  # (B, width)
        for step in range(sampling.max_new_tokens):
            chosen = self._draw(self._final(self._head(hidden).float()), [generators[row] for row in alive], sampling)
            self.usage.written += len(alive)
            last = step == sampling.max_new_tokens - 1
            keep = []
            for place, (row, token) in enumerate(zip(alive, chosen, strict=True)):
                written[row].append(token)
                stopped = False
                if last or may_stop(token):
                    texts[row], stopped = self._cut_at_stop(written[row], prompt.stop)
                if token in ends:
                    texts[row], _ = self._cut_at_stop(written[row][:-1], prompt.stop)
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

    def _begin(self, prompt: Prompt, bodies: list[list[int]], more: int) -> "_Growing":
        """Texts of one preamble that begin with these bodies, and grow by so many tokens at most."""
        if self._kernel is not None and self._by_slots(prompt, max(map(len, bodies)) + more):
            return _Slotted(self, prompt, bodies, more, self._kernel)
        return _Padded(self, prompt, bodies)

    def _by_slots(self, prompt: Prompt, tokens: int) -> bool:
        """Whether texts of so many tokens after the preamble are written in slots, where a token sees all before it."""
        return self.by_tree and self._in_window(prompt, tokens)

    def _in_window(self, prompt: Prompt, tokens: int) -> bool:
        return self._window is None or len(self._cut(prompt).preamble) + tokens <= self._window

    def _may_stop(self, stops: Sequence[str]) -> Callable[[int], bool]:
        """Whether a text can come to its first stop string with a token: not if that has no last letter of one."""
        visible = all(stop[-1:] == "\n" or ("!" <= stop[-1:] <= "~") for stop in stops)
        if not visible:
            return lambda _: True  # part of a letter, or white space that a token alone may be written without
        lasts, known = {stop[-1] for stop in stops}, self._lasts

        def may_stop(token: int) -> bool:
            if token not in known:
                known[token] = str(self.tokenizer.decode([token], skip_special_tokens=False))
            return not lasts.isdisjoint(known[token])

        return may_stop

    def _cut_at_stop(self, tokens: list[int], stops: Sequence[str]) -> tuple[str, bool]:
        return cut_at_stop(str(self.tokenizer.decode(tokens, skip_special_tokens=False)), stops)

    def _end_ids(self) -> set[int]:
        config: Any = self.model.generation_config
        ends = config.eos_token_id if config is not None else None
        return set(ends if isinstance(ends, list) else [ends]) | {self.tokenizer.eos_token_id}

    @staticmethod
    def _draw(logits: torch.Tensor, generators: list[torch.Generator], sampling: Sampling) -> list[int]:
        """One token a row; a row's draw depends on its own generator only."""
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


class _Growing(Protocol):
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


class _Padded:
    """Bodies padded to one length, with a mask; keys and values grow and shrink with the batch."""

    def __init__(self, lm: TransformersLM, prompt: Prompt, bodies: list[list[int]]) -> None:
        preamble, device, rows = lm._preamble(prompt), lm.model.device, len(bodies)
        past, width, pad = preamble[0][0].shape[-2], max(map(len, bodies)), lm.tokenizer.pad_token_id or 0
        self._body = lm._body()
        self._ids = torch.tensor([[pad] * (width - len(body)) + body for body in bodies], device=device)  # (B, W)
        real = torch.tensor([[False] * (width - len(body)) + [True] * len(body) for body in bodies], device=device)
        self._seen = torch.cat([torch.ones(rows, past, dtype=torch.bool, device=device), real], dim=1)
        self._positions = past + (real.long().cumsum(dim=1) - 1).clamp(min=0)
        self._cache = DynamicCache(
            [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in preamble]
        )

    def begin(self) -> torch.Tensor:
        output = self._body(
            input_ids=self._ids, attention_mask=self._seen, position_ids=self._positions,
            past_key_values=self._cache, use_cache=True,
        )  # fmt: skip
        hidden: torch.Tensor = output.last_hidden_state[:, -1]
        return hidden

    def keep(self, places: list[int]) -> None:
        index = torch.tensor(places, device=self._seen.device)
        self._cache.batch_select_indices(index)
        self._seen, self._positions = self._seen[index], self._positions[index]

    def grow(self, tokens: list[int]) -> torch.Tensor:
        self._ids = torch.tensor([[token] for token in tokens], device=self._seen.device)
        self._positions = self._positions[:, -1:] + 1
        self._seen = torch.cat([self._seen, self._seen.new_ones(len(tokens), 1)], dim=1)
        return self.begin()


class _Slotted:
    """Bodies end to end, and each text in a slot of its own: no padding, no mask, nothing copied as texts grow and end."""

    def __init__(self, lm: TransformersLM, prompt: Prompt, bodies: list[list[int]], more: int, kernel: Kernel) -> None:
        preamble, lengths = lm._preamble(prompt), [len(body) for body in bodies]
        self._lm, self._bodies, self._past = lm, bodies, preamble[0][0].shape[-2]
        self._slots = Slots(preamble, lengths, max(lengths) + more, lm.model.device, kernel)
        self._rows = list(range(len(bodies)))

    def begin(self) -> torch.Tensor:
        found, first, size = [], 0, 0
        for row, body in enumerate(self._bodies):
            if size and size + len(body) > self._lm.pack_tokens:
                found.append(self._read(first, row))
                first, size = row, 0
            size += len(body)
        return torch.cat([*found, self._read(first, len(self._bodies))])

    def _read(self, first: int, last: int) -> torch.Tensor:
        """Last states of some of the bodies, which fill a pack."""
        bodies = self._bodies[first:last]
        ids = [token for body in bodies for token in body]
        positions = [self._past + place for body in bodies for place in range(len(body))]
        hidden = self._lm._run(ids, positions, self._slots.begin(range(first, last)))
        return hidden[placed([end - 1 for end in accumulate(map(len, bodies))], hidden.device)]

    def keep(self, places: list[int]) -> None:
        self._rows = [self._rows[place] for place in places]

    def grow(self, tokens: list[int]) -> torch.Tensor:
        return self._lm._run(tokens, self._slots.grow(self._rows), self._slots)


def _window(config: Any, name: str) -> int | None:
    """How many tokens the most short-sighted layer looks back; none: all of them.

    Raises:
        TeacherError: a layer has no attention, so that it cannot be told who sees whom.
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
