"""Denoising: every diffusion model, whatever it is conditioned on (DDPM, arXiv 2006.11239)."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field
from torch import Generator, Tensor, nn

from data_pipeline.stream import Batch
from models.diffusion.condition import Condition
from models.diffusion.losses import denoising_loss
from models.diffusion.super_resolution import SuperResolution
from models.diffusion.text_diffusion import TextDiffusion
from models.systems.cascade import StageSampling, draw, upsample
from trainer.errors import TrainError
from trainer.numerics import drop_text
from trainer.task import Engines, Loss, Step


class SnrClamp(BaseModel, frozen=True, extra="forbid"):
    """Weight of the x0 error: the signal-to-noise ratio, clamped to [low, high]."""

    low: float = Field(default=0.05, gt=0)
    high: float = Field(default=5.0, gt=0)


class TextCondition(BaseModel, frozen=True, extra="forbid"):
    """Captions; `drop` of them are empty in training, for classifier-free guidance."""

    kind: Literal["text"]
    drop: float = Field(default=0.1, ge=0, lt=1)


class LowResolutionCondition(BaseModel, frozen=True, extra="forbid"):
    """The image itself, downsampled and degraded; trained on crops of `crop` output pixels."""

    kind: Literal["low_resolution"]
    crop: int | None = Field(default=None, gt=0)


class DenoisingConfig(BaseModel, frozen=True, extra="forbid"):
    """Weighted squared error of the prediction at uniformly drawn times."""

    kind: Literal["denoising"]
    condition: Annotated[TextCondition | LowResolutionCondition, Field(discriminator="kind")]
    weight: SnrClamp = SnrClamp()

    def build(self, model: nn.Module) -> "TextDenoising | SuperResolving":
        """The task over `model`.

        Raises:
            TrainError: the model cannot be conditioned so.
        """
        match self.condition, model:
            case TextCondition() as condition, TextDiffusion():
                return TextDenoising(self, condition, model)
            case LowResolutionCondition() as condition, SuperResolution():
                return SuperResolving(self, condition, model)
        raise TrainError(
            f"task.condition.kind: {self.condition.kind} does not fit this model.kind; text goes "
            "with text_diffusion, low_resolution with super_resolution"
        )
