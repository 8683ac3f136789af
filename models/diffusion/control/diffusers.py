"""Control branches as diffusers' `ControlNetModel`, and back (tested with version 0.42)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mezzotint.common.errors import UserError
from models.conversion import Weight, export_state, import_state, layer, validated
from models.diffusion.control.hint_encoder import HintEncoder
from models.diffusion.control.network import ControlConfig, UNetControl
from models.diffusion.unet.diffusers import (
    encoder_layout,
    has_linear_edges,
    one_step_later,
    refuse,
    renamed,
)
from models.diffusion.unet.diffusers_settings import (
    ConditionalSettings,
    config_of,
    settings_of,
)
from models.diffusion.unet.network import UNetConfig

CLASS = "ControlNetModel"
_DECODER_KEYS = ("sample_size", "out_channels", "up_block_types", "dropout")
"""Settings of a UNet that its control has not."""


class ControlNetSettings(ConditionalSettings, frozen=True, extra="forbid"):
    """`ControlNetModel`; the defaults are its own. The base's size is not among its settings."""

    conditioning_channels: int = 3
    controlnet_conditioning_channel_order: Literal["rgb"] = "rgb"
    conditioning_embedding_out_channels: tuple[int, ...] = Field((16, 32, 96, 256), min_length=1)
    global_pool_conditions: Literal[False] = False


def from_diffusers_control(
    weights: Mapping[str, Tensor], config: ControlConfig
) -> dict[str, Tensor]:
    """The state dict of `config`'s network from one with the names of diffusers.

    Raises:
        UserError: weights do not fit, or diffusers has no such network.
    """
    network, named = _skeleton(config), renamed(weights)
    return import_state(_layout(network, linear=has_linear_edges(named)), network, named)


def to_diffusers_control(weights: Mapping[str, Tensor], config: ControlConfig) -> dict[str, Tensor]:
    """The inverse: our state dict under their names; steps are counted as `to_diffusers` says."""
    network, own = _skeleton(config), dict(weights)
    base = _base(config)
    if base.timestep_offset == 0:
        key = "encoder.time.hidden.weight"
        own[key] = one_step_later(own[key], base.freq_shift)
    return export_state(_layout(network, linear=False), own)


def control_settings(config: ControlConfig) -> dict[str, object]:
    """Content of config.json for the network.

    Raises:
        UserError: a network that diffusers does not have.
    """
    base = settings_of(_base(config))
    own = {key: value for key, value in base.items() if key not in _DECODER_KEYS}
    return {
        **own,
        "_class_name": CLASS,
        "conditioning_channels": config.hint.channels,
        "conditioning_embedding_out_channels": list(config.hint.chosen_widths),
    }


def control_config(content: Mapping[str, Any], source: str, image_size: int) -> dict[str, Any]:
    """Settings of `ControlConfig` from the content of config.json.

    `image_size` is that of the base network, which the file does not say.

    Raises:
        UserError: it names the key that ours has no network for.
    """
    down = content.get("down_block_types", ())
    up = [str(name).replace("Down", "Up") for name in reversed(down)]
    channels = content.get("in_channels", 4)
    tree = {
        "sample_size": image_size,
        "up_block_types": up,
        "out_channels": channels,
        **{key: value for key, value in content.items() if not key.startswith("_")},
    }
    settings = validated(ControlNetSettings, tree, source)
    widths = settings.conditioning_embedding_out_channels
    return {
        "kind": "control",
        "base": config_of(settings, source),
        "hint": {
            "channels": settings.conditioning_channels,
            "stride": 2 ** (len(widths) - 1),
            "widths": list(widths),
        },
    }


def _base(config: ControlConfig) -> UNetConfig:
    base = config.base
    if not isinstance(base, UNetConfig) or base.transformer is None:
        raise UserError("model.base: diffusers has controls of UNets with cross-attention alone")
    for key, used in (("middle_only", config.middle_only), ("unlocked", config.unlocked)):
        if used:
            raise UserError(f"model.{key}: diffusers has no such control")
    if len(config.hint.chosen_widths) != config.hint.halvings + 1:
        raise UserError(
            f"model.hint.widths: {list(config.hint.chosen_widths)}: in diffusers every further "
            f"width halves, so stride {config.hint.stride} has {config.hint.halvings + 1}"
        )
    return base


def _skeleton(config: ControlConfig) -> UNetControl:
    _base(config)
    with torch.device("meta"):
        network = config.build()
    assert isinstance(network, UNetControl), "the control of a UNet"
    return network


def _layout(network: UNetControl, *, linear: bool) -> list[Weight]:
    base = network.config.base
    assert isinstance(base, UNetConfig), "the control of a UNet"
    refuse(base)
    found = [
        replace(weight, ours=f"encoder.{weight.ours}")
        for weight in encoder_layout(network.encoder, linear=linear)
    ]
    assert isinstance(network.hint, HintEncoder)
    *inner, last = range(len(network.hint.layers))
    hint = "controlnet_cond_embedding"
    for index in inner:
        theirs = f"{hint}.blocks.{index - 1}" if index else f"{hint}.conv_in"
        found += layer(f"hint.layers.{index}", theirs)
    found += layer(f"hint.layers.{last}", f"{hint}.conv_out")
    *skips, middle = range(len(network.zero))
    for index in skips:
        found += layer(f"zero.{index}", f"controlnet_down_blocks.{index}")
    return [*found, *layer(f"zero.{middle}", "controlnet_mid_block")]
