"""Layers and kernels that exist only to be fast on a CPU."""
