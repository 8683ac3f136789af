"""Indexing tars that are there already."""
