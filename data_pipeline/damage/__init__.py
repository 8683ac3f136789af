"""Samples that do not decode: errors by cause, other samples in their place."""
