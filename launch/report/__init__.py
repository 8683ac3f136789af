"""The result page of a pipeline."""
