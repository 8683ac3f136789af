"""Random numbers keyed by what they are for: no draw depends on the batch it falls into."""

import hashlib

import torch


def keyed_seed(seed: int, *labels: str | int) -> int:
    """A 63-bit seed from the evaluation's seed and labels, by SHA-256."""
    text = "\x1f".join([str(seed), *(str(label) for label in labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def keyed_generator(seed: int, *labels: str | int) -> torch.Generator:
    """A CPU generator of its own for these labels."""
    return torch.Generator().manual_seed(keyed_seed(seed, *labels))
