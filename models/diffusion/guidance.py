"""Wrappers of denoisers; they compose."""

from typing import TypeVar

from torch import Tensor

from models.diffusion.condition import Condition
from models.diffusion.parameterization import Prediction, from_x0
from models.diffusion.process import Denoiser
from models.diffusion.schedule import Schedule

C = TypeVar("C")


def guided(denoiser: Denoiser[C], unconditional: Denoiser[C], scale: float) -> Denoiser[C]:
    """Classifier-free guidance (arXiv 2207.12598): u + scale (c - u).

    The scale is 1 + w of the paper: 1 is the conditional denoiser itself, 0 the unconditional one,
    each returned as it is, so bit for bit and at the cost of one call.
    """
    if scale == 1.0:
        return denoiser
    if scale == 0.0:
        return unconditional

    def denoise(x: Tensor, t: Tensor, cond: C) -> Prediction:
        c, u = denoiser(x, t, cond), unconditional(x, t, cond)
        return Prediction(
            u.x0 + scale * (c.x0 - u.x0), u.noise + scale * (c.noise - u.noise), c.spread
        )

    return denoise


def without_text(denoiser: Denoiser[Condition]) -> Denoiser[Condition]:
    """The denoiser as it acts on empty captions."""

    def denoise(x: Tensor, t: Tensor, cond: Condition) -> Prediction:
        return denoiser(x, t, cond.without_text())

    return denoise


def clamped(
    denoiser: Denoiser[C], schedule: Schedule, low: float = -1.0, high: float = 1.0
) -> Denoiser[C]:
    """x_0 clamped to the range of images, and the noise that then explains x_t.

    The static thresholding of Imagen (arXiv 2205.11487, 2.3); wrap it around guidance, which leaves
    the range.
    """

    def denoise(x: Tensor, t: Tensor, cond: C) -> Prediction:
        guess = denoiser(x, t, cond)
        inside = from_x0(guess.x0.clamp(low, high), x, schedule.at(t))
        return Prediction(inside.x0, inside.noise, guess.spread)

    return denoise
