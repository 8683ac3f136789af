"""Attention under the masks of the prior: block by block, by FlexAttention, and dense.

All three take query, key and value (B, H, L, C) of the joint sequence: `prefix` positions of start
and caption, then any number of image positions. They differ in cost only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from models.autoregressive.patterns import Pattern, joint_allows, joint_mask
from models.autoregressive.rolling_kv_cache import RollingKVCache
from models.nn.cpu.dispatch import attention

FLEX_CAPABILITY = (8, 0)
"""The oldest GPU on which FlexAttention's kernels are used."""


@dataclass(frozen=True)
class SparseAttention:
    """The `nn.attention.AttentionPattern` of a layer of the prior.

    On a GPU that has the kernels FlexAttention skips what is masked. Elsewhere blocks do where that
    is faster, and otherwise every score is computed.
    """

    pattern: Pattern
    prefix: int
    positions: int
    """Image tokens of a whole grid."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(q k / sqrt(C)) v over the unmasked positions."""
        if flex_is_supported(query.device):
            return attend_flex(query, key, value, self.prefix, self.pattern)
        fast = blocks_are_faster(self.pattern, self.positions)
        return (attend_blocks if fast else attend_dense)(
            query, key, value, self.prefix, self.pattern
        )

    def new_cache(self, batch: int, heads: int, head_width: int) -> RollingKVCache:
        return RollingKVCache(self.pattern, self.prefix, self.positions, batch, heads, head_width)


def blocks_are_faster(pattern: Pattern, positions: int) -> bool:
    """Whether blocks are faster on a CPU: where a window is at most a quarter of the image.

    Measured forward and backward, fp32, heads of 64: with rows of 32 about 2.5 times as fast as
    dense, with rows of 8 and a kernel of 11, where the window is the whole image, a third as fast.
    """
    size = positions // pattern.width if pattern.transposed else pattern.width
    return 4 * (pattern.back + 1) * size <= positions


def flex_is_supported(device: torch.device) -> bool:
    """Whether FlexAttention's kernels run on this device."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FLEX_CAPABILITY


def attend_dense(
    query: Tensor, key: Tensor, value: Tensor, prefix: int, pattern: Pattern | None
) -> Tensor:
    """The reference: every score computed, those that are masked left out."""
    mask = joint_mask(pattern, prefix, query.shape[2], device=query.device)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def attend_blocks(
    query: Tensor, key: Tensor, value: Tensor, prefix: int, pattern: Pattern
) -> Tensor:
    """A block of the image, one row or column, reads the caption and the few blocks it reaches."""
    caption = attention(query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], causal=True)
    count = query.shape[2] - prefix
    if not count:
        return caption
    layout = BlockLayout(pattern, count)
    rows = layout.blocks(query[:, :, prefix:] * query.shape[-1] ** -0.5)
    keys = layout.windows(layout.blocks(key[:, :, prefix:]))
    values = layout.windows(layout.blocks(value[:, :, prefix:]))
    # the caption's keys serve all blocks: one product, not one per block
    read = rows.flatten(2, 3) @ key[:, :, :prefix].transpose(-1, -2)
    near = rows @ keys.transpose(-1, -2)
    near = near.masked_fill(~layout.mask(query.device), -torch.inf)
    weights = torch.cat([read.view(*near.shape[:-1], prefix), near], dim=-1).softmax(dim=-1)
    weights = weights.to(value.dtype)
    mixed = weights[..., :prefix].flatten(2, 3) @ value[:, :, :prefix]
    mixed = mixed + (weights[..., prefix:] @ values).flatten(2, 3)
    image = layout.raster(mixed.view(*rows.shape[:-1], -1))
    return torch.cat([caption, image], dim=2)


@dataclass(frozen=True)
class BlockLayout:
    """The first `count` positions of an image as blocks: rows, or columns of a transposed pattern.

    Positions beyond `count` that fill a block are cut off again.
    """

    pattern: Pattern
    count: int

    @property
    def rows(self) -> int:
        """Rows of the grid, the last of which may be incomplete."""
        return -(-self.count // self.pattern.width)

    def blocks(self, image: Tensor) -> Tensor:
        """(B, H, count, C) to (B, H, blocks, positions of a block, C)."""
        width = self.pattern.width
        whole = F.pad(image, (0, 0, 0, self.rows * width - self.count))
        grid = whole.reshape(*whole.shape[:2], self.rows, width, whole.shape[3])
        return grid.transpose(2, 3).contiguous() if self.pattern.transposed else grid

    def raster(self, blocks: Tensor) -> Tensor:
        """The inverse of `blocks`."""
        grid = blocks.transpose(2, 3) if self.pattern.transposed else blocks
        return grid.flatten(2, 3)[:, :, : self.count]

    def windows(self, blocks: Tensor) -> Tensor:
        """Each block after the `back` before it: (B, H, blocks, (back + 1) x size, C)."""
        back = self.pattern.back
        if not back:
            return blocks
        padded = F.pad(blocks, (0, 0, 0, 0, back, 0))
        count = blocks.shape[2]
        return torch.cat([padded[:, :, each : each + count] for each in range(back + 1)], dim=3)

    def mask(self, device: torch.device) -> Tensor:
        """Which positions of its window each position reads: (blocks, size, (back + 1) x size)."""
        back, total = self.pattern.back, self.rows * self.pattern.width
        grid = torch.arange(total, device=device).view(self.rows, self.pattern.width)
        query = grid.T if self.pattern.transposed else grid
        # positions before the image are numbered like those after it, which none reads
        padded = F.pad(query, (0, 0, back, 0), value=total)
        key = torch.cat([padded[each : each + len(query)] for each in range(back + 1)], dim=1)
        return self.pattern.allows(query[..., None], key[:, None])


def attend_flex(query: Tensor, key: Tensor, value: Tensor, prefix: int, pattern: Pattern) -> Tensor:
    """By FlexAttention, compiled on a GPU; on a CPU it runs without gradients, as a check."""
    mask = flex_mask(pattern, prefix, query.shape[2], query.device)
    kernel: Callable[..., Tensor] = flex_attention
    if flex_is_supported(query.device):
        kernel = compiled_flex()
    return kernel(query, key, value, block_mask=mask)


@lru_cache(maxsize=64)
def flex_mask(pattern: Pattern, prefix: int, length: int, device: torch.device) -> BlockMask:
    """The blocks of 128 x 128 scores that hold an unmasked one."""

    def reads(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return joint_allows(pattern, prefix, query, key)

    # cached: a mask made under inference mode could not be used in training afterwards
    with torch.inference_mode(mode=False):
        return create_block_mask(reads, None, None, length, length, device=str(device))


@lru_cache(maxsize=1)
def compiled_flex() -> Callable[..., Tensor]:
    """FlexAttention as a kernel; uncompiled it computes every score."""
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
    return compiled
