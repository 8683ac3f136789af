"""CLIP embeddings of images as a condition (unCLIP, arXiv 2204.06125, 2.1)."""

from dataclasses import replace
from typing import Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mezzotint.common.embedding_scaling import EmbeddingScaling
from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.control.encoding import Caption
from models.diffusion.schedules.discrete import CosineBetasConfig, DiscreteSchedule
from models.nn import initialization
from models.nn.conditioning_cache import cached_of
from models.nn.embedding import sinusoidal_embedding


class EmbeddingNoiseConfig(BaseModel, frozen=True, extra="forbid"):
    """Noise on embeddings whose level the network reads (Stable unCLIP).

    Level k of `schedule.steps` is the schedule after k + 1 steps.
    """

    schedule: DiscreteSchedule = DiscreteSchedule(betas=CosineBetasConfig())

    def add(self, embedding: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Normalised embeddings (B, D) at levels (B,) int64, with standard normal noise (B, D)."""
        time = (level.double() + 1) / self.schedule.steps
        at = self.schedule.at(time)
        kept = at.alpha[:, None].to(embedding.dtype) * embedding
        return kept + at.sigma[:, None].to(embedding.dtype) * noise

    def condition(
        self,
        condition: Condition,
        embedding: Tensor,
        level: Tensor,
        noise: Tensor,
        scaling: EmbeddingScaling,
    ) -> Condition:
        """The condition with noisy embeddings and their level; the arguments as of `add`.

        The mean that `scaling` took from them is put back, so that a dropped one is 0 in CLIP's
        units.
        """
        noised = scaling.uncentred(self.add(embedding, level, noise))
        return replace(condition, image_embedding=noised, embedding_level=level)


class ImageEmbeddingConfig(BaseModel, frozen=True, extra="forbid"):
    """The network reads `Condition.image_embedding`."""

    dim: int = Field(gt=0)
    """Of the embedding."""
    tokens: int = Field(default=4, ge=0)
    """Tokens of cross-attention that are made of one embedding."""
    noise: EmbeddingNoiseConfig | None = None
    """Embeddings come with noise, and the network reads its level; `tokens` is then 0."""

    @model_validator(mode="after")
    def _no_noisy_tokens(self) -> Self:
        if self.noise is not None and self.tokens:
            raise ValueError("noise: of an embedding that joins the time's vector alone; tokens: 0")
        return self

    def build(self, vector: int, context: int | None) -> "ImageEmbedding | NoisyImageEmbedding":
        if self.noise is not None:
            return NoisyImageEmbedding(self, vector)
        return ImageEmbedding(self, vector, context)


def embedding_noise_of(network: object) -> EmbeddingNoiseConfig | None:
    """The noise on embeddings whose level a network reads, if it reads any."""
    reads = getattr(getattr(network, "config", None), "image_embedding", None)
    return reads.noise if isinstance(reads, ImageEmbeddingConfig) else None


class ImageEmbedding(nn.Module):
    """An embedding as a part of the time's vector, and as tokens of attention.

    Rows without one take a learned vector in its place, which starts at 0. `context` is the width
    of the tokens; with None there are none.
    """

    def __init__(self, config: ImageEmbeddingConfig, vector: int, context: int | None) -> None:
        super().__init__()
        self.config = config
        self.null = nn.Parameter(torch.empty(config.dim))
        initialization.constant(self.null, 0.0)
        self.vector = nn.Linear(config.dim, vector)
        if context is not None:
            self.tokens = nn.Linear(config.dim, config.tokens * context)

    def forward(self, condition: Condition) -> Tensor:
        """What is added to the time's vector: (B, vector)."""
        return self.vector(self.read(condition))

    def context(self, condition: Condition) -> Tensor:
        """The tokens (B, tokens, context); the token is the fast axis of the projection."""
        given = self.tokens(self.read(condition))
        return given.view(len(given), -1, self.config.tokens).transpose(1, 2)

    def prepend(self, condition: Condition, caption: Caption) -> Caption:
        """The caption after the tokens of the embedding; all of those count."""

        def joined() -> tuple[Tensor, Tensor | None]:
            tokens, mask = self.context(condition), caption.mask
            if caption.tokens is None:
                return tokens, None
            if mask is not None:
                mask = torch.cat([mask.new_ones(tokens.shape[:2]), mask], dim=1)
            return torch.cat([tokens, caption.tokens.to(tokens.dtype)], dim=1), mask

        read = (condition.image_embedding, condition.null_embedding, caption.tokens, caption.mask)
        tokens, mask = cached_of(self, read, joined)
        return Caption(tokens, caption.pooled, mask)

    def read(self, condition: Condition) -> Tensor:
        """The embeddings (B, D), the learned vector where there is none.

        Raises:
            UserError: the condition has none, or embeddings of another length.
        """
        given, null = _given(condition, self.config.dim)
        return torch.where(null[:, None], self.null, given.to(self.null.dtype))


class NoisyImageEmbedding(nn.Module):
    """A noisy embedding and its level as a part of the time's vector (Stable unCLIP).

    Both are concatenated, the level as a sinusoid, and go through linear, SiLU, linear. Rows
    without an embedding are 0, their level too.
    """

    def __init__(self, config: ImageEmbeddingConfig, vector: int) -> None:
        super().__init__()
        self.config = config
        self.hidden = nn.Linear(2 * config.dim, vector)
        self.out = nn.Linear(vector, vector)

    def forward(self, condition: Condition) -> Tensor:
        """What is added to the time's vector: (B, vector).

        Raises:
            UserError: the condition has no embeddings or no levels, or others than the network's.
        """
        dim, level = self.config.dim, condition.embedding_level
        given, null = _given(condition, dim)
        if level is None:
            raise UserError("this network needs the level of the noise on its image embeddings")
        wave = sinusoidal_embedding(level / 1000, dim)
        both = torch.cat([given.float(), wave], dim=1)
        read = torch.where(null[:, None], 0.0, both).to(self.hidden.weight.dtype)
        return self.out(F.silu(self.hidden(read)))


def _given(condition: Condition, dim: int) -> tuple[Tensor, Tensor]:
    """Image embeddings (B, dim), and which rows have none (B,).

    Raises:
        UserError: there are none, or of another length.
    """
    given, null = condition.image_embedding, condition.null_embedding
    if given is None:
        raise UserError("this network needs CLIP embeddings of images")
    if given.shape[1] != dim:
        raise UserError(
            f"this network takes embeddings of {dim} values, these have {given.shape[1]}"
        )
    if null is None:
        null = torch.zeros(len(given), dtype=torch.bool, device=given.device)
    return given, null
