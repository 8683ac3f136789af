"""Cascaded diffusion: a text-conditional base, then super-resolution (arXiv 2106.15282)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import BaseModel, Field
from torch import Generator, Tensor

from models.diffusion.condition import Condition
from models.diffusion.guidance import clamped, guided, without_text
from models.diffusion.process import denoiser
from models.diffusion.solvers.ddim import DDIM
from models.diffusion.solvers.times import uniform_times
from models.diffusion.super_resolution import SuperResolution
from models.diffusion.text_diffusion import TextDiffusion
from models.diffusion.unet.network import UNet

Base = TextDiffusion | UNet
"""Draws pictures from captions."""
Upsampler = SuperResolution | UNet
"""Enlarges pictures."""

Progress = Callable[[int, int], None]
"""Called with the steps done and their total."""


class StageSampling(BaseModel, frozen=True, extra="forbid"):
    """DDIM sampling of one stage.

    `guidance` acts on captions (1 is the plain conditional model); `level` is the degradation of
    the low-resolution input, which a base does not have.
    """

    steps: int = Field(default=25, gt=0)
    guidance: float = Field(default=1.0, ge=0)
    level: float = Field(default=0.0, ge=0, le=1)
    eta: float = Field(default=0.0, ge=0)


@torch.no_grad()
def draw(
    base: Base,
    text: Tensor,
    rng: Generator,
    *,
    sampling: StageSampling,
    progress: Progress | None = None,
) -> Tensor:
    """Images (B, 3, h, w) in [-1, 1] for captions (B, L)."""
    side = base.config.image_size
    noise = torch.randn((len(text), 3, side, side), generator=rng, device=text.device)
    return _solved(base, noise, Condition(text=text), rng, sampling, progress)


@torch.no_grad()
def upsample(
    upsampler: Upsampler,
    low: Tensor,
    rng: Generator,
    *,
    sampling: StageSampling,
    progress: Progress | None = None,
) -> Tensor:
    """Images in [-1, 1], larger by the network's factor than `low` (B, 3, h, w)."""
    factor = upsampler.config.factor
    level = torch.full((len(low),), sampling.level, device=low.device)
    spoiled = upsampler.augmentation(low, level, rng)
    shape = (len(low), 3, low.shape[2] * factor, low.shape[3] * factor)
    noise = torch.randn(shape, generator=rng, device=low.device)
    return _solved(upsampler, noise, Condition(low=spoiled, level=level), rng, sampling, progress)


def _solved(
    network: Base | Upsampler,
    noise: Tensor,
    cond: Condition,
    rng: Generator,
    sampling: StageSampling,
    progress: Progress | None,
) -> Tensor:
    """DDIM from noise to image, x_0 kept inside [-1, 1]."""
    schedule = network.process.schedule
    plain = denoiser(network)
    if cond.text is not None:
        plain = guided(plain, without_text(plain), sampling.guidance)
    solver = DDIM(schedule, sampling.eta)
    x = solver.solve(
        clamped(plain, schedule), noise, uniform_times(sampling.steps), cond, rng, progress
    )
    return x.clamp(-1, 1)


@dataclass(frozen=True)
class CascadeSamples:
    """Pictures of both stages."""

    base: Tensor
    """(B, 3, h, w) in [-1, 1]."""
    images: Tensor
    """(B, 3, H, W) in [-1, 1]."""


@dataclass(frozen=True)
class Cascade:
    """A base and the super-resolution network that enlarges its pictures."""

    base: Base
    upsampler: Upsampler

    def sample(
        self,
        text: Tensor,
        rng: Generator,
        *,
        base: StageSampling,
        upsampler: StageSampling,
        progress: Progress | None = None,
    ) -> CascadeSamples:
        """Pictures for captions (B, L); progress counts the steps of both stages."""
        total = base.steps + upsampler.steps

        def report(done: int, _: int) -> None:
            if progress is not None:
                progress(done, total)

        def report_second(done: int, _: int) -> None:
            report(base.steps + done, total)

        low = draw(self.base, text, rng, sampling=base, progress=report)
        images = upsample(self.upsampler, low, rng, sampling=upsampler, progress=report_second)
        return CascadeSamples(low, images)
