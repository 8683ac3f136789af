"""Images that are counted, since they may not be meant as they are."""

ELONGATED = 10.0
"""Aspect ratio above which an image is counted as elongated."""
TINY = 16
"""Pixels of a side below which an image is counted as tiny."""
