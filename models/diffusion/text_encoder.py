"""A transformer over captions for a diffusion network (GLIDE, arXiv 2112.10741, 2.1)."""

from typing import NamedTuple, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from models.checks import require_multiple
from models.nn import initialization
from models.nn.embedding import LearnedPositionEmbedding
from models.nn.transformer import Block


class TextEncoderConfig(BaseModel, frozen=True, extra="forbid"):
    """GLIDE's has width 2048, 24 layers, 32 heads, 128 tokens of a vocabulary of 50,257."""

    vocab: int = Field(gt=1)
    length: int = Field(gt=0)
    width: int = Field(default=512, gt=0)
    layers: int = Field(default=16, gt=0)
    heads: int = Field(default=8, gt=0)

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        require_multiple("width", self.width, "heads", self.heads)
        return self

    def build(self) -> "TextEncoder":
        return TextEncoder(self)


class TextFeatures(NamedTuple):
    """The features of captions."""

    tokens: Tensor
    """(B, L, width): one vector per token."""
    pooled: Tensor
    """(B, width): one vector per caption, that of its last position."""


class TextEncoder(nn.Module):
    """Bidirectional attention; every padding position (token 0) has a learned vector of its own."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.token = nn.Embedding(config.vocab, width)
        self.position = LearnedPositionEmbedding(config.length, width)
        self.pad = LearnedPositionEmbedding(config.length, width)
        self.blocks = nn.ModuleList(
            Block(
                width, config.heads, width // config.heads, causal=False, dropout=0.0, gelu="none"
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        initialization.normal(self.token.weight, 0.02)

    def forward(self, text: Tensor) -> TextFeatures:
        """Captions (B, L) int64 to their features."""
        length = text.shape[1]
        embedded = self.token(text) + self.position(0, length)
        tokens = torch.where((text == 0)[..., None], self.pad(0, length), embedded)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return TextFeatures(tokens, tokens[:, -1])
