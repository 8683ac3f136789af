"""Noise schedules, their marginals and the times of training."""
