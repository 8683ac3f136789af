"""Test-time editing of a real image by a target text (Imagic, arXiv 2210.09276)."""
