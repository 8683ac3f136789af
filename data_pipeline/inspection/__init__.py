"""Statistics of a set's samples."""
