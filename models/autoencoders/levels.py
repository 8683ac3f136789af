"""Shapes and prefixes of the priors over the levels of a VQ-VAE-2 (arXiv 1906.00446, 3.2).

The prior of a level is the transformer prior; its condition takes the place of a caption: the
tokens of the caption, then the codes of the coarser levels, each level's numbered after what came
before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.autoencoders.hierarchical import VQVAE2Config


@dataclass(frozen=True)
class LevelShape:
    """What the config of a level's prior has to be."""

    text_vocab: int
    text_length: int
    image_vocab: int
    grid: tuple[int, int]


def level_shapes(
    config: VQVAE2Config, text_vocab: int = 2, text_length: int = 1
) -> Mapping[str, LevelShape]:
    """The shape of each level's prior, the coarsest first.

    Token 0 is padding, and codes are numbered from `text_vocab` on. Without captions, as by
    default, a prior reads one padding token.
    """
    shapes = {}
    codes = config.bottleneck.codes
    known = 0
    for index, (name, grid) in enumerate(zip(config.names, config.grids, strict=True)):
        shapes[name] = LevelShape(text_vocab + index * codes, text_length + known, codes, grid)
        known += grid[0] * grid[1]
    return shapes


def level_prefix(
    text: Tensor, coarser: Sequence[Tensor], text_vocab: int, vocabularies: Sequence[int]
) -> Tensor:
    """The condition of a level's prior: captions (B, T), coarser codes (B, h, w), as (B, T + N)."""
    parts, first = [text], text_vocab
    for codes, vocab in zip(coarser, vocabularies, strict=True):
        parts.append(codes.flatten(1).long() + first)
        first += vocab
    return torch.cat(parts, dim=1)
