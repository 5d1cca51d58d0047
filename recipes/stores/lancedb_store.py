"""LanceDB, embedded in this process: a folder, or an object store such as s3://bucket/path.

    python recipes/stores/lancedb_store.py VECTORS MODEL "how do I merge two dicts" --source guide.md

The search compares all vectors until the table gets an index: `table.create_index("cosine", vector_column_name="embedding")`.
"""

import lancedb
import numpy as np
import pyarrow as pa
from gecko_vectors import Hit, Vectors, ask

NAME = "gecko"


class Store:
    """A table of the columns id, title, text, source and embedding."""

    def __init__(self, place: str) -> None:
        self.base = lancedb.connect(place)

    def load(self, vectors: Vectors) -> None:
        """Merge the rows by id."""
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.matrix.ravel()), vectors.matrix.shape[1])
        rows = pa.Table.from_pylist(vectors.rows).append_column("embedding", column)
        table = self.base.create_table(NAME, schema=rows.schema, exist_ok=True)
        merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.when_not_matched_by_source_delete().execute(rows)

    def search(self, vector: np.ndarray, k: int = 10, source: str | None = None) -> list[Hit]:
        """The nearest passages, best first; of a source if it is named."""
        query = self.base.open_table(NAME).search(vector).distance_type("cosine")
        if source is not None:
            query = query.where("source = '" + source.replace("'", "''") + "'")  # before the search, not after it
        found = query.limit(k).to_list()
        return [Hit(**{key: row[key] for key in Hit._fields[:-1]}, score=1 - row["_distance"]) for row in found]


def main(arguments: list[str] | None = None) -> None:
    """Load, ask, print."""
    ask(__doc__, "lancedb", arguments)


if __name__ == "__main__":
    main()
