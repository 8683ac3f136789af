"""Wrappers of denoisers that steer them; they compose."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from models.diffusion.condition import Condition
from models.diffusion.parameterization import Prediction, from_noise, from_v, to_v
from models.diffusion.process import Denoiser
from models.diffusion.schedules.marginal import Schedule

C = TypeVar("C")
LogProbability = Callable[[Tensor, Tensor], Tensor]
"""Noisy (B, ...) and times (B,) to ln p(y | x_t) of the wanted class, (B,)."""


def with_guidance(denoiser: Denoiser[C], unconditional: Denoiser[C], scale: float) -> Denoiser[C]:
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
            u.x0 + scale * (c.x0 - u.x0), u.noise + scale * (c.noise - u.noise), c.logvar_fraction
        )

    return denoise


def with_guidance_interval(
    denoiser: Denoiser[C],
    unconditional: Denoiser[C],
    scale: float,
    *,
    first: float,
    last: float,
) -> Denoiser[C]:
    """Guidance at times in [first, last] only (arXiv 2404.07724).

    Elsewhere it is the conditional denoiser bit for bit, in one call when a batch shares its time.
    """
    both = with_guidance(denoiser, unconditional, scale)

    def denoise(x: Tensor, t: Tensor, cond: C) -> Prediction:
        inside = (t >= first) & (t <= last)
        if bool(inside.all()):
            return both(x, t, cond)
        plain = denoiser(x, t, cond)
        if not bool(inside.any()):
            return plain
        steered = both(x, t, cond)
        here = inside.view((-1,) + (1,) * (x.ndim - 1))
        return Prediction(
            torch.where(here, steered.x0, plain.x0),
            torch.where(here, steered.noise, plain.noise),
            plain.logvar_fraction,
        )

    return denoise


def with_guidance_rescale(
    with_guidance: Denoiser[C], conditional: Denoiser[C], schedule: Schedule, share: float = 0.7
) -> Denoiser[C]:
    """Guidance whose v has, by `share`, the standard deviation of the conditional v per sample.

    arXiv 2305.08891, eq. 15 and 16, against overexposure; for schedules that preserve variance.
    Share 0 is the guided denoiser itself. It asks `conditional` once more; a caller who minds keeps
    the prediction.
    """
    if share == 0.0:
        return with_guidance

    def denoise(x: Tensor, t: Tensor, cond: C) -> Prediction:
        strong, plain, here = with_guidance(x, t, cond), conditional(x, t, cond), schedule.at(t)
        v, wanted = to_v(strong, here), to_v(plain, here)
        ratio = _deviations(wanted) / _deviations(v)
        guess = from_v(share * v * ratio + (1 - share) * v, x, here)
        return Prediction(guess.x0, guess.noise, strong.logvar_fraction)

    return denoise


def with_condition(denoiser: Denoiser[C], other: C) -> Denoiser[C]:
    """The denoiser under the condition `other` whatever it is called with.

    With a negative prompt it is the unconditional side of `with_guidance`.
    """

    def denoise(x: Tensor, t: Tensor, cond: C) -> Prediction:
        return denoiser(x, t, other)

    return denoise


def without_text(denoiser: Denoiser[Condition]) -> Denoiser[Condition]:
    """The denoiser as it acts on empty captions."""

    def denoise(x: Tensor, t: Tensor, cond: Condition) -> Prediction:
        return denoiser(x, t, cond.without_text())

    return denoise


def without_class(denoiser: Denoiser[Condition], null: int) -> Denoiser[Condition]:
    """The denoiser as it acts on the label `null`, "no class"."""

    def denoise(x: Tensor, t: Tensor, cond: Condition) -> Prediction:
        return denoiser(x, t, cond.without_class(null))

    return denoise


def classifier_gradient(
    log_probability: LogProbability, scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """scale x the gradient of ln p(y | x_t) with respect to x_t (B, ...)."""

    def gradient(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            place = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(log_probability(place, t).sum(), place)
        return scale * slope

    return gradient


def with_classifier_guidance(
    denoiser: Denoiser[C], schedule: Schedule, log_probability: LogProbability, scale: float
) -> Denoiser[C]:
    """Classifier guidance for any solver: noise - sigma scale grad ln p(y | x_t).

    arXiv 2105.05233, algorithm 2. Scale 0 is the denoiser itself; at scale 1, with the true
    classifier, the guess is that of the conditional density. `DDPM(gradient=...)` is algorithm 1.
    """
    if scale == 0.0:
        return denoiser
    gradient = classifier_gradient(log_probability, scale)

    def denoise(x: Tensor, t: Tensor, cond: C) -> Prediction:
        guess, here = denoiser(x, t, cond), schedule.at(t)
        steered = from_noise(guess.noise - here.like(x).sigma * gradient(x, t), x, here)
        return Prediction(steered.x0, steered.noise, guess.logvar_fraction)

    return denoise


def _deviations(values: Tensor) -> Tensor:
    """Standard deviations of the samples of (B, ...), shaped (B, 1, ...)."""
    return values.flatten(1).std(dim=1).view((-1,) + (1,) * (values.ndim - 1))
