"""Denoising: every diffusion model, whatever it is conditioned on (DDPM, arXiv 2006.11239)."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from data_pipeline.stream import Batch
from models.diffusion.condition import Condition
from models.diffusion.losses import denoising_loss
from models.diffusion.super_resolution import SuperResolution
from models.diffusion.text_diffusion import TextDiffusion
from models.diffusion.unet.network import UNet
from models.diffusion.weighting import SnrClamped
from models.systems.cascade import Base, StageSampling, Upsampler, draw, upsample
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
            case TextCondition() as condition, UNet() if model.config.told == {"text"}:
                return TextDenoising(self, condition, model)
            case LowResolutionCondition() as condition, UNet() if model.config.told == {
                "low_resolution"
            }:
                return SuperResolving(self, condition, model)
        raise TrainError(
            f"task.condition.kind: {self.condition.kind} does not fit this model; text goes with "
            "kind text_diffusion or a unet with text, low_resolution with kind super_resolution or "
            "a unet with low_resolution"
        )


def times(count: int, rng: Generator) -> Tensor:
    """Times (count,) in (0, 1), one in each of `count` equal strata: uniform, less varying."""
    draws = torch.rand(count, generator=rng, device=rng.device)
    strata = (torch.arange(count, device=rng.device) + draws) / count
    return strata.clamp(1e-4, 1 - 1e-4)


class TextDenoising:
    """Trains a text-conditional denoiser."""

    def __init__(self, config: DenoisingConfig, condition: TextCondition, model: Base) -> None:
        self._weight = SnrClamped(low=config.weight.low, high=config.weight.high)
        self._condition = condition
        self._model = model

    def parts(self) -> Mapping[str, nn.Module]:
        """The denoiser."""
        return {"model": self._model}

    def losses(self, engines: Engines, batch: Batch, step: Step) -> Iterator[Loss]:
        """The weighted error of one micro-batch."""
        image, rng = batch.images, step.rng
        cond = Condition(text=drop_text(batch.tokens, self._condition.drop, rng))
        t = times(len(image), rng)
        noise = torch.randn(image.shape, generator=rng, device=image.device)
        loss = denoising_loss(
            engines["model"], self._model.process, image, cond, t, noise, self._weight
        )
        yield Loss("model", loss.value.mean(), {"x0_mse": loss.mse.mean()})

    def after_update(self, step: Step) -> None:
        """Nothing: gradients train the whole model."""

    def preview(
        self, parts: Mapping[str, nn.Module], batch: Batch, rng: Generator
    ) -> Mapping[str, Tensor]:
        """Real images, and pictures drawn from their captions."""
        drawn = draw(self._model, batch.tokens, rng, sampling=StageSampling(steps=10, guidance=2.0))
        return {"real": batch.images, "samples": drawn}


class SuperResolving:
    """Trains a super-resolution denoiser on real images and their own spoiled reductions."""

    def __init__(
        self, config: DenoisingConfig, condition: LowResolutionCondition, model: Upsampler
    ) -> None:
        self._weight = SnrClamped(low=config.weight.low, high=config.weight.high)
        self._crop = condition.crop
        self._model = model

    def parts(self) -> Mapping[str, nn.Module]:
        """The denoiser."""
        return {"model": self._model}

    def losses(self, engines: Engines, batch: Batch, step: Step) -> Iterator[Loss]:
        """The weighted error of one micro-batch of crops."""
        rng, model = step.rng, self._model
        image = self._cropped(batch.images, rng)
        low = reduced(image, model.config.factor)
        level = model.augmentation.levels(len(image), rng)
        cond = Condition(low=model.augmentation(low, level, rng), level=level)
        t = times(len(image), rng)
        noise = torch.randn(image.shape, generator=rng, device=image.device)
        loss = denoising_loss(engines["model"], model.process, image, cond, t, noise, self._weight)
        yield Loss("model", loss.value.mean(), {"x0_mse": loss.mse.mean()})

    def after_update(self, step: Step) -> None:
        """Nothing: gradients train the whole model."""

    def preview(
        self, parts: Mapping[str, nn.Module], batch: Batch, rng: Generator
    ) -> Mapping[str, Tensor]:
        """Real images, their reductions enlarged without a model, and enlarged by it."""
        image = batch.images
        low = reduced(image, self._model.config.factor)
        plain = F.interpolate(low, image.shape[2:], mode="bilinear", align_corners=False)
        drawn = upsample(self._model, low, rng, sampling=StageSampling(steps=8))
        return {"real": image, "bilinear": plain, "samples": drawn}

    def _cropped(self, image: Tensor, rng: Generator) -> Tensor:
        """One window of `crop` pixels from each image, at a multiple of the reduction's factor."""
        size, factor = self._crop, self._model.config.factor
        if size is None or size >= image.shape[-1]:
            return image
        places = (image.shape[-1] - size) // factor + 1
        corners = torch.randint(places, (len(image), 2), generator=rng, device=image.device)
        return torch.stack(
            [
                each[:, row : row + size, column : column + size]
                for each, (row, column) in zip(image, (corners * factor).tolist(), strict=True)
            ]
        )


def reduced(image: Tensor, factor: int) -> Tensor:
    """Images (B, 3, H, W) at 1/factor of their size, by the mean over squares."""
    return F.avg_pool2d(image, factor)
