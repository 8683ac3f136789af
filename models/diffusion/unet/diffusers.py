"""Weights of diffusers' `UNet2DModel` and `UNet2DConditionModel` (tested with version 0.42)."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from mezzotint.common.errors import UserError
from models.conversion import Weight, concatenated, export_state, import_state, layer
from models.diffusion.unet.blocks import AttentionBlock, PlainResampling, ResidualBlock
from models.diffusion.unet.layout import (
    indexed_blocks,
    refuse_absent,
    residual,
    skeleton,
    spatial,
)
from models.diffusion.unet.network import UNet, UNetConfig
from models.diffusion.unet.spatial import SpatialTransformer
from models.nn.attention import ContextAttention
from models.nn.embedding import sinusoidal_embedding

_NAMES = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "modulation": "time_emb_proj",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "skip": "conv_shortcut",
}
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What older files call the parts of an attention."""


def from_diffusers(
    weights: Mapping[str, Tensor], config: UNetConfig, *, sines_first: bool = False
) -> dict[str, Tensor]:
    """The state dict of `config`'s network from one with the names of diffusers.

    `sines_first`: the time embedding has its sines before its cosines there
    (`flip_sin_to_cos: false`).

    Raises:
        UserError: weights do not fit, or diffusers has no such network.
    """
    refuse(config)
    network = skeleton(config)
    named = renamed(weights)
    linear = has_linear_edges(named)
    state = import_state(unet_layout(network, linear=linear), network, named)
    if sines_first:
        state["time.hidden.weight"] = state["time.hidden.weight"].roll(config.channels // 2, dims=1)
    return state


def to_diffusers(weights: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """The inverse: our state dict under their names.

    Their steps count from 0: a network that was trained on steps from 1 (`timestep_offset: 0`) gets
    the difference in the weights of its time embedding.
    """
    refuse(config)
    own = dict(weights)
    if config.timestep_offset == 0:
        key = "time.hidden.weight"
        own[key] = one_step_later(own[key], config.freq_shift)
    return export_state(unet_layout(skeleton(config), linear=False), own)


def one_step_later(weight: Tensor, freq_shift: int) -> Tensor:
    """Weights (width, features) of the waves of step s that act as the given ones of s + 1.

    cos(s + 1)w = cos sw cos w - sin sw sin w, and so for the sine.
    """
    # the waves of one step are the cosines and sines of the frequencies
    one = torch.tensor([1 / 1000], dtype=torch.float64, device="cpu")
    wave = sinusoidal_embedding(one, weight.shape[1], freq_shift=freq_shift).to(weight.device)
    cosine, sine = wave[0].double().chunk(2)
    of_cosine, of_sine = weight.double().chunk(2, dim=1)
    turned = [of_cosine * cosine + of_sine * sine, of_sine * cosine - of_cosine * sine]
    return torch.cat(turned, dim=1).to(weight.dtype)


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, the names of older files replaced."""
    return {_new(name): value for name, value in weights.items()}


def has_linear_edges(weights: Mapping[str, Tensor]) -> bool:
    """Whether the transformers begin and end with linear layers, and not convolutions."""
    edge = weights.get("mid_block.attentions.0.proj_in.weight")
    return edge is not None and edge.ndim == 2


def _new(name: str) -> str:
    parts = name.split(".")
    if len(parts) > 2 and "attentions" in parts:
        parts[-2] = _OLD.get(parts[-2], parts[-2])
    return ".".join(parts)


def unet_layout(network: UNet, *, linear: bool) -> list[Weight]:
    """The weights of a UNet."""
    found = [
        *encoder_layout(network, linear=linear),
        *layer("norm", "conv_norm_out"),
        *layer("out", "conv_out"),
    ]
    for ours, theirs, block in _up(network):
        found += _block(block, ours, theirs, linear=linear)
    return found


def encoder_layout(network: UNet, *, linear: bool) -> list[Weight]:
    """The weights of a UNet down to its middle, which a control branch copies."""
    found = [
        *layer("time.hidden", "time_embedding.linear_1"),
        *layer("time.out", "time_embedding.linear_2"),
        *layer("stem", "conv_in"),
    ]
    if network.config.classes is not None:
        found.append(Weight("label.weight", ("class_embedding.weight",)))
    for ours, theirs, block in chain(_down(network), _middle(network)):
        found += _block(block, ours, theirs, linear=linear)
    return found


def refuse(config: UNetConfig) -> None:
    """Raises UserError for what diffusers' UNets do not have."""
    residual = config.transformer is not None and config.resampling == "residual"
    others = {
        "model.resampling: residual with model.transformer": residual,
        "model.class_token": config.class_token is not None,
        "model.middle_attention: false with model.transformer": config.transformer is not None
        and not config.middle_attention,
    }
    refuse_absent(config, "diffusers", others)


NamedBlock = tuple[str, str, nn.Module]


def _down(network: UNet) -> Iterator[NamedBlock]:
    depth = network.config.depth
    for number, index, block in indexed_blocks(network.down):
        level, inside = divmod(number, depth + 1)
        ours = f"down.{number}.blocks.{index}"
        if inside == depth:
            yield ours, f"down_blocks.{level}.downsamplers.0", block
        else:
            yield ours, f"down_blocks.{level}.{_kind(block)}.{inside}", block


def _middle(network: UNet) -> Iterator[NamedBlock]:
    attends = len(network.middle.blocks) > 2
    theirs = ("resnets.0", *(("attentions.0",) if attends else ()), "resnets.1")
    for index, (name, block) in enumerate(zip(theirs, network.middle.blocks, strict=True)):
        yield f"middle.blocks.{index}", f"mid_block.{name}", block


def _up(network: UNet) -> Iterator[NamedBlock]:
    depth = network.config.depth
    for number, index, block in indexed_blocks(network.up):
        level, inside = divmod(number, depth + 1)
        ours = f"up.{number}.blocks.{index}"
        resamples = isinstance(block, PlainResampling) or (
            isinstance(block, ResidualBlock) and block.resampling != "keep"
        )
        if resamples:
            yield ours, f"up_blocks.{level}.upsamplers.0", block
        else:
            yield ours, f"up_blocks.{level}.{_kind(block)}.{inside}", block


def _kind(block: nn.Module) -> str:
    return "resnets" if isinstance(block, ResidualBlock) else "attentions"


def _block(block: nn.Module, ours: str, theirs: str, *, linear: bool) -> Sequence[Weight]:
    match block:
        case ResidualBlock():
            return list(residual(block, ours, theirs, _NAMES))
        case AttentionBlock():
            return list(_attention(block, ours, theirs))
        case SpatialTransformer():
            return list(spatial(block, ours, theirs, linear=linear))
        case PlainResampling():
            return layer(f"{ours}.conv", f"{theirs}.conv")
        case _:
            raise UserError(f"{ours}: diffusers has no such block")


def _attention(block: AttentionBlock, ours: str, theirs: str) -> Iterator[Weight]:
    yield from layer(f"{ours}.norm", f"{theirs}.group_norm")
    for parameter in ("weight", "bias"):
        names = tuple(f"{theirs}.to_{part}.{parameter}" for part in "qkv")
        yield Weight(f"{ours}.attention.qkv.{parameter}", names, concatenated(3))
        if isinstance(block.attention, ContextAttention):
            names = tuple(f"{theirs}.add_{part}_proj.{parameter}" for part in "kv")
            yield Weight(f"{ours}.attention.context.{parameter}", names, concatenated(2))
    yield from layer(f"{ours}.attention.out", f"{theirs}.to_out.0")
