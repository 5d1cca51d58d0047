"""A run folder, and who does the work of its shards."""
