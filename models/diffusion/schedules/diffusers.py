"""`scheduler_config.json` of diffusers for a process, and back (tested with version 0.42).

Step k of N here is their step k - 1. The exported configuration is read by `DDIMScheduler`,
`DPMSolverMultistepScheduler` and the other schedulers of betas.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationError

from mezzotint.common.errors import UserError
from models.diffusion.process import ProcessConfig
from models.diffusion.schedules.discrete import (
    CosineBetasConfig,
    DiscreteSchedule,
    LinearBetasConfig,
    SqrtLinearBetasConfig,
)
from models.diffusion.schedules.ve_schedule import EDMSchedule, VESchedule

STEPS = 1000
"""Discrete steps that a schedule in continuous time is given."""
_PREDICTIONS = {"noise": "epsilon", "v": "v_prediction", "x0": "sample"}


class _SchedulerSettings(BaseModel, frozen=True, extra="ignore"):
    """What a process depends on; everything else is of sampling."""

    num_train_timesteps: int = Field(default=1000, gt=1)
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: None = None
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    rescale_betas_zero_snr: bool = False
    use_flow_sigmas: Literal[False] = False


def scheduler_settings(config: ProcessConfig) -> dict[str, object]:
    """Content of scheduler_config.json, for DDIM by default.

    Samples are at trailing steps and end without noise, as here with times of kind `trailing`; a
    schedule in continuous time is written as the betas of a thousand steps, which have its signal
    and noise at k / 1000. `steps_offset` has no effect on trailing steps; their pipelines want 1.

    Raises:
        UserError: a process that diffusers' schedulers of betas do not have.
    """
    if config.prediction_type not in _PREDICTIONS:
        raise UserError(
            f"model.process.prediction_type: {config.prediction_type}: diffusers' schedulers of "
            "betas have noise, v and x0"
        )
    if config.variance == "learned":
        raise UserError("model.process.variance: learned: diffusers' pipelines do not read it")
    return {
        "_class_name": "DDIMScheduler",
        **_betas(config),
        "prediction_type": _PREDICTIONS[config.prediction_type],
        "clip_sample": False,
        "thresholding": False,
        "set_alpha_to_one": True,
        "steps_offset": 1,
        "timestep_spacing": "trailing",
    }


def _betas(config: ProcessConfig) -> dict[str, object]:
    match config.schedule:
        case DiscreteSchedule(steps=steps, betas=betas, zero_terminal_snr=zero):
            found: dict[str, object] = {
                "num_train_timesteps": steps,
                "rescale_betas_zero_snr": zero,
            }
            match betas:
                case LinearBetasConfig(first=first, last=last):
                    return found | _named("linear", first, last)
                case SqrtLinearBetasConfig(first=first, last=last):
                    return found | _named("scaled_linear", first, last)
                case CosineBetasConfig() if betas == CosineBetasConfig():
                    return found | {"beta_schedule": "squaredcos_cap_v2"}
                case _:
                    return found | {"trained_betas": betas.betas(steps).tolist()}
        case VESchedule() | EDMSchedule():
            raise UserError(
                f"model.process.schedule.kind: {config.schedule.kind}: diffusers' schedulers of "
                "betas preserve variance"
            )
        case continuous:
            times = torch.arange(STEPS + 1, dtype=torch.float64, device="cpu") / STEPS
            kept = continuous.at(times).alpha ** 2
            ratio = kept[1:] / torch.cat([kept.new_ones(1), kept[1:-1]])
            return {"num_train_timesteps": STEPS, "trained_betas": (1 - ratio).tolist()}


def _named(name: str, first: float, last: float) -> dict[str, object]:
    return {"beta_schedule": name, "beta_start": first, "beta_end": last}


def process_of(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings of `ProcessConfig` from the content of scheduler_config.json.

    Raises:
        UserError: it names the key that ours has no process for.
    """
    try:
        settings = _SchedulerSettings.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise UserError(
            f"{source}: {key}: {str(content.get(key))[:60]} has no process here ({first['msg']})"
        ) from error
    ends = {"first": settings.beta_start, "last": settings.beta_end}
    kinds: dict[str, dict[str, Any]] = {
        "linear": {"kind": "linear", **ends},
        "scaled_linear": {"kind": "sqrt_linear", **ends},
        "squaredcos_cap_v2": {"kind": "cosine"},
    }
    names = {theirs: ours for ours, theirs in _PREDICTIONS.items()}
    return {
        "prediction_type": names[settings.prediction_type],
        "schedule": {
            "kind": "discrete",
            "betas": kinds[settings.beta_schedule],
            "steps": settings.num_train_timesteps,
            "zero_terminal_snr": settings.rescale_betas_zero_snr,
        },
    }
