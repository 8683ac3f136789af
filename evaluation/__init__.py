"""Judging: sample sets, Fréchet distances, CLIP scores and reports, from model directories only."""
