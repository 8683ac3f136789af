"""CLIP score of images and captions, and its baseline of shuffled captions."""

from collections.abc import Sequence

import torch
from torch import Tensor

DEFINITION = "100 x cosine similarity of image and caption embeddings, mean, not clipped at 0"
"""Hessel et al., arXiv 2104.08718, eq. 1 with w = 100 and without the clipping at 0, which would
lift the baseline of shuffled captions."""


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """100 x cosine of unit-norm embeddings (n, D) and (n, D): (n,)."""
    return 100.0 * (images * texts).sum(dim=-1)


def shuffled(captions: Sequence[str], rng: torch.Generator) -> list[int]:
    """For every caption the index of a different one: a random cycle through all of them.

    Equal captions that meet in the cycle keep their own score; with distinct captions every index
    gets another caption. A single caption has no other and keeps its own.
    """
    order = torch.randperm(len(captions), generator=rng, device=rng.device).tolist()
    partner = [0] * len(captions)
    for index, other in zip(order, order[1:] + order[:1], strict=True):
        partner[index] = other
    return partner
