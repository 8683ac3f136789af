"""Weights of CompVis' checkpoints: latent diffusion and Stable Diffusion 1, from their denoiser on.

A checkpoint holds `model.diffusion_model.*` (the UNet), `cond_stage_model.*` (text encoder or class
embedding), `first_stage_model.*` (the autoencoder), averages of the UNet under `model_ema.*`, and
the numbers of the schedule.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mezzotint.common.errors import UserError
from models.conversion import (
    Weight,
    concatenated,
    export_state,
    import_state,
    layer,
    nested,
)
from models.diffusion.schedules.discrete import DiscreteSchedule
from models.diffusion.text_encoder import TextEncoderConfig
from models.diffusion.unet.diffusers import one_step_later
from models.diffusion.unet.guided_diffusion import absent, decoder_layout, encoder_layout
from models.diffusion.unet.layout import skeleton
from models.diffusion.unet.network import UNet, UNetConfig

UNET, FIRST_STAGE, CONDITION, AVERAGES = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.",
    "model_ema.",
)
CONTROL = "control_model."
SCALE, ALPHAS = "scale_factor", "alphas_cumprod"
_LOGITS = f"{CONDITION}transformer.to_logits."
_SCHEDULE = {
    SCALE,
    ALPHAS,
    "alphas_cumprod_prev",
    "betas",
    "log_one_minus_alphas_cumprod",
    "logvar",
    "lvlb_weights",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_variance",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
}


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a checkpoint, by the prefixes of their names, which are left out."""

    denoiser: Mapping[str, Tensor]
    """UNet and, under their full names, text encoder or class embedding."""
    first_stage: Mapping[str, Tensor]
    scale: float | None
    """What latents are multiplied by, where the checkpoint says it."""
    averaged: bool
    """Whether the UNet's weights are their averages."""


def read_checkpoint(weights: Mapping[str, Tensor], config: UNetConfig) -> Checkpoint:
    """The parts of a checkpoint whose UNet and schedule are `config`'s; averages where it has some.

    Raises:
        UserError: a name that belongs to none of them, or another schedule.
    """
    known = (UNET, FIRST_STAGE, CONDITION, AVERAGES, CONTROL)
    for name in weights:
        if not name.startswith(known) and name not in _SCHEDULE:
            raise UserError(f"{name}: is no weight of a CompVis checkpoint")
    _check_schedule(weights, config)
    network = skeleton(config)
    own = {name: value for name, value in weights.items() if name.startswith(UNET)}
    averages = {name: value for name, value in weights.items() if name.startswith(AVERAGES)}
    if averages:
        own = _restored(averages, network)
    if network.conditioners:
        own |= {
            name: value
            for name, value in weights.items()
            if name.startswith(CONDITION) and not name.startswith(_LOGITS)
        }
    scale = weights.get(SCALE)
    return Checkpoint(
        own,
        {
            name.removeprefix(FIRST_STAGE): value
            for name, value in weights.items()
            if name.startswith(FIRST_STAGE)
        },
        None if scale is None else float(scale),
        bool(averages),
    )


