"""The UNet's blocks with their positions, as converters walk them."""

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from mezzotint.common.errors import UserError
from models.conversion import (
    SAME,
    Weight,
    WeightMapping,
    as_convolution,
    concatenated,
    layer,
    permuted_rows,
)
from models.diffusion.unet.blocks import ResidualBlock, Stage
from models.diffusion.unet.network import UNet, UNetConfig
from models.diffusion.unet.spatial import SpatialTransformer


def refuse_absent(config: UNetConfig, code: str, others: Mapping[str, bool]) -> None:
    """Refuse what the other `code` does not have: what none of them has, and `others`.

    Raises:
        UserError: it names the key.
    """
    low = config.low_resolution
    there = {
        "model.text": config.text is not None,
        "model.inpainting": config.inpainting is not None,
        "model.image_embedding": config.image_embedding is not None,
        "model.size_embedding": config.size_embedding is not None,
        "model.text_embedding": config.text_embedding is not None,
        "model.features.projection": config.features is not None
        and config.features.projection is not None,
        "model.class_token": config.class_token is not None,
        "model.features without model.transformer": config.features is not None
        and config.transformer is None,
        "model.low_resolution.condition_on_noise_level": low is not None
        and low.condition_on_noise_level,
        **others,
    }
    for key, used in there.items():
        if used:
            raise UserError(f"{key}: {code} has no such network")


def skeleton(config: UNetConfig) -> UNet:
    """The network without memory."""
    with torch.device("meta"):
        return config.build()


def indexed_blocks(stages: nn.ModuleList) -> Iterator[tuple[int, int, nn.Module]]:
    """Every block with the number of its stage and its index there."""
    for number, stage in enumerate(stages):
        assert isinstance(stage, Stage)
        for index, block in enumerate(stage.blocks):
            yield number, index, block


def residual(
    block: ResidualBlock, ours: str, theirs: str, names: Mapping[str, str]
) -> Iterator[Weight]:
    """A residual block; `names` is what other code calls its layers."""
    for own, other in names.items():
        if own != "skip" or not isinstance(block.skip, nn.Identity):
            yield from layer(f"{ours}.{own}", f"{theirs}.{other}")


def spatial(block: SpatialTransformer, ours: str, theirs: str, *, linear: bool) -> Iterator[Weight]:
    """A spatial transformer; diffusers took its names from latent diffusion.

    `linear`: whether its first and last layers are linear there, and not convolutions.
    """
    edge = SAME if linear else as_convolution(2)
    yield from layer(f"{ours}.norm", f"{theirs}.norm")
    yield from layer(f"{ours}.enter", f"{theirs}.proj_in", edge)
    yield from layer(f"{ours}.out", f"{theirs}.proj_out", edge)
    for index in range(len(block.blocks)):
        own, other = f"{ours}.blocks.{index}", f"{theirs}.transformer_blocks.{index}"
        for norm, number in (("self_norm", 1), ("cross_norm", 2), ("forward_norm", 3)):
            yield from layer(f"{own}.{norm}", f"{other}.norm{number}")
        yield _projections(f"{own}.self_attention.qkv", f"{other}.attn1", "qkv")
        yield _projections(f"{own}.cross_attention.query", f"{other}.attn2", "q")
        yield _projections(f"{own}.cross_attention.pair", f"{other}.attn2", "kv")
        for attention, number in (("self_attention", 1), ("cross_attention", 2)):
            yield from layer(f"{own}.{attention}.out", f"{other}.attn{number}.to_out.0")
        yield from layer(f"{own}.feed_forward.hidden", f"{other}.ff.net.0.proj")
        yield from layer(f"{own}.feed_forward.out", f"{other}.ff.net.2")


def _projections(ours: str, theirs: str, parts: str) -> Weight:
    names = tuple(f"{theirs}.to_{part}.weight" for part in parts)
    return Weight(f"{ours}.weight", names, concatenated(len(parts)))


def heads_first(width: int, heads: int, then: WeightMapping = SAME) -> WeightMapping:
    """Rows that lie as (head, of query key value, feature) there and (of three, head, ...) here."""
    rows = torch.arange(3 * width, device="cpu").view(heads, 3, -1).transpose(0, 1).flatten()
    return permuted_rows(rows, then)
