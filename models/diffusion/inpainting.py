"""Inpainting: random masks to train for it, and known-region replacement without training.

A model that was not trained for inpainting has its known region replaced at every step, as in
RePaint (arXiv 2201.09865, eq. 8) without its resampling, and with one noise for all steps: the
known region then follows its exact path from noise to the image, under every solver.
"""

from typing import TypeVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from models.diffusion.parameterization import Prediction
from models.diffusion.process import Denoiser
from models.diffusion.schedules.marginal import Schedule

C = TypeVar("C")


def with_known_region(
    denoiser: Denoiser[C], schedule: Schedule, known: Tensor, noise: Tensor, keep: Tensor
) -> Denoiser[C]:
    """The denoiser, given x_0 and the noise where `keep` (B, 1, h, w) is true.

    There its input is alpha `known` + sigma `noise` (B, C, h, w), and its prediction these two.
    """

    def denoise(x: Tensor, t: Tensor, condition: C) -> Prediction:
        here = schedule.at(t).broadcast_to(x)
        replaced = torch.where(keep, here.alpha * known + here.sigma * noise, x)
        found = denoiser(replaced, t, condition)
        return Prediction(
            lambda: torch.where(keep, known, found.x0),
            lambda: torch.where(keep, noise, found.noise),
            found.logvar_fraction,
            found.mean_gradient,
        )

    return denoise


def random_masks(
    count: int, side: int, everything: float, rng: Generator, device: torch.device
) -> Tensor:
    """Masks (B, 1, side, side) of one to three rectangles; 1 is generated.

    A share `everything` of them is 1 everywhere: so the model generates whole images too.
    """
    masks = torch.zeros(count, 1, side, side, device=device)
    places = torch.arange(side, device=device)
    for _ in range(3):
        sizes = torch.rand(count, 2, generator=rng, device=device) * 0.6 + 0.1
        starts = torch.rand(count, 2, generator=rng, device=device) * (1 - sizes)
        first, last = (starts * side)[..., None], ((starts + sizes) * side)[..., None]
        inside = ((places >= first.floor()) & (places < last.ceil())).float()
        taken = torch.rand(count, generator=rng, device=device) < 0.6
        masks += taken.view(-1, 1, 1, 1) * (inside[:, 0, :, None] * inside[:, 1, None, :])[:, None]
    whole = torch.rand(count, generator=rng, device=device) < everything
    masks = torch.where(masks.flatten(1).any(dim=1).view(-1, 1, 1, 1), masks, 1.0)
    return torch.where(whole.view(-1, 1, 1, 1), 1.0, masks.clamp(max=1.0))


def coarse_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (B, 1, H, W) at the size of latents: 1 where any of its pixels is repainted."""
    factors = mask.shape[2] // size[0], mask.shape[3] // size[1]
    return F.max_pool2d(mask, factors)
