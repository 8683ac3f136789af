"""Transfers of shards from object storage."""
