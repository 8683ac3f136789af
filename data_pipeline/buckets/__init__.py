"""Aspect-ratio buckets: batches of images of one shape, with every sample once an epoch."""
