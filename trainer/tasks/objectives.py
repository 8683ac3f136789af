"""The losses of the denoising task, as settings."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

from pydantic import BaseModel, Field
from torch import Tensor

from models.diffusion.condition import Condition
from models.diffusion.losses import (
    Network,
    PerSampleLoss,
    denoising_loss,
    hybrid_loss,
    simple_loss,
)
from models.diffusion.process import Process
from models.diffusion.weighting import WeightingConfig
from trainer.config_utils import kind_by_default


class WeightedLoss(BaseModel, frozen=True, extra="forbid"):
    """The squared error of x_0, times a weight of the noise level."""

    kind: Literal["weighted"] = "weighted"


class SimpleLoss(BaseModel, frozen=True, extra="forbid"):
    """The squared error of what the network itself predicts (arXiv 2006.11239, eq. 14)."""

    kind: Literal["simple"] = "simple"


class HybridLoss(BaseModel, frozen=True, extra="forbid"):
    """The simple one, and `vlb_weight` x the variational bound (arXiv 2102.09672, eq. 16)."""

    kind: Literal["hybrid"] = "hybrid"
    steps: int = Field(default=1000, gt=1)
    vlb_weight: float = Field(default=0.001, gt=0)


LossConfig = Annotated[WeightedLoss | SimpleLoss | HybridLoss, Field(discriminator="kind")]
Weight = Annotated[WeightingConfig, kind_by_default("snr_clamped")]
Objective = Callable[[Network, Process, Tensor, Condition, Tensor, Tensor], PerSampleLoss]
"""Of a network, its process, clean (B, ...), condition, times (B,) and noise (B, ...)."""


def objective(loss: WeightedLoss | SimpleLoss | HybridLoss, weight: WeightingConfig) -> Objective:
    """The loss function of the settings; `weight` is that of the kind `weighted`."""
    match loss:
        case WeightedLoss():
            return partial(denoising_loss, weight=weight)
        case SimpleLoss():
            return simple_loss
        case HybridLoss(steps=steps, vlb_weight=vlb_weight):
            return partial(hybrid_loss, steps=steps, vlb_weight=vlb_weight)
