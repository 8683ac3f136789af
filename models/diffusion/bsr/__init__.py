"""BSRGAN's shuffled degradation of images."""
