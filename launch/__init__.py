"""The command line, pipelines, SLURM and the result page: the top of the packages."""
