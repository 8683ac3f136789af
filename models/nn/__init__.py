"""Layers shared by every network of this room."""
