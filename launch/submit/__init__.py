"""Pipelines as SLURM jobs."""
