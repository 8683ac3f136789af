"""CLIP score and CLIP retrieval, always with the name and hash of the CLIP model that judged."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from mezzotint.common.keyed_random import keyed_generator

DEFINITION = "100 x cosine similarity of image and caption embeddings, mean, not clipped at 0"
"""Hessel et al., arXiv 2104.08718, eq. 1 with w = 100 and without the clipping at 0, which would
lift the baseline of shuffled captions."""


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """100 x cosine of unit-norm embeddings (n, D) and (n, D): (n,)."""
    return 100.0 * (images * texts).sum(dim=-1)


def shuffled(captions: Sequence[str], rng: torch.Generator) -> list[int]:
    """For every caption the index of a different one: a random cycle through all of them.

    Equal captions that meet in the cycle keep their own score; with distinct captions every place
    gets another caption. A single caption has no other and keeps its own.
    """
    order = torch.randperm(len(captions), generator=rng).tolist()
    partner = [0] * len(captions)
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        partner[here] = there
    return partner


def distractors(
    own: str, pool: Sequence[str], excluded: Collection[str], count: int, seed: int
) -> list[int]:
    """Indices into `pool` of `count` captions that are wrong for the picture of `own`.

    They are a function of (seed, own) only: both systems are asked the same questions. `excluded`
    are captions that would be right too (of pixel-identical real pictures).

    Raises:
        ValueError: fewer than `count` wrong captions in the pool.
    """
    wrong = [
        index for index, caption in enumerate(pool) if caption != own and caption not in excluded
    ]
    if len(wrong) < count:
        raise ValueError(f"{count} wrong captions wanted for {own!r}, the set has {len(wrong)}")
    order = torch.randperm(len(wrong), generator=keyed_generator(seed, "distractors", own))
    return [wrong[place] for place in order[:count].tolist()]


def retrieves(image: Tensor, own: Tensor, others: Tensor) -> bool:
    """Whether the embedding `image` (D,) is closer to `own` (D,) than to every row of `others`.

    A tie counts as a miss.
    """
    return bool((image @ own) > (others @ image).max())
