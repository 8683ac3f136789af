"""Which part of an image a sample shows, and in what shape."""
