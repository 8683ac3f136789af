"""Cascaded diffusion: a text-conditional base, then super-resolution (arXiv 2106.15282)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Generator, Tensor

from models.diffusion.condition import Condition
from models.diffusion.guidance import without_text
from models.diffusion.process import denoiser
from models.diffusion.sampling import NFE, DiffusionSampling, count_nfe
from models.diffusion.solvers.config import DDIMConfig, SolverConfig
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
    """Sampling of one stage, by DDIM with `eta` unless another solver is set.

    `guidance` acts on captions (1 is the plain conditional model); `level` is the degradation of
    the low-resolution input, which a base does not have.
    """

    steps: int = Field(default=25, gt=0)
    guidance: float = Field(default=1.0, ge=0)
    level: float = Field(default=0.0, ge=0, le=1)
    eta: float = Field(default=0.0, ge=0)
    solver: SolverConfig | None = None

    @model_validator(mode="after")
    def _one_eta(self) -> Self:
        if self.solver is not None and self.eta:
            raise ValueError("eta belongs to DDIM: with a solver, set solver.eta instead")
        return self

    def sampling(self) -> DiffusionSampling:
        """The same as any diffusion model's sampling."""
        solver = DDIMConfig(eta=self.eta) if self.solver is None else self.solver
        return DiffusionSampling(solver=solver, steps=self.steps, guidance=self.guidance)


@torch.no_grad()
def draw(
    base: Base,
    text: Tensor,
    rng: Generator,
    *,
    sampling: StageSampling,
    progress: Progress | None = None,
    calls: NFE | None = None,
) -> Tensor:
    """Images (B, 3, h, w) in [-1, 1] for captions (B, L); adds to `calls`."""
    side = base.config.image_size
    noise = torch.randn((len(text), 3, side, side), generator=rng, device=text.device)
    return _solved(base, noise, Condition(text=text), rng, sampling, progress, calls or NFE())


@torch.no_grad()
def upsample(
    upsampler: Upsampler,
    low: Tensor,
    rng: Generator,
    *,
    sampling: StageSampling,
    progress: Progress | None = None,
    calls: NFE | None = None,
) -> Tensor:
    """Images in [-1, 1], larger by the network's factor than `low` (B, 3, h, w)."""
    factor = upsampler.config.factor
    level = torch.full((len(low),), sampling.level, device=low.device)
    spoiled = upsampler.augmentation(low, level, rng)
    shape = (len(low), 3, low.shape[2] * factor, low.shape[3] * factor)
    noise = torch.randn(shape, generator=rng, device=low.device)
    cond = Condition(low_res=spoiled, noise_level=level)
    return _solved(upsampler, noise, cond, rng, sampling, progress, calls or NFE())


def _solved(
    network: Base | Upsampler,
    noise: Tensor,
    cond: Condition,
    rng: Generator,
    stage: StageSampling,
    progress: Progress | None,
    calls: NFE,
) -> Tensor:
    """From noise to image, x_0 kept inside [-1, 1]."""
    schedule, sampling = network.process.schedule, stage.sampling()
    plain = count_nfe(denoiser(network), calls)
    free = plain if cond.text is None else without_text(plain)
    return (
        sampling.sampler_run(plain, free, schedule).solve(noise, cond, rng, progress).clamp(-1, 1)
    )


@dataclass(frozen=True)
class CascadeSamples:
    """Pictures of both stages."""

    base: Tensor
    """(B, 3, h, w) in [-1, 1]."""
    images: Tensor
    """(B, 3, H, W) in [-1, 1]."""
    calls: NFE
    """Of both networks."""


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

        calls = NFE()
        low = draw(self.base, text, rng, sampling=base, progress=report, calls=calls)
        images = upsample(
            self.upsampler, low, rng, sampling=upsampler, progress=report_second, calls=calls
        )
        return CascadeSamples(low, images, calls)
