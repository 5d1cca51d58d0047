"""From rows to what the encoder reads: each distinct text of a batch once, in parts of nearly equal length.

Notable here:

- a text that stands in several places of a batch (a passage that is the positive of one row and the negative of
  another) is tokenised and encoded once; the labels tell each row where its texts are;
- the texts are sorted by length and cut into parts, each as wide as its longest text only: padding costs as much as
  words. A part costs a call, too, so they are cut where that saves most. Rows are drawn from all over the data as ever;
- nothing here is random, so a training that goes on after a stop sees the same parts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor

from gecko.core.records import Example
from gecko.encoder.encode import encode_texts

# What a forward and a backward call cost besides their tokens, in tokens: launching many small kernels is dear on an
# accelerator, and little beside the arithmetic on a processor.
CALL_TOKENS = {"cpu": 64}
CALL_TOKENS_ELSEWHERE = 8192


@dataclass(frozen=True)
class FrozenPassages:
    """Rendered passages with the start model's vectors, unit rows (texts, D), which a training takes as they are.

    ``places`` has the row by text.
    """

    places: Mapping[str, int]
    vectors: Tensor

    def of(self, texts: Sequence[str]) -> Tensor:
        """(n, D) vectors of some of the texts."""
        return self.vectors[[self.places[text] for text in texts]]


def freeze_passages(model: SentenceTransformer, examples: Sequence[Example], rows: Dataset) -> FrozenPassages:
    """Encode all passages of the rows once; a symmetric row has none, since both of its sides are queries.

    ``rows`` are the examples as :func:`gecko.training.to_dataset` made them, in the same order.
    """
    passages = rows.select([place for place, example in enumerate(examples) if not example.symmetric])
    columns = [passages[name] for name in passages.column_names if name not in ("query", "label")]
    texts = list(dict.fromkeys(text for column in columns for text in column))
    width = model.get_embedding_dimension()
    assert width is not None
    vectors = encode_texts(model, texts, width)
    return FrozenPassages({text: place for place, text in enumerate(texts)}, torch.from_numpy(vectors))


@dataclass
class Collator(SentenceTransformerDataCollator):
    """Makes a batch for :class:`gecko.training.GeckoLoss` of rows that :func:`gecko.training.to_dataset` made.

    Attributes:
        call_tokens: what a call costs besides its tokens, in tokens; more makes fewer, wider parts.
        part_tokens: a part has at most so many tokens, padding included, or one text; none: no bound.
        frozen: passages whose vectors stand for them; none: every text is encoded.
    """

    call_tokens: int = CALL_TOKENS_ELSEWHERE
    part_tokens: int | None = None
    frozen: FrozenPassages | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch: ``part0_input_ids`` and so on, and ``label`` with (2 + K + C) places of texts a row behind it.

        Frozen passages stand behind the parts, as ``frozen_sentence_embedding``.
        """
        columns = [name for name in features[0] if name not in self.valid_label_columns]
        known: dict[tuple[bool, str], int] = {}  # (whether its vector is frozen, text)
        place = torch.tensor(
            [[known.setdefault(self._key(name, row[name]), len(known)) for name in columns] for row in features]
        )
        encoded = [number for (held, _), number in known.items() if not held]
        texts = [text for held, text in known if not held]
        batch, order = make_parts(self.preprocess_fn, texts, self.call_tokens, self.part_tokens)
        at = torch.empty(len(known), dtype=torch.long)
        at[torch.tensor(encoded)[order]] = torch.arange(len(order))  # the inverse: where text i went
        if self.frozen is not None:
            held_at = [number for (held, _), number in known.items() if held]
            at[held_at] = torch.arange(len(order), len(known))
            batch["frozen_sentence_embedding"] = self.frozen.of([text for held, text in known if held])
        labels = torch.tensor([row["label"] for row in features])
        return {**batch, "label": torch.cat([labels, at[place]], dim=1)}

    def _key(self, column: str, text: str) -> tuple[bool, str]:
        return self.frozen is not None and column != "query" and text in self.frozen.places, text


def make_parts(
    preprocess: Callable[..., dict[str, Any]], texts: Sequence[str], call_tokens: int, part_tokens: int | None
) -> tuple[dict[str, Any], Tensor]:
    """Tokenise texts and cut them into parts.

    Returns:
        the features, with ``part0_``, ``part1_`` … in front of their names; and (texts,) integers: which text stands
        first, second, … when the parts are put behind each other.
    """
    features = preprocess(list(texts))
    mask = features.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or len(mask) != len(texts):
        # flattened inputs and static embeddings have no padding to save
        return {f"part0_{name}": value for name, value in features.items()}, torch.arange(len(texts))
    lengths, width = mask.sum(dim=1), mask.shape[1]  # mask: (texts, T)
    order = torch.argsort(lengths, descending=True, stable=True)
    ends = cuts(lengths[order].tolist(), call_tokens, part_tokens)
    batch: dict[str, Any] = {}
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        chosen = order[start:end]
        filled = mask[chosen].any(dim=0).nonzero()
        first, last = int(filled[0]), int(filled[-1]) + 1
        for name, value in features.items():
            if isinstance(value, Tensor) and value.ndim >= 1 and len(value) == len(texts):
                cut = value[chosen]
                batch[f"part{number}_{name}"] = (
                    cut[:, first:last] if value.ndim >= 2 and value.shape[1] == width else cut
                )
            else:
                batch[f"part{number}_{name}"] = value
    return batch, order


def cuts(lengths: Sequence[int], call_tokens: int, part_tokens: int | None) -> list[int]:
    """Where to cut texts, longest first, into parts so that padded tokens and calls together cost least.

    Exact: a part of n texts whose longest has t tokens costs n t, plus ``call_tokens`` for each call, of which it takes
    as many as keep each below ``part_tokens``. Only ends of runs of equal length need be tried.

    Args:
        lengths: of the texts, falling.
        call_tokens: cost of a call, in tokens.
        part_tokens: bound on a part's padded tokens; none: no bound. A text that alone has more is a part of its own.

    Returns:
        the end of each part; the last is ``len(lengths)``.
    """
    ends = [i for i in range(1, len(lengths) + 1) if i == len(lengths) or lengths[i] != lengths[i - 1]]
    starts = [0, *ends[:-1]]

    def rows_of(longest: int) -> int:
        return len(lengths) if part_tokens is None else max(1, part_tokens // max(1, longest))

    best = {0: (0.0, 0)}  # end: (cost up to it, start of the part that ends there)
    for end in ends:
        best[end] = min(
            (
                best[start][0]
                + lengths[start] * (end - start)
                + call_tokens * -(-(end - start) // rows_of(lengths[start])),
                start,
            )
            for start in starts
            if start < end
        )
    found: list[int] = []
    end = len(lengths)
    while end > 0:
        start = best[end][1]
        found += reversed([*range(start, end, rows_of(lengths[start]))[1:], end])
        end = start
    return found[::-1]
