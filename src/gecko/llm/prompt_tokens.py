"""Prompts, passages and queries as tokens, and how groups are packed into one sequence.

Control text and data are tokenised apart, so borders do not move with the passage and no control token is ever parsed out of
a passage. A space before a slot belongs to the data (` how`, not ` ` + `how`), as in running text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from gecko.core.errors import TeacherError
from gecko.llm.base import Group, Usage
from gecko.prompts import Prompt


@dataclass(frozen=True)
class Cut:
    """A prompt's control text as token ids; the slots lie between."""

    preamble: list[int]
    middle: list[int]
    end: list[int]
    space_before_passage: bool
    space_before_second: bool
    has_second: bool


@dataclass(frozen=True)
class Branches:
    """One group as token ids: the passage with the text up to the query, and one tail a query."""

    index: int
    first: int
    passage: list[int]
    tails: list[list[int]]

    def __len__(self) -> int:
        return len(self.passage) + sum(map(len, self.tails))


class PromptTokens:
    """A tokenizer that knows of prompts; ``name`` is the model's in messages.

    Longer passages are cut to ``passage_tokens``, and counted in ``usage``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, passage_tokens: int, usage: Usage) -> None:
        self.tokenizer, self.name, self.passage_tokens, self.usage = tokenizer, name, passage_tokens, usage
        self._cuts: dict[str, Cut] = {}

    def cut(self, prompt: Prompt) -> Cut:
        """A prompt's control text.

        Raises:
            TeacherError: the model has no chat template for it, or one that refuses it, or nothing stands before the passage.
        """
        if known := self._cuts.get(prompt.hash):
            return known
        is_chat = prompt.form == "chat"
        text = self._chat(prompt) if is_chat else prompt.text
        before, _, after = text.partition("{passage}")
        middle, second, end = after.partition(prompt.slot)
        start = [] if is_chat else list(self.tokenizer("")["input_ids"])  # the BOS, where there is one
        preamble = start + self.control(before.removesuffix(" "))
        if not preamble:
            raise TeacherError(f"prompt {prompt.name!r}: no text stands before {{passage}}; write some, a word will do")
        made = self._cuts[prompt.hash] = Cut(
            preamble=preamble,
            middle=self.control(middle.removesuffix(" ") if second else middle),
            end=self.control(end),
            space_before_passage=before.endswith(" "),
            space_before_second=bool(second) and middle.endswith(" "),
            has_second=bool(second),
        )
        return made

    def _chat(self, prompt: Prompt) -> str:
        if not self.tokenizer.chat_template:
            raise TeacherError(f"{self.name} has no chat template, and prompt {prompt.name!r} needs one")
        messages = [{"role": role, "content": content} for role, content in prompt.messages]
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise TeacherError(
                f"the chat template of {self.name} refuses prompt {prompt.name!r}: {error}; "
                "give a prompt file without a system message in its place (prompts.generate, query_likelihood, "
                "relevance or rate)"
            ) from error

    def control(self, text: str) -> list[int]:
        """Token ids of a prompt's own text, in which control tokens are parsed."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def data(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of passages or queries, in which no control token is parsed."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
        return [list(ids) for ids in encoded["input_ids"]]

    def passages(self, cut: Cut, passages: Sequence[str]) -> list[list[int]]:
        """Passages that stand in a prompt, cut to length and then counted."""
        space = " " if cut.space_before_passage else ""
        # A token is at least one character, and rarely more than a dozen: no need to tokenise a megabyte for 256 tokens.
        limit = 16 * self.passage_tokens
        encoded = self.data([space + passage[:limit] for passage in passages])
        self.usage.truncated += sum(
            len(ids) > self.passage_tokens or len(passage) > limit
            for ids, passage in zip(encoded, passages, strict=True)
        )
        return [ids[: self.passage_tokens] for ids in encoded]

    def bodies(self, cut: Cut, passages: Sequence[str], variables: Sequence[str]) -> list[list[int]]:
        """What follows the preamble when a text is to be written for each passage."""
        bodies = [ids + cut.middle for ids in self.passages(cut, passages)]
        if not cut.has_second:
            return bodies
        space = " " if cut.space_before_second else ""
        asked = self.data([space + text for text in variables or [""] * len(passages)])
        return [body + ids + cut.end for body, ids in zip(bodies, asked, strict=True)]

    def labels(self, prompt: Prompt) -> list[int]:
        """The first token of each label. Raises TeacherError: two of them are the same, or there are fewer than two."""
        ids = [self.control(label)[0] for label in prompt.labels]
        if len(set(ids)) != len(ids) or len(ids) < 2:
            raise TeacherError(
                f"labels {', '.join(prompt.labels) or '(none)'} of prompt {prompt.name!r} do not begin with different tokens "
                f"for {self.name}; choose other labels"
            )
        return ids

    def packs(
        self, prompt: Prompt, groups: Sequence[Group], pack_tokens: int, *, with_end: bool
    ) -> Iterator[list[Branches]]:
        """Groups in packs of so many tokens at most; ``with_end``: the text after the query belongs to a tail."""
        cut = self.cut(prompt)
        passages = self.passages(cut, [group.passage for group in groups])
        space = " " if cut.space_before_second else ""
        queries = iter(self.data([space + query for group in groups for query in group.queries]))
        pack: list[Branches] = []
        size = 0
        for index, (group, passage) in enumerate(zip(groups, passages, strict=True)):
            body = passage + cut.middle
            tails = [next(queries) + (cut.end if with_end else []) for _ in group.queries]
            for part in _fit(index, body, tails, pack_tokens):
                if pack and size + len(part) > pack_tokens:
                    yield pack
                    pack, size = [], 0
                pack.append(part)
                size += len(part)
        if pack:
            yield pack


def _fit(index: int, body: list[int], tails: list[list[int]], pack_tokens: int) -> Iterator[Branches]:
    """Cut a group that is larger than a pack into several; each reads the passage again."""
    chosen: list[list[int]] = []
    first, size = 0, len(body)
    for tail in tails:
        if chosen and size + len(tail) > pack_tokens:
            yield Branches(index, first, body, chosen)
            first, chosen, size = first + len(chosen), [], len(body)
        chosen.append(tail)
        size += len(tail)
    yield Branches(index, first, body, chosen)


def masked(pack: list[Branches], past: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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


def bodies_first(pack: list[Branches], past: int) -> tuple[list[int], list[int], list[int]]:
    """Ids and positions for :mod:`gecko.llm.tree`, bodies first and tails after them; and where the pack's tokens lie."""
    ids = [token for branches in pack for token in branches.passage]
    positions = [past + place for branches in pack for place in range(len(branches.passage))]
    order: list[int] = []
    body, tail = 0, len(ids)
    for branches in pack:
        depth, size = len(branches.passage), len(branches) - len(branches.passage)
        order += [*range(body, body + depth), *range(tail, tail + size)]
        body, tail = body + depth, tail + size
        ids += chain.from_iterable(branches.tails)
        positions += [past + depth + place for one in branches.tails for place in range(len(one))]
    return ids, positions, order
