"""Transformers over the positions of an image (latent diffusion, arXiv 2112.10752, 3.3 and E.2)."""

from typing import Literal

from pydantic import BaseModel, Field
from torch import Tensor, nn

from models.diffusion.control.encoding import Context
from models.diffusion.unet.blocks import BlockSettings
from models.nn.conditioning_cache import cached
from models.nn.convolution import zero_module
from models.nn.cpu.dispatch import attention, norm_act
from models.nn.linear import GegluLinear, Linear, SplitLinear


class SpatialTransformerConfig(BaseModel, frozen=True, extra="forbid"):
    """`depth` blocks of self-attention over the image, then cross-attention to the caption."""

    kind: Literal["transformer"] = "transformer"
    depth: int = Field(default=1, gt=0)


def in_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, width) to (B, heads, L, C)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


class CrossAttention(nn.Module):
    """softmax(q k / sqrt(head width)) v, keys and values from a context (arXiv 1706.03762, eq. 1).

    Without biases, but for the output's.
    """

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width, bias=False)
        self.pair = SplitLinear(context, width, 2, bias=False)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, width) with a context (B, M, context) to (B, L, width).

        `mask` (B, M) bool says which positions of the context count; None: all.
        """
        key, value = cached(self, context, self._read)
        query = in_heads(self.query(x), self.heads)
        mixed = attention(query, key, value, causal=False, mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _read(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, (B, heads, M, C) each."""
        key, value = (in_heads(each, self.heads).contiguous() for each in self.pair(context))
        return key, value


class FullAttention(nn.Module):
    """Self-attention over all positions; no biases but the output's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = SplitLinear(width, width, 3, bias=False)
        self.out = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) to (B, L, width)."""
        query, key, value = (in_heads(each, self.heads) for each in self.qkv(x))
        mixed = attention(query, key, value, causal=False)
        return self.out(mixed.transpose(1, 2).flatten(2))


class GatedFeedForward(nn.Module):
    """Linear to twice 4 x width, one half times the exact gelu of the other, linear back (GEGLU).

    arXiv 2002.05202, eq. 6.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = SplitLinear(width, 4 * width, 2)
        self.out = GegluLinear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        return self.out(self.hidden.together(x))


class SpatialBlock(nn.Module):
    """x + self-attention, then + cross-attention, then + feed-forward, each of a layer norm."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = FullAttention(width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, heads, context)
        self.forward_norm = nn.LayerNorm(width)
        self.feed_forward = GatedFeedForward(width)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(B, L, width) with a context (B, M, context) to (B, L, width)."""
        x = x + self.self_attention(self.self_norm(x))
        x = x + self.cross_attention(self.cross_norm(x), *context)
        return x + self.feed_forward(self.forward_norm(x))


class SpatialTransformer(nn.Module):
    """x + linear(blocks(linear(norm x))) over an image's positions; the last linear starts at 0.

    The group norm's epsilon is 1e-6, whatever that of the other blocks is, as in the published
    networks.
    """

    def __init__(
        self, width: int, heads: int, settings: BlockSettings, *, context: int, depth: int
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(settings.groups, width, eps=1e-6)
        self.enter = Linear(width, width)
        self.blocks = nn.ModuleList(SpatialBlock(width, heads, context) for _ in range(depth))
        self.out = Linear(width, width)
        zero_module(self.out)

    def forward(self, x: Tensor, vector: Tensor, context: Context) -> Tensor:
        """(B, width, H, W) and the tokens (B, L, context) to (B, width, H, W)."""
        tokens = self.enter(norm_act(self.norm, x, silu=False).flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = block(tokens, context)
        return x + self.out(tokens).transpose(1, 2).view(x.shape)
