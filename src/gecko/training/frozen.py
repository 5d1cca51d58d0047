"""Passage vectors of the start model that a training takes as they are: only the side of the queries learns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import Tensor

from gecko.core.records import Example
from gecko.encoder.encode import encode_texts


@dataclass(frozen=True)
class FrozenPassages:
    """Rendered passages with their vectors, unit rows (texts, D); ``places`` has the row by text."""

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
