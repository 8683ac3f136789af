"""Edits of images with trained systems."""
