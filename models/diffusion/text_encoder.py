"""Transformers over captions for a diffusion network: GLIDE's and latent diffusion's."""

from typing import Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from models.checks import require_multiple
from models.nn import initialization
from models.nn.embedding import LearnedPositionEmbedding
from models.nn.transformer import Block


class TextEncoderConfig(BaseModel, frozen=True, extra="forbid"):
    """GLIDE's (arXiv 2112.10741, 2.1) has width 2048, 24 layers, 32 heads, 128 tokens of 50,257.

    Latent diffusion's (arXiv 2112.10752, E.2.1) has width 1280, 32 layers, 8 heads of 64 features,
    77 tokens of a vocabulary of 30,522.
    """

    form: Literal["glide", "ldm"] = "glide"
    """`ldm`: no vector of the whole caption, no vectors of their own for padding positions, and
    queries, keys and values without biases."""

    vocab: int = Field(gt=1)
    length: int = Field(gt=0)
    width: int = Field(default=512, gt=0)
    layers: int = Field(default=16, gt=0)
    heads: int = Field(default=8, gt=0)
    head_width: int | None = Field(default=None, gt=0)
    """Features of a head; by default width / heads."""

    @property
    def pools(self) -> bool:
        """Whether there is a vector of the whole caption."""
        return self.form == "glide"

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.head_width is None:
            require_multiple("width", self.width, "heads", self.heads)
        return self

    def build(self) -> "TextEncoder":
        return TextEncoder(self)


class TextFeatures(NamedTuple):
    """The features of captions."""

    tokens: Tensor
    """(B, L, width): one vector per token."""
    pooled: Tensor | None
    """(B, width): one vector per caption, that of its last position; None in the form `ldm`."""


class TextEncoder(nn.Module):
    """Bidirectional attention over all positions, padding (token 0) included.

    In GLIDE's form every padding position has a learned vector of its own.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.token = nn.Embedding(config.vocab, width)
        self.position = LearnedPositionEmbedding(config.length, width)
        if config.form == "glide":
            self.pad = LearnedPositionEmbedding(config.length, width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.heads,
                config.head_width or width // config.heads,
                causal=False,
                dropout=0.0,
                gelu="none",
                qkv_bias=config.form == "glide",
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        initialization.normal(self.token.weight, 0.02)

    def forward(self, text: Tensor) -> TextFeatures:
        """Captions (B, L) int64 to their features."""
        length = text.shape[1]
        tokens = self.token(text) + self.position(0, length)
        if self.config.form == "glide":
            tokens = torch.where((text == 0)[..., None], self.pad(0, length), tokens)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return TextFeatures(tokens, tokens[:, -1] if self.config.pools else None)
