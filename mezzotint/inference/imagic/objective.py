"""What Imagic minimises: the denoising loss of one image at random times with random noise."""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from models.diffusion.condition import Condition
from models.diffusion.losses import (
    Network,
    PerSampleLoss,
    denoising_loss,
    hybrid_loss,
    simple_loss,
)
from models.diffusion.process import DiffusionNetwork, Process
from models.diffusion.schedules.discrete import DiscreteSchedule
from models.diffusion.schedules.timesteps import Stratified
from models.diffusion.weighting import SnrClamped
from models.nn.random import randn_like

Loss = Callable[[Generator], Tensor]
"""The loss of one step, a scalar, from random numbers made on the CPU."""
HYBRID_STEPS = 1000
"""Of the loss of a learned variance."""
Sample = Callable[[Generator], Tensor]
"""Clean arrays (1, C, h, w): of a gaussian first stage a new sample at each call."""


def objective(
    process: Process,
) -> Callable[[Network, Process, Tensor, Condition, Tensor, Tensor], PerSampleLoss]:
    """The squared error of what the network predicts, as it was trained.

    That of x_0 is weighted by the clamped signal-to-noise ratio; a learned variance goes on being
    learned.
    """
    if process.config.variance == "learned":
        return partial(hybrid_loss, steps=_steps(process) or HYBRID_STEPS)
    if process.config.prediction_type == "x0":
        return partial(denoising_loss, weight=SnrClamped())
    return simple_loss


def image_loss(
    network: DiffusionNetwork, sample: Sample, condition: Callable[[], Condition], batch: int
) -> Loss:
    """Of `batch` times and noises of one image under a condition of one row."""

    def loss(rng: Generator) -> Tensor:
        clean = sample(rng).expand(batch, -1, -1, -1)
        return _loss(network, clean, rows(condition(), batch), rng)

    return loss


def upsampling_loss(
    network: DiffusionNetwork, image: Tensor, factor: int, condition: Condition, batch: int
) -> Loss:
    """Of an image (1, 3, H, W) from itself, smaller by `factor` and augmented as in training."""
    augmentation = network.augmentation  # type: ignore[attr-defined]
    low = F.avg_pool2d(image, factor).expand(batch, -1, -1, -1)
    clean, cond = image.expand(batch, -1, -1, -1), rows(condition, batch)

    def loss(rng: Generator) -> Tensor:
        level = augmentation.levels(batch, rng).to(image.device)
        given = replace(cond, low_res=augmentation(low, level, rng), noise_level=level)
        return _loss(network, clean, given, rng)

    return loss


def _loss(network: DiffusionNetwork, clean: Tensor, cond: Condition, rng: Generator) -> Tensor:
    process = network.process
    t = Stratified(steps=_steps(process)).sample(len(clean), rng).t.to(clean.device)
    errors = objective(process)(network, process, clean, cond, t, randn_like(clean, rng))
    return errors.value.mean()


def _steps(process: Process) -> int | None:
    """Of networks that know times on discrete steps alone."""
    if isinstance(process.schedule, DiscreteSchedule):
        return process.schedule.steps
    return HYBRID_STEPS if process.config.variance == "learned" else None


def rows(condition: Condition, count: int) -> Condition:
    """A condition of one row, for `count` samples; what is of no row stays."""
    found = {each.name: getattr(condition, each.name) for each in fields(condition)}
    repeated = {
        name: value.expand(count, *value.shape[1:])
        for name, value in found.items()
        if isinstance(value, Tensor) and not name.startswith("empty")
    }
    return replace(condition, **repeated)  # type: ignore[arg-type]


@torch.no_grad()
def mean_loss(loss: Loss, generators: list[Generator]) -> float:
    """Over the same random numbers at every call."""
    return sum(float(loss(rng)) for rng in generators) / len(generators)
