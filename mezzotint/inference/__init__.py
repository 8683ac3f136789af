"""Trained models as generators of images, and as encoders."""
