"""Image-text pairs as webdataset shards: writing, checking, ordering and streaming them."""
