"""Exponential moving averages of weights, kept while training or computed afterwards."""
