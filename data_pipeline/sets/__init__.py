"""Sets on disk: their manifest, the index of each shard, and the whole contents for writing."""
