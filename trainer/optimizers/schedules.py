"""Scalars that change over training: learning rates, temperatures, loss weights."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator


class Constant(BaseModel, frozen=True, extra="forbid"):
    """The same value at every step."""

    kind: Literal["constant"] = "constant"
    value: float

    def at(self, step: int) -> float:
        """Value at optimizer step `step` (counted from 0)."""
        return self.value


class Linear(BaseModel, frozen=True, extra="forbid"):
    """From `start` to `end` in a straight line over `steps`, constant afterwards."""

    kind: Literal["linear"] = "linear"
    start: float
    end: float
    steps: int = Field(gt=0)

    def at(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


class Cosine(BaseModel, frozen=True, extra="forbid"):
    """From `start` to `end` along half a cosine over `steps`, constant afterwards.

    DALL-E's schedules for temperature, KL weight and learning rate (arXiv 2102.12092, A.2).
    """

    kind: Literal["cosine"] = "cosine"
    start: float
    end: float
    steps: int = Field(gt=0)

    def at(self, step: int) -> float:
        done = min(step / self.steps, 1.0)
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * done))


Scalar = Annotated[Constant | Linear | Cosine, Field(discriminator="kind")]


class LearningRate(BaseModel, frozen=True, extra="forbid"):
    """Linear warm-up to `peak`, then `decay` to `peak * final` at update `until`.

    By default that is the recipe's last; after it the rate stays.
    """

    peak: float = Field(gt=0)
    warmup: int = Field(default=0, ge=0)
    decay: Literal["constant", "cosine", "linear"] = "cosine"
    final: float = Field(default=0.0, ge=0.0, le=1.0)
    until: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _decays_after_warmup(self) -> "LearningRate":
        if self.until is not None and self.until <= self.warmup:
            raise ValueError(f"until {self.until} must lie after warmup {self.warmup}")
        return self

    def at(self, step: int, steps: int) -> float:
        """Learning rate of update `step` (from 0) in a run of `steps` updates."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        last = self.until or steps
        done = min((step - self.warmup) / max(last - self.warmup, 1), 1.0)
        match self.decay:
            case "constant":
                factor = 1.0
            case "linear":
                factor = 1.0 - done
            case "cosine":
                factor = 0.5 * (1.0 + math.cos(math.pi * done))
        return self.peak * (self.final + (1.0 - self.final) * factor)


Moments = Literal["fp32", "bf16", "codec_16"]
"""How AdamW keeps its moments: codec_16 is 1-6-9 and 0-6-10 (`low_precision.float16_formats`)."""


class OptimizerConfig(BaseModel, frozen=True, extra="forbid"):
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) with gradient clipping by global norm."""

    lr: LearningRate
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    max_grad_norm_per_parameter: float | None = Field(default=None, gt=0)
    """Bound of the norm of each weight's gradient; for engine.update=in_backward."""
    moments: Moments = "fp32"
    """Of the matrices in residual blocks; gains, biases and embeddings keep fp32 ones, unless
    engine.update is in_backward."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> "OptimizerConfig":
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must lie in [0, 1)")
        return self
