"""Ranks the passages that the page shows, with each model, at any number of dimensions."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gecko.core.progress import Ui
    from gecko.core.records import Passage
    from gecko.encoder import Embedder
    from gecko.encoder.vectors import Vectors


class PassageSearch:
    """n passages, as (title, text), and their vectors under each model: float32 (n, dim), unit rows."""

    def __init__(self, passages: Sequence[tuple[str, str]], vectors: "Mapping[str, Vectors]") -> None:
        self._passages = passages
        self._vectors = dict(vectors)
        self._lengths: dict[tuple[str, int], Vectors] = {}

    def __len__(self) -> int:
        return len(self._passages)

    def top(self, model: str, query: "Vectors", dim: int, k: int) -> list[dict[str, Any]]:
        """The best k passages (all if there are fewer) by the first ``dim`` dimensions, equal scores in passage order.

        The query is float32 (D,). Returns rank from 1, cosine, title and text of each, best first.
        """
        vectors = self._vectors[model][:, :dim]
        if (model, dim) not in self._lengths:
            self._lengths[model, dim] = np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
        scores = vectors @ query[:dim] / (self._lengths[model, dim] * max(float(np.linalg.norm(query[:dim])), 1e-12))
        best = np.argsort(-scores, kind="stable")[:k]
        return [
            {
                "rank": rank,
                "score": round(float(scores[place]), 6),
                "title": self._passages[place][0],
                "text": self._passages[place][1],
            }
            for rank, place in enumerate(best.tolist(), 1)
        ]


def embed_corpus(models: "Mapping[str, Embedder]", passages: "Sequence[Passage]", ui: "Ui") -> PassageSearch:
    """Embed passages with each model."""
    vectors = {}
    for name, model in models.items():
        ui.say(f"embedding {len(passages):,} passages with {name}")
        vectors[name] = model.passages(passages, progress=True)
    return PassageSearch([(passage.title, passage.text) for passage in passages], vectors)
