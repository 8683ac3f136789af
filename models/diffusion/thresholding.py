"""Keeping x_0 in the range of images (Imagen, arXiv 2205.11487, 2.3).

Wrap it around guidance, which leaves the range.
"""

from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from models.diffusion.parameterization import Prediction, from_x0
from models.diffusion.process import Denoiser
from models.diffusion.schedules.marginal import Schedule

C = TypeVar("C")


def _with_x0(
    denoiser: Denoiser[C], schedule: Schedule, change: Callable[[Tensor], Tensor]
) -> Denoiser[C]:
    def denoise(x: Tensor, t: Tensor, condition: C) -> Prediction:
        pred = denoiser(x, t, condition)
        return from_x0(change(pred.x0), x, schedule.at(t), pred.logvar_fraction)

    return denoise


class NoThresholding(BaseModel, frozen=True, extra="forbid"):
    """x_0 as it is predicted: for latents and vectors."""

    kind: Literal["none"] = "none"

    def wrap(self, denoiser: Denoiser[C], schedule: Schedule) -> Denoiser[C]:
        return denoiser


class StaticThresholding(BaseModel, frozen=True, extra="forbid"):
    """x_0 clamped to [-1, 1], and the noise that then explains x_t."""

    kind: Literal["static"] = "static"

    def wrap(self, denoiser: Denoiser[C], schedule: Schedule) -> Denoiser[C]:
        return _with_x0(denoiser, schedule, lambda x0: x0.clamp(-1, 1))


class DynamicThresholding(BaseModel, frozen=True, extra="forbid"):
    """x_0 clamped to [-s, s] and divided by s, the percentile of |x_0| in a sample, at least 1."""

    kind: Literal["dynamic"] = "dynamic"
    percentile: float = Field(default=0.995, gt=0, le=1)

    def wrap(self, denoiser: Denoiser[C], schedule: Schedule) -> Denoiser[C]:
        return _with_x0(denoiser, schedule, self._limited)

    def _limited(self, x0: Tensor) -> Tensor:
        sizes = x0.abs().flatten(1).float()
        limit = torch.quantile(sizes, self.percentile, dim=1).clamp(min=1).to(x0.dtype)
        limit = limit.view((-1,) + (1,) * (x0.ndim - 1))
        return x0.clamp(-limit, limit) / limit


class RangeThresholding(BaseModel, frozen=True, extra="forbid"):
    """x_0 clamped to [-limit, limit], for vectors whose dimensions have deviation 1."""

    kind: Literal["range"] = "range"
    limit: float = Field(gt=0)

    def wrap(self, denoiser: Denoiser[C], schedule: Schedule) -> Denoiser[C]:
        return _with_x0(denoiser, schedule, lambda x0: x0.clamp(-self.limit, self.limit))


class NormThresholding(BaseModel, frozen=True, extra="forbid"):
    """x_0 scaled down to the norm `limit` where it is larger, for vectors of that norm.

    The mean of such vectors, which a network predicts, is within their sphere.
    """

    kind: Literal["norm"] = "norm"
    limit: float = Field(gt=0)

    def wrap(self, denoiser: Denoiser[C], schedule: Schedule) -> Denoiser[C]:
        return _with_x0(denoiser, schedule, self._limited)

    def _limited(self, x0: Tensor) -> Tensor:
        norm = x0.flatten(1).norm(dim=1).view((-1,) + (1,) * (x0.ndim - 1))
        return x0 * (self.limit / norm.clamp(min=self.limit))


ThresholdingConfig = Annotated[
    NoThresholding
    | StaticThresholding
    | DynamicThresholding
    | RangeThresholding
    | NormThresholding,
    Field(discriminator="kind"),
]
