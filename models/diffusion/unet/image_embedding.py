"""CLIP embeddings of images as a condition (unCLIP, arXiv 2204.06125, 2.1)."""

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.control.encoding import Caption
from models.nn import initialization
from models.nn.conditioning_cache import cached_of


class ImageEmbeddingConfig(BaseModel, frozen=True, extra="forbid"):
    """The network reads `Condition.image_embedding`."""

    dim: int = Field(gt=0)
    """Of the embedding."""
    tokens: int = Field(default=4, ge=0)
    """Tokens of cross-attention that are made of one embedding."""

    def build(self, vector: int, context: int | None) -> "ImageEmbedding":
        return ImageEmbedding(self, vector, context)


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
        given, null = condition.image_embedding, condition.null_embedding
        if given is None:
            raise UserError("this network needs CLIP embeddings of images")
        if given.shape[1] != self.config.dim:
            raise UserError(
                f"this network takes embeddings of {self.config.dim} values, "
                f"these have {given.shape[1]}"
            )
        if null is None:
            null = torch.zeros(len(given), dtype=torch.bool, device=given.device)
        return torch.where(null[:, None], self.null, given.to(self.null.dtype))
