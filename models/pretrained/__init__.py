"""Pretrained open_clip checkpoints on disk."""
