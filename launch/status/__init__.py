"""The state of runs and pipelines, and their logs."""
