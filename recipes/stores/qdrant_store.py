"""Qdrant, embedded in this process or as a server.

    python recipes/stores/qdrant_store.py VECTORS MODEL "how do I merge two dicts" --source guide.md
    python recipes/stores/qdrant_store.py VECTORS MODEL "…" --place http://localhost:6333

Points have the ids of passages as UUIDs, since Qdrant takes no other strings; the id itself is in the payload. Each point
says which load wrote it, so that points of earlier loads can be deleted.
"""

from uuid import NAMESPACE_URL, uuid4, uuid5

import numpy as np
from gecko_vectors import Hit, Vectors, ask
from qdrant_client import QdrantClient, models

NAME = "gecko"


class Store:
    """A collection; ``place`` is a folder or the address of a server."""

    def __init__(self, place: str) -> None:
        self.client = QdrantClient(url=place) if "://" in place else QdrantClient(path=place)

    def load(self, vectors: Vectors) -> None:
        """Write every point, then delete those of earlier loads."""
        if not self.client.collection_exists(NAME):
            size = vectors.matrix.shape[1]
            self.client.create_collection(NAME, models.VectorParams(size=size, distance=models.Distance.COSINE))
        load = str(uuid4())
        points = (
            models.PointStruct(
                id=str(uuid5(NAMESPACE_URL, row["id"])), vector=vector.tolist(), payload={**row, "load": load}
            )
            for row, vector in zip(vectors.rows, vectors.matrix, strict=True)
        )
        self.client.upload_points(NAME, points, wait=True)
        self.client.delete(NAME, models.Filter(must_not=[_equal("load", load)]))

    def search(self, vector: np.ndarray, k: int = 10, source: str | None = None) -> list[Hit]:
        """The nearest passages, best first; of a source if it is named."""
        among = None if source is None else models.Filter(must=[_equal("source", source)])
        found = self.client.query_points(NAME, vector.tolist(), limit=k, query_filter=among).points
        return [Hit(**{key: point.payload[key] for key in Hit._fields[:-1]}, score=point.score) for point in found]


def _equal(key: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))


def main(arguments: list[str] | None = None) -> None:
    """Load, ask, print."""
    ask(__doc__, "qdrant", arguments)


if __name__ == "__main__":
    main()
