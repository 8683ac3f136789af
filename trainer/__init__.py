"""Training: recipes, tasks, the loop, DeepSpeed engines, checkpoints and tracking."""
