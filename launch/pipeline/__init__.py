"""Pipelines: stages that read each other's directories, run on this machine."""
