"""VQ-VAE-2: codes at several resolutions, coarse to fine (arXiv 1906.00446, 3.1)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Generator, Tensor, nn

from models.autoencoders.bottleneck import Latent, Penalty, Statistics
from models.autoencoders.protocols import FirstStage, Reconstruction
from models.autoencoders.quantizer import EmaVectorQuantizerConfig
from models.autoencoders.strided import StridedDecoder, StridedEncoder, StridedPyramid
from models.checks import require_multiple

NAMES = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}


class VQVAE2Config(BaseModel, frozen=True, extra="forbid"):
    """`levels` codebooks; the finest has the stride of `pyramid`, each coarser one twice that.

    The defaults are the paper's for 256 pixels: 32 x 32 top and 64 x 64 bottom codes of 512.
    """

    kind: Literal["vqvae2"] = "vqvae2"
    image_size: int = Field(default=256, gt=0)
    levels: Literal[2, 3] = 2
    channels: int = Field(default=64, gt=0)
    pyramid: StridedPyramid = StridedPyramid(width=128, halvings=2, blocks=2, residual_width=64)
    bottleneck: EmaVectorQuantizerConfig = EmaVectorQuantizerConfig(codes=512)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the levels, the coarsest first."""
        return NAMES[self.levels]

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per code of each level, each way, the coarsest first."""
        finest = self.pyramid.stride
        return tuple(finest * 2**up for up in reversed(range(self.levels)))

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each level's codes, the coarsest first."""
        return tuple((self.image_size // each,) * 2 for each in self.strides)

    @model_validator(mode="after")
    def _whole_grid(self) -> "VQVAE2Config":
        stride = self.strides[0]
        require_multiple("image_size", self.image_size, "the top level's stride", stride)
        return self

    def build(self) -> "VQVAE2":
        return VQVAE2(self)


class Level(nn.Module):
    """One codebook, with its encoder and the upsampling of the coarser levels' codes.

    A level below the top is quantised given the coarser codes, so that its own hold what is
    missing. `known` is the vectors of all codes so far, concatenated, at this level's resolution.
    """

    def __init__(self, config: VQVAE2Config, index: int) -> None:
        super().__init__()
        finest, coarsest = index == config.levels - 1, index == 0
        width, channels = config.pyramid.width, config.channels
        between = config.pyramid.model_copy(update={"halvings": 1, "patch": 1})
        self.encoder = StridedEncoder(
            config.pyramid if finest else between, 3 if finest else width, width
        )
        self.to_latent = nn.Conv2d(width + (0 if coarsest else channels), channels, 1)
        self.bottleneck = config.bottleneck.build(channels)
        known = index * channels
        self.guess = None if coarsest else StridedDecoder(between, known, channels)
        self.upsample = (
            None if coarsest else nn.ConvTranspose2d(known, known, 4, stride=2, padding=1)
        )

    def hidden(self, features: Tensor, known: Tensor | None) -> Tensor:
        """The quantiser's input, from the features and the next coarser level's `known`."""
        if self.guess is None or known is None:
            return self.to_latent(features)
        guess = self.guess(known).to(features.dtype)
        return self.to_latent(torch.cat([features, guess], dim=1))

    def extend(self, value: Tensor | None, known: Tensor | None) -> Tensor:
        """`known` upsampled, with this level's vectors (zeros for None)."""
        if self.upsample is None or known is None:
            assert value is not None
            return value
        up = self.upsample(known.to(self.upsample.weight.dtype))
        if value is None:
            value = torch.zeros_like(up[:, : self.to_latent.out_channels])
        return torch.cat([up, value.to(up.dtype)], dim=1)


class VQVAE2(nn.Module, FirstStage):
    """Images in [-1, 1] to codes of two or three levels and back."""

    penalty: Penalty = "codebook"

    def __init__(self, config: VQVAE2Config) -> None:
        super().__init__()
        self.config, self.image_size = config, config.image_size
        self.levels = nn.ModuleList(Level(config, index) for index in range(config.levels))
        self.decoder = StridedDecoder(config.pyramid, config.levels * config.channels, 3)

    def forward(self, image: Tensor, rng: Generator) -> Reconstruction:
        """Reconstruct (B, 3, H, W)."""
        latents: list[Latent] = []
        known: Tensor | None = None
        for level, features in zip(self._levels(), self._features(image), strict=True):
            latent = level.bottleneck(level.hidden(features, known), rng)
            latents.append(latent)
            known = level.extend(latent.value, known)
        assert known is not None
        read = self.decoder.features(known)
        return Reconstruction(self.decoder.project(read).float(), tuple(latents), read)

    def codes(self, image: Tensor) -> tuple[Tensor, ...]:
        """Codes of every level, the coarsest first, each (B, h, w) int64."""
        codes: list[Tensor] = []
        known: Tensor | None = None
        for level, features in zip(self._levels(), self._features(image), strict=True):
            found = level.bottleneck.tokens(level.hidden(features, known))
            codes.append(found)
            known = level.extend(level.bottleneck.lookup(found), known)
        return tuple(codes)

    def decode(self, codes: Sequence[Tensor]) -> Tensor:
        """Decode codes of the levels, the coarsest first, to (B, 3, H, W) in [-1, 1].

        Codes of finer levels that are not given count as zero vectors.
        """
        known: Tensor | None = None
        for index, level in enumerate(self._levels()):
            value = level.bottleneck.lookup(codes[index]) if index < len(codes) else None
            known = level.extend(value, known)
        assert known is not None
        return self.decoder(known).float().clamp(-1, 1)

    def reconstruct(self, image: Tensor) -> Tensor:
        return self.decode(self.codes(image))

    def code_arrays(self, image: Tensor) -> Mapping[str, Tensor]:
        return dict(zip(self.config.names, self.codes(image), strict=True))

    def vocabularies(self) -> Mapping[str, int]:
        return dict.fromkeys(self.config.names, self.config.bottleneck.codes)

    def last_gradient(self, features: Tensor, output: Tensor) -> Tensor:
        return self.decoder.last_gradient(features, output)

    def commit(self, seen: Sequence[Statistics], rng: Generator) -> int:
        return sum(
            level.bottleneck.commit(statistics, rng)
            for level, statistics in zip(self._levels(), seen, strict=True)
        )

    def _levels(self) -> list[Level]:
        return [level for level in self.levels if isinstance(level, Level)]

    def _features(self, image: Tensor) -> list[Tensor]:
        """Features of each level, the coarsest first: each reads those of the next finer one."""
        features: list[Tensor] = []
        x = image
        for level in reversed(self._levels()):
            x = level.encoder(x)
            features.insert(0, x)
        return features
