"""The losses of the denoising task, as settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field
from torch import Tensor

from models.diffusion.condition import Condition
from models.diffusion.losses import Network, denoising_loss, hybrid_loss, simple_loss
from models.diffusion.process import Process
from models.diffusion.weighting import WeightingConfig
from trainer.config_utils import kind_by_default


@dataclass(frozen=True)
class PerSampleLoss:
    """Errors of one batch."""

    value: Tensor
    """(B,): the loss to minimise is its mean, where times are drawn evenly."""
    metrics: Mapping[str, Tensor]
    """(B,) each."""


class WeightedLoss(BaseModel, frozen=True, extra="forbid"):
    """The squared error of x_0, times a weight of the noise level."""

    kind: Literal["weighted"] = "weighted"


class SimpleLoss(BaseModel, frozen=True, extra="forbid"):
    """The squared error of what the network itself gives (arXiv 2006.11239, eq. 14)."""

    kind: Literal["simple"] = "simple"


class HybridLoss(BaseModel, frozen=True, extra="forbid"):
    """The simple one, and `vlb_weight` x steps x a term of the bound (arXiv 2102.09672, eq. 16)."""

    kind: Literal["hybrid"] = "hybrid"
    steps: int = Field(default=1000, gt=1)
    vlb_weight: float = Field(default=0.001, gt=0)


LossConfig = Annotated[WeightedLoss | SimpleLoss | HybridLoss, Field(discriminator="kind")]


Weight = Annotated[WeightingConfig, kind_by_default("snr_clamped")]


@dataclass(frozen=True)
class Objective:
    """A loss with the weight that its kind may need."""

    loss: WeightedLoss | SimpleLoss | HybridLoss
    weight: WeightingConfig

    def __call__(
        self,
        network: Network,
        process: Process,
        x0: Tensor,
        cond: Condition,
        t: Tensor,
        noise: Tensor,
    ) -> PerSampleLoss:
        """Errors of clean (B, ...) at times (B,) and noise (B, ...)."""
        match self.loss:
            case WeightedLoss():
                found = denoising_loss(network, process, x0, cond, t, noise, self.weight)
                return PerSampleLoss(found.value, {"x0_mse": found.mse})
            case SimpleLoss():
                error = simple_loss(network, process, x0, cond, t, noise)
                return PerSampleLoss(error, {"simple": error})
            case HybridLoss(steps=steps, vlb_weight=vlb_weight):
                both = hybrid_loss(
                    network, process, x0, cond, t, noise, steps=steps, vlb_weight=vlb_weight
                )
                # N terms make the bound, and the mean over their times is an N-th of it
                bound = steps * both.bound
                return PerSampleLoss(both.value, {"simple": both.simple, "bound_bits": bound})
