"""Weights of other code, and averages of checkpoints."""
