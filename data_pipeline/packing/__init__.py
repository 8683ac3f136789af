"""Images and captions from folders, tables and tars, written as shard sets."""
