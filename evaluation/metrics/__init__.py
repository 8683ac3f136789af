"""Metrics and the feature networks they are computed on."""
