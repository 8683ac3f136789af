"""Diffusion: mathematics that takes any callable, and the networks that are trained with it."""
