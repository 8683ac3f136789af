"""Derived sets: what is encoded of the images and captions of a set."""
