"""From files to passages: readers, chunking, de-duplication, and the built-in corpus."""

from gecko.corpus.chunk import split_long
from gecko.corpus.ingest import ingest
from gecko.corpus.readers import SUPPORTED, read_source

__all__ = ["SUPPORTED", "ingest", "read_source", "split_long"]
