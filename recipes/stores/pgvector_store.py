"""PostgreSQL with the extension pgvector.

    python recipes/stores/pgvector_store.py VECTORS MODEL "how do I merge two dicts" --place postgresql://me@host/db

The search compares all vectors until the table gets an index:

    CREATE INDEX ON gecko USING hnsw (embedding vector_cosine_ops);
    SET hnsw.iterative_scan = strict_order;  -- in each session, or a filter leaves fewer rows than were asked for
"""

import numpy as np
import psycopg
from gecko_vectors import Hit, Vectors, ask
from pgvector.psycopg import register_vector

TABLE = """
CREATE TABLE IF NOT EXISTS gecko (id text PRIMARY KEY, title text, text text, source text, embedding vector({}))
"""
UPSERT = """
INSERT INTO gecko VALUES (%(id)s, %(title)s, %(text)s, %(source)s, %(embedding)s) ON CONFLICT (id) DO UPDATE
SET title = EXCLUDED.title, text = EXCLUDED.text, source = EXCLUDED.source, embedding = EXCLUDED.embedding
"""
NEAREST = "SELECT id, title, text, source, 1 - (embedding <=> %(vector)s) FROM gecko"
ORDER = " ORDER BY embedding <=> %(vector)s LIMIT %(k)s"


class Store:
    """The table ``gecko`` with the columns id, title, text, source and embedding; ``place`` is the address of a database."""

    def __init__(self, place: str) -> None:
        self.base = psycopg.connect(place, autocommit=True)
        self.base.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(self.base)

    def load(self, vectors: Vectors) -> None:
        """Insert or update every row and delete the others, in one transaction."""
        rows = ({**row, "embedding": vector} for row, vector in zip(vectors.rows, vectors.matrix, strict=True))
        with self.base.transaction():
            self.base.execute(TABLE.format(vectors.matrix.shape[1]))
            self.base.cursor().executemany(UPSERT, rows)
            self.base.execute("DELETE FROM gecko WHERE id <> ALL(%s)", ([row["id"] for row in vectors.rows],))

    def search(self, vector: np.ndarray, k: int = 10, source: str | None = None) -> list[Hit]:
        """The nearest passages, best first; of a source if it is named."""
        among = "" if source is None else " WHERE source = %(source)s"
        given = {"vector": vector, "k": k, "source": source}
        return [Hit(*row) for row in self.base.execute(NEAREST + among + ORDER, given)]


def main(arguments: list[str] | None = None) -> None:
    """Load, ask, print."""
    ask(__doc__, "pgvector", arguments)


if __name__ == "__main__":
    main()
