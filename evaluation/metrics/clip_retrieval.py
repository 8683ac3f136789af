"""CLIP retrieval: is an image closer to its own caption than to a number of wrong ones?"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from mezzotint.common.keyed_random import keyed_generator


def distractors(
    own: str, pool: Sequence[str], excluded: Collection[str], count: int, seed: int
) -> list[int]:
    """Indices into `pool` of `count` captions that are wrong for the image of `own`.

    They are a function of (seed, own) only, so all systems have the same ones. `excluded` are
    captions that would be right too (of pixel-identical real images).

    Raises:
        ValueError: fewer than `count` wrong captions in the pool.
    """
    wrong = [
        index for index, caption in enumerate(pool) if caption != own and caption not in excluded
    ]
    if len(wrong) < count:
        raise ValueError(f"{count} wrong captions wanted for {own!r}, the set has {len(wrong)}")
    rng = keyed_generator(seed, "distractors", own)
    order = torch.randperm(len(wrong), generator=rng, device="cpu")
    return [wrong[index] for index in order[:count].tolist()]


def retrieves(image: Tensor, own: Tensor, others: Tensor) -> bool:
    """Whether the embedding `image` (D,) is closer to `own` (D,) than to every row of `others`.

    A tie counts as a miss.
    """
    return bool((image @ own) > (others @ image).max())
