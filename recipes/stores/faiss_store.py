"""A faiss file: the vectors in index.faiss, and the passages beside it in passages.json, in the same order.

    python recipes/stores/faiss_store.py VECTORS MODEL "how do I merge two dicts" --source guide.md

There is no server, and the search is exact. An index of faiss knows numbers and nothing else, so texts, ids and the
filter are in the second file. Loading again writes both anew.
"""

import json
from pathlib import Path

import faiss
import numpy as np
from gecko_vectors import Hit, Vectors, ask


class Store:
    """A folder with the two files."""

    def __init__(self, place: str) -> None:
        self.folder = Path(place)
        if (self.folder / "index.faiss").is_file():
            self._read()

    def load(self, vectors: Vectors) -> None:
        """Write both files."""
        index = faiss.IndexFlatIP(vectors.matrix.shape[1])  # unit vectors: the inner product is the cosine
        index.add(vectors.matrix)
        self.folder.mkdir(parents=True, exist_ok=True)
        faiss.write_index(index, str(self.folder / "index.faiss"))
        (self.folder / "passages.json").write_text(json.dumps(vectors.rows), encoding="utf-8")
        self._read()

    def _read(self) -> None:
        self.index = faiss.read_index(str(self.folder / "index.faiss"))
        self.rows = json.loads((self.folder / "passages.json").read_text(encoding="utf-8"))

    def search(self, vector: np.ndarray, k: int = 10, source: str | None = None) -> list[Hit]:
        """The nearest passages, best first; of a source if it is named."""
        among = None
        if source is not None:
            places = [place for place, row in enumerate(self.rows) if row["source"] == source]
            among = faiss.SearchParameters(sel=faiss.IDSelectorBatch(places))
        scores, found = self.index.search(vector[None], k, params=among)
        return [
            Hit(**self.rows[place], score=float(score))
            for score, place in zip(scores[0], found[0], strict=True)
            if place >= 0  # fewer than k are there
        ]


def main(arguments: list[str] | None = None) -> None:
    """Load, ask, print."""
    ask(__doc__, "faiss", arguments)


if __name__ == "__main__":
    main()
