"""Vectors of whole files, and an index over a corpus that is built once and asked often."""

from gecko.search.bulk import BulkConfig, embed_rows, embed_to_folder, read_lines
from gecko.search.index import Hit, Index, IndexConfig, build_index, open_index

__all__ = [
    "BulkConfig",
    "Hit",
    "Index",
    "IndexConfig",
    "build_index",
    "embed_rows",
    "embed_to_folder",
    "open_index",
    "read_lines",
]
