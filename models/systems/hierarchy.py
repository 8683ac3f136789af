"""VQ-VAE-2 as a generator: a prior per level, each knowing the coarser codes (1906.00446, 3.2).

A level's prior is the transformer prior; what it knows stands where its caption would: the tokens
of the caption, then the codes of the coarser levels, each level's numbered after what came before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from mezzotint.common.errors import UserError
from models.autoencoders.hierarchical import VQVAE2, VQVAE2Config
from models.autoregressive.decoding import Sampling, generate
from models.autoregressive.prior import Prior


@dataclass(frozen=True)
class LevelShape:
    """What a level's prior config has to be."""

    text_vocab: int
    text_length: int
    image_vocab: int
    grid: tuple[int, int]


def level_shapes(
    config: VQVAE2Config, text_vocab: int = 2, text_length: int = 1
) -> Mapping[str, LevelShape]:
    """The shape of each level's prior, the coarsest first.

    Token 0 is an empty place, and codes are numbered from `text_vocab` on. Without captions, as by
    default, a prior reads one empty place.
    """
    shapes = {}
    codes = config.bottleneck.codes
    known = 0
    for place, (name, grid) in enumerate(zip(config.names, config.grids, strict=True)):
        shapes[name] = LevelShape(text_vocab + place * codes, text_length + known, codes, grid)
        known += grid[0] * grid[1]
    return shapes


def level_prefix(
    text: Tensor, coarser: Sequence[Tensor], text_vocab: int, vocabularies: Sequence[int]
) -> Tensor:
    """What a level's prior reads: captions (B, T), then coarser codes (B, h, w), as (B, T + N)."""
    parts, first = [text], text_vocab
    for codes, vocab in zip(coarser, vocabularies, strict=True):
        parts.append(codes.flatten(1).long() + first)
        first += vocab
    return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class HierarchySamples:
    """Images and the codes they were decoded from."""

    images: Tensor
    """(B, 3, H, W) in [-1, 1]."""
    codes: tuple[Tensor, ...]
    """Of each level, the coarsest first, (B, h, w) int64."""


class Hierarchy:
    """Priors over all levels, the coarsest first, and the VQ-VAE-2 that decodes their codes."""

    def __init__(self, priors: Sequence[Prior], autoencoder: VQVAE2) -> None:
        """Compose; refuses priors of another shape.

        Raises:
            UserError: a prior's vocabularies, lengths or grid are not its level's.
        """
        config = autoencoder.config
        if len(priors) != config.levels:
            raise UserError(f"{config.levels} levels need as many priors, not {len(priors)}")
        top = priors[0].config
        self.text_vocab, self.text_length = top.text_vocab, top.text_length
        shapes = level_shapes(config, top.text_vocab, top.text_length)
        for prior, (name, shape) in zip(priors, shapes.items(), strict=True):
            found = prior.config
            ours = LevelShape(found.text_vocab, found.text_length, found.image_vocab, found.grid)
            if ours != shape:
                raise UserError(f"the prior of level {name} is {ours}; it must be {shape}")
        self.priors, self.autoencoder = tuple(priors), autoencoder

    @torch.no_grad()
    def sample(
        self, text: Tensor, rng: Generator, *, sampling: Sampling | Sequence[Sampling]
    ) -> HierarchySamples:
        """Draw an image for each caption (B, T): codes level by level, then the decoder.

        `sampling` is one each, or one for all levels, whose guidance is then the top level's.

        Raises:
            UserError: guidance below the top, where an empty caption would hide the codes too.
        """
        if isinstance(sampling, Sampling):
            plain = sampling.model_copy(update={"guidance": 1.0})
            settings: Sequence[Sampling] = [sampling, *[plain] * (len(self.priors) - 1)]
        else:
            settings = sampling
        if any(each.guidance != 1.0 for each in settings[1:]):
            raise UserError("guidance acts on the top level's caption only; set it to 1 below")
        vocab = self.autoencoder.config.bottleneck.codes
        codes: list[Tensor] = []
        for prior, chosen in zip(self.priors, settings, strict=True):
            prefix = level_prefix(text, codes, self.text_vocab, [vocab] * len(codes))
            drawn = generate(prior, prefix, rng, sampling=chosen)
            codes.append(drawn.view(len(text), *prior.config.grid))
        return HierarchySamples(self.autoencoder.decode(codes), tuple(codes))
