"""Guidance as wrappers of denoisers; they compose."""

from collections.abc import Callable, Collection
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

    def denoise(x: Tensor, t: Tensor, condition: C) -> Prediction:
        c, u = denoiser(x, t, condition), unconditional(x, t, condition)
        x0, noise = u.x0 + scale * (c.x0 - u.x0), u.noise + scale * (c.noise - u.noise)
        return Prediction(x0, noise, c.logvar_fraction)

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
    guided = with_guidance(denoiser, unconditional, scale)

    def denoise(x: Tensor, t: Tensor, condition: C) -> Prediction:
        inside = (t >= first) & (t <= last)
        if bool(inside.all()):
            return guided(x, t, condition)
        c = denoiser(x, t, condition)
        if not bool(inside.any()):
            return c
        g, here = guided(x, t, condition), inside.view((-1,) + (1,) * (x.ndim - 1))
        x0, noise = torch.where(here, g.x0, c.x0), torch.where(here, g.noise, c.noise)
        return Prediction(x0, noise, c.logvar_fraction)

    return denoise


def with_guidance_rescale(
    guided: Denoiser[C], conditional: Denoiser[C], schedule: Schedule, fraction: float = 0.7
) -> Denoiser[C]:
    """Guidance whose v has, by `fraction`, the standard deviation of the conditional v per sample.

    arXiv 2305.08891, eq. 15 and 16, against overexposure; for schedules that preserve variance.
    Fraction 0 is the guided denoiser itself. It calls `conditional` once more: see `memoize_last`.
    """
    if fraction == 0.0:
        return guided

    def denoise(x: Tensor, t: Tensor, condition: C) -> Prediction:
        g, c, here = guided(x, t, condition), conditional(x, t, condition), schedule.at(t)
        v = to_v(g, here)
        ratio = _std(to_v(c, here)) / _std(v)
        return from_v(fraction * v * ratio + (1 - fraction) * v, x, here, g.logvar_fraction)

    return denoise


def _std(values: Tensor) -> Tensor:
    """Standard deviations of the samples of (B, ...), shaped (B, 1, ...)."""
    return values.flatten(1).std(dim=1).view((-1,) + (1,) * (values.ndim - 1))


def with_condition(denoiser: Denoiser[C], other: C) -> Denoiser[C]:
    """The denoiser under the condition `other`; its own condition argument is ignored.

    With a negative prompt it is the unconditional side of `with_guidance`.
    """
    return _map_condition(denoiser, lambda condition: other)


def without_text(denoiser: Denoiser[Condition]) -> Denoiser[Condition]:
    """The denoiser of empty captions."""
    return _map_condition(denoiser, lambda condition: condition.without_text)


def without_embedding(denoiser: Denoiser[Condition]) -> Denoiser[Condition]:
    """The denoiser of no image embedding."""
    return _map_condition(denoiser, lambda condition: condition.without_embedding)


def without_hints_of(
    denoiser: Denoiser[Condition], controls: Collection[int]
) -> Denoiser[Condition]:
    """The denoiser without the controls of these numbers."""
    if not controls:
        return denoiser
    return _map_condition(denoiser, lambda condition: condition.without_hints_of(controls))


def without_class(denoiser: Denoiser[Condition], null: int) -> Denoiser[Condition]:
    """The denoiser of the label `null`, "no class"."""
    return _map_condition(denoiser, lambda condition: condition.without_class(null))


def _map_condition(denoiser: Denoiser[C], change: Callable[[C], C]) -> Denoiser[C]:
    def denoise(x: Tensor, t: Tensor, condition: C) -> Prediction:
        return denoiser(x, t, change(condition))

    return denoise


def classifier_gradient(
    log_probability: LogProbability, scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """scale x the gradient of ln p(y | x_t) with respect to x_t (B, ...)."""

    def gradient(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(log_probability(point, t).sum(), point)
        return scale * slope

    return gradient


def with_classifier_guidance(
    denoiser: Denoiser[C], schedule: Schedule, log_probability: LogProbability, scale: float
) -> Denoiser[C]:
    """Classifier guidance for any solver: noise - sigma scale grad ln p(y | x_t).

    arXiv 2105.05233, algorithm 2. Scale 0 is the denoiser itself; at scale 1, with the true
    classifier, the prediction is that of the conditional density.
    """
    if scale == 0.0:
        return denoiser
    gradient = classifier_gradient(log_probability, scale)

    def denoise(x: Tensor, t: Tensor, condition: C) -> Prediction:
        pred, here = denoiser(x, t, condition), schedule.at(t)
        noise = pred.noise - here.broadcast_to(x).sigma * gradient(x, t)
        return from_noise(noise, x, here, pred.logvar_fraction)

    return denoise


def with_mean_gradient(
    denoiser: Denoiser[C], gradient: Callable[[Tensor, Tensor], Tensor]
) -> Denoiser[C]:
    """Classifier guidance for DDPM: the mean of a step moves by variance x gradient of (x, t).

    arXiv 2105.05233, algorithm 1. The outermost wrapper: the others would drop `mean_gradient`.
    """

    def denoise(x: Tensor, t: Tensor, condition: C) -> Prediction:
        pred = denoiser(x, t, condition)
        shift = gradient(x, t)
        return Prediction(lambda: pred.x0, lambda: pred.noise, pred.logvar_fraction, shift)

    return denoise
