"""From files to passages: readers, chunking, de-duplication, and the built-in corpus."""

from gecko.corpus.chunk import Chunking, split_long
from gecko.corpus.ingest import ingest, ingest_shards
from gecko.corpus.readers import SUPPORTED, Reader, read_source

__all__ = ["SUPPORTED", "Chunking", "Reader", "ingest", "ingest_shards", "read_source", "split_long"]
