"""Evaluation of trained models: sample sets, metrics and their results."""
