"""Noise schedules, their marginals and the times that training draws."""