def from_compvis(weights: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """The state dict of `config`'s network from a checkpoint's `denoiser`.

    Raises:
        UserError: weights do not fit, or CompVis' code has no such network.
    """
    require_steps_from_0(config, "model")
    network = skeleton(config)
    return import_state(_layout(network), network, weights)


def to_compvis(weights: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """The inverse: our state dict under their names, and the schedule.

    Their steps count from 0: a network that was trained on steps from 1 (`timestep_offset: 0`) gets
    other weights of the same function.

    Raises:
        UserError: CompVis' code has no such network or schedule.
    """
    schedule = _schedule(config)
    weights = dict(weights)
    if config.timestep_offset == 0:
        time = "time.hidden.weight"
        weights[time] = one_step_later(weights[time], config.freq_shift)
    alphas = _alphas_cumprod(schedule)
    before = torch.cat([alphas.new_ones(1), alphas[:-1]])
    return {
        **export_state(_layout(skeleton(config)), weights),
        ALPHAS: alphas.float(),
        "alphas_cumprod_prev": before.float(),
        "betas": (1 - alphas / before).float(),
    }


def require_steps_from_0(config: UNetConfig, key: str) -> None:
    """Refuse to read weights of networks that count their steps from 0 as others.

    Raises:
        UserError: it names the setting under `key`.
    """
    if config.timestep_offset == 0:
        raise UserError(
            f"{key}.timestep_offset: 0: CompVis' networks count their steps from 0; set it to 1"
        )


def _layout(network: UNet) -> list[Weight]:
    config = network.config
    low = config.low_resolution
    there = {
        "model.low_resolution": low is not None,
        "model.classes without class_token": config.classes is not None
        and config.class_token is None,
        "model.text.form: glide": config.text is not None and config.text.pools,
        "model.transformer: none with text or features": config.transformer is None
        and config.context is not None,
        **absent(config),
    }
    for key, used in there.items():
        if used:
            raise UserError(f"{key}: CompVis' code has no such network")
    found = nested([*encoder_layout(network), *decoder_layout(network)], "", UNET)
    if config.text is not None:
        found += nested(_text(config.text), "text.", f"{CONDITION}transformer.")
    if config.class_token is not None:
        found.append(Weight("label.weight", (f"{CONDITION}embedding.weight",)))
    return found


def _text(config: TextEncoderConfig) -> list[Weight]:
    """The text encoder, in the names of its x-transformers: attentions are even, others odd."""
    found = [
        Weight("token.weight", ("token_emb.weight",)),
        Weight("position.table.weight", ("pos_emb.emb.weight",)),
        *layer("norm", "norm"),
    ]
    for number in range(config.layers):
        ours, layers = f"blocks.{number}", "attn_layers.layers"
        attention, feed_forward = f"{layers}.{2 * number}", f"{layers}.{2 * number + 1}"
        three = tuple(f"{attention}.1.to_{part}.weight" for part in "qkv")
        found += [
            *layer(f"{ours}.attention_norm", f"{attention}.0"),
            Weight(f"{ours}.attention.qkv.weight", three, concatenated(3)),
            *layer(f"{ours}.attention.out", f"{attention}.1.to_out"),
            *layer(f"{ours}.forward_norm", f"{feed_forward}.0"),
            *layer(f"{ours}.feed_forward.hidden", f"{feed_forward}.1.net.0.0"),
            *layer(f"{ours}.feed_forward.out", f"{feed_forward}.1.net.2"),
        ]
    return found


def _restored(averages: Mapping[str, Tensor], network: UNet) -> dict[str, Tensor]:
    """Averages under the names of their weights, from names without dots (their `LitEma`).

    Raises:
        UserError: an average that belongs to no weight of the network.
    """
    layout = [*encoder_layout(network), *decoder_layout(network)]
    names = [name for each in layout for name in each.theirs]
    dotless = {f"{AVERAGES}diffusion_model{name.replace('.', '')}": name for name in names}
    if len(dotless) < len(names):
        raise UserError("two weights of this network have one name without dots in model_ema")
    found = {}
    for name, value in averages.items():
        if name in (f"{AVERAGES}decay", f"{AVERAGES}num_updates"):
            continue
        if name not in dotless:
            raise UserError(f"{name}: is the average of no weight of the model")
        found[f"{UNET}{dotless[name]}"] = value
    return found


def _schedule(config: UNetConfig) -> DiscreteSchedule:
    schedule = config.process.schedule
    if not isinstance(schedule, DiscreteSchedule):
        raise UserError(
            f"model.process.schedule.kind: {schedule.kind}: CompVis' code has schedules of "
            "discrete steps"
        )
    return schedule


def _alphas_cumprod(schedule: DiscreteSchedule) -> Tensor:
    """alpha^2 after each step (steps,), float64."""
    steps = torch.arange(1, schedule.steps + 1, dtype=torch.float64, device="cpu")
    return schedule.at(steps / schedule.steps).alpha ** 2


def _check_schedule(weights: Mapping[str, Tensor], config: UNetConfig) -> None:
    """Refuse another schedule than the checkpoint's."""
    theirs = weights.get(ALPHAS)
    if theirs is None:
        return
    ours = _alphas_cumprod(_schedule(config))
    if theirs.shape == ours.shape and torch.allclose(theirs.double(), ours, rtol=1e-3, atol=1e-6):
        return
    raise UserError(
        f"model.process.schedule: its {len(ours)} steps end with an alpha^2 of {ours[-1]:.6f}, "
        f"those of the checkpoint ({len(theirs)}) with {float(theirs[-1]):.6f}; set betas.first "
        "and betas.last to the checkpoint's linear_start and linear_end"
    )
