"""Weights of guided-diffusion's UNet (ADM), and of latent diffusion's, which has its names.

`input_blocks`, `middle_block`, `output_blocks`, `time_embed`, `label_emb` and `out`. Classes,
learned variances and upsamplers included. A checkpoint of latent diffusion holds the same under
`model.diffusion_model.`, beside its first stage and its text encoder, which are left out here.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from mezzotint.common.errors import UserError
from models.conversion import Weight, as_convolution, export_state, import_state, layer
from models.diffusion.unet.blocks import AttentionBlock, PlainResampling, ResidualBlock
from models.diffusion.unet.layout import (
    heads_first,
    indexed_blocks,
    refuse_absent,
    residual,
    skeleton,
    spatial,
)
from models.diffusion.unet.network import UNet, UNetConfig
from models.diffusion.unet.spatial import SpatialTransformer

PREFIX = "model.diffusion_model."
_NAMES = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "modulation": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
    "skip": "skip_connection",
}


def from_guided_diffusion(weights: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """The state dict of `config`'s network from one with the names of guided-diffusion.

    Raises:
        UserError: weights do not fit, or guided-diffusion has no such network.
    """
    inside = {
        name.removeprefix(PREFIX): value
        for name, value in weights.items()
        if name.startswith(PREFIX)
    }
    network = skeleton(config)
    return import_state(_layout(network), network, inside or weights)


def to_guided_diffusion(weights: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """The inverse: our state dict under their names."""
    return export_state(_layout(skeleton(config)), weights)


def flags(config: UNetConfig) -> dict[str, object]:
    """The settings of their `create_model` or `UNetModel` that make the same network."""
    low = config.low_resolution
    found: dict[str, object] = {
        "image_size": config.image_size,
        "in_channels": config.image_channels * (1 if low is None else 2),
        "model_channels": config.channels,
        "out_channels": config.image_channels * config.process.outputs,
        "num_res_blocks": config.depth,
        "attention_resolutions": [config.image_size // side for side in config.attention],
        "dropout": config.dropout,
        "channel_mult": [int(each) if each == int(each) else each for each in config.multipliers],
        "num_classes": None if config.classes is None else config.classes + config.null_class,
        "num_heads": config.heads or 1,
        "num_head_channels": -1 if config.heads else config.head_width,
        "use_scale_shift_norm": config.modulation == "scale_shift",
        "resblock_updown": config.resampling == "residual",
    }
    if config.transformer is None:
        return found
    return found | {
        "use_spatial_transformer": True,
        "transformer_depth": config.transformer.depth,
        "context_dim": config.context,
    }


def _layout(network: UNet) -> list[Weight]:
    refuse(network.config)
    found = [*encoder_layout(network), *decoder_layout(network)]
    if network.config.classes is not None:
        found.append(Weight("label.weight", ("label_emb.weight",)))
    return found


def encoder_layout(network: UNet) -> list[Weight]:
    """The time's layers, the way down and the middle."""
    found = [
        *layer("time.hidden", "time_embed.0"),
        *layer("time.out", "time_embed.2"),
        *layer("stem", "input_blocks.0.0"),
    ]
    for number, index, block in indexed_blocks(network.down):
        theirs = f"input_blocks.{number + 1}.{index}"
        found += _block(block, f"down.{number}.blocks.{index}", theirs, "op")
    for index, block in enumerate(network.middle.blocks):
        found += _block(block, f"middle.blocks.{index}", f"middle_block.{index}", "conv")
    return found


def decoder_layout(network: UNet) -> list[Weight]:
    """The way up and the last layers."""
    found = [*layer("norm", "out.0"), *layer("out", "out.2")]
    for number, index, block in indexed_blocks(network.up):
        theirs = f"output_blocks.{number}.{index}"
        found += _block(block, f"up.{number}.blocks.{index}", theirs, "conv")
    return found


def refuse(config: UNetConfig) -> None:
    """Raises UserError for what guided-diffusion and latent diffusion do not have."""
    refuse_absent(config, "guided-diffusion", absent(config))


def absent(config: UNetConfig) -> dict[str, bool]:
    """Settings that neither guided-diffusion nor latent diffusion has: whether they are used."""
    return {
        "model.resampling: convolution_end": config.resampling == "convolution_end",
        "model.freq_shift: 1": config.freq_shift == 1,
        "model.middle_attention: false": not config.middle_attention,
    }


def _block(block: nn.Module, ours: str, theirs: str, resampling: str) -> Iterator[Weight]:
    match block:
        case ResidualBlock():
            yield from residual(block, ours, theirs, _NAMES)
        case AttentionBlock():
            yield from _attention(block, ours, theirs)
        case SpatialTransformer():
            yield from spatial(block, ours, theirs, linear=False)
        case PlainResampling():
            yield from layer(f"{ours}.conv", f"{theirs}.{resampling}")
        case _:
            raise UserError(f"{ours}: guided-diffusion has no such block")


def _attention(block: AttentionBlock, ours: str, theirs: str) -> Iterator[Weight]:
    """Queries, keys and values lie head by head there."""
    width, heads = block.norm.num_channels, block.attention.heads
    yield from layer(f"{ours}.norm", f"{theirs}.norm")
    weight = heads_first(width, heads, as_convolution(1))
    yield Weight(f"{ours}.attention.qkv.weight", (f"{theirs}.qkv.weight",), weight)
    yield Weight(f"{ours}.attention.qkv.bias", (f"{theirs}.qkv.bias",), heads_first(width, heads))
    yield from layer(f"{ours}.attention.out", f"{theirs}.proj_out", as_convolution(1))
