"""`mezzotint conform`: checks of a trained run against faults of published training scripts."""
