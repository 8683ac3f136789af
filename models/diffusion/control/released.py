"""Weights of the released ControlNet code, which keeps the names of latent diffusion's encoder.

`control_model.*`: `time_embed`, `input_blocks`, `middle_block`, `zero_convs`, `middle_block_out`
and `input_hint_block`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mezzotint.common.errors import UserError
from models.conversion import Weight, export_state, import_state, layer, nested
from models.diffusion.control.network import ControlConfig, UNetControl
from models.diffusion.unet.compvis import require_steps_from_0
from models.diffusion.unet.diffusers import one_step_later
from models.diffusion.unet.guided_diffusion import encoder_layout
from models.diffusion.unet.network import UNet, UNetConfig

PREFIX = "control_model."


def from_released(weights: Mapping[str, Tensor], config: ControlConfig) -> dict[str, Tensor]:
    """The state dict of a control from a checkpoint with or without its prefix.

    What a whole checkpoint holds beside it, the base above all, is left out.

    Raises:
        UserError: weights do not fit, or the released code has no such control.
    """
    whole = any(name.startswith(PREFIX) for name in weights)
    chosen = {
        name if whole else f"{PREFIX}{name}": value
        for name, value in weights.items()
        if not whole or name.startswith(PREFIX)
    }
    control = _skeleton(config)
    require_steps_from_0(_base(config), "model.base")
    return import_state(_layout(control), control, chosen)


def to_released(weights: Mapping[str, Tensor], config: ControlConfig) -> dict[str, Tensor]:
    """The inverse: our state dict under their names, with steps that count from 0."""
    layout, base, weights = _layout(_skeleton(config)), _base(config), dict(weights)
    if base.timestep_offset == 0:
        time = "encoder.time.hidden.weight"
        weights[time] = one_step_later(weights[time], base.freq_shift)
    return export_state(layout, weights)


def _base(config: ControlConfig) -> UNetConfig:
    if not isinstance(config.base, UNetConfig):
        raise UserError(f"model.base.kind: {config.base.kind}: the released code controls a unet")
    return config.base


def _skeleton(config: ControlConfig) -> UNetControl:
    """The network without memory.

    Raises:
        UserError: the released code has no such control.
    """
    base = _base(config)
    there = {
        "model.middle_only": config.middle_only,
        "model.unlocked": config.unlocked,
        "model.base.text.form: glide": base.text is not None and base.text.pools,
        "model.base.classes without class_token": base.classes is not None
        and base.class_token is None,
    }
    for key, used in there.items():
        if used:
            raise UserError(f"{key}: the released ControlNet code has no such control")
    with torch.device("meta"):
        control = config.build()
    assert isinstance(control, UNetControl), "its base is a UNet"
    return control


def _layout(control: UNetControl) -> list[Weight]:
    encoder = control.encoder
    assert isinstance(encoder, UNet), "the copy of a UNet's encoder"
    found = nested(encoder_layout(encoder), "encoder.", PREFIX)
    for index in range(len(control.hint.layers)):
        found += layer(f"hint.layers.{index}", f"{PREFIX}input_hint_block.{2 * index}")
    last = len(control.zero) - 1
    for index in range(last):
        found += layer(f"zero.{index}", f"{PREFIX}zero_convs.{index}.0")
    return [*found, *layer(f"zero.{last}", f"{PREFIX}middle_block_out.0")]
