"""SLURM: its commands, the cluster file, the job script, records of submitted jobs."""
