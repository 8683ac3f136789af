"""BSRGAN's degradation: blur, resizing, noise and JPEG in a random order (arXiv 2103.14006, 4).

Here of the image at its low resolution, and without the noise of camera sensors.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from models.diffusion.bsr.jpeg import jpeg

NUMBERS = 25
"""Uniform numbers that the degradation of an image takes at most."""
NOISE_CHANNELS = 4
"""Channels of its normal noise: one for each colour, and one that they share."""
_OPERATIONS = 6
_SIZES = (7, 9, 11, 13, 15, 17, 19, 21)
_BLUR, _VARIANCE, _NOISE, _QUALITY, _FACTOR = 2.2, 5.0, 25 / 255, (30, 95), 2.0
"""The strongest: standard deviation and variance of blur in pixels, standard deviation of noise,
qualities of JPEG, factor by which an image is made smaller and larger again."""


def degrade(image: Tensor, numbers: Sequence[float], noise: Tensor, strength: float) -> Tensor:
    """An image (3, h, w) in [0, 1], degraded.

    `numbers` are uniform and decide on everything but `noise` (4, h, w), which is normal. Blur
    twice, smaller and larger again, noise, and 9 times in 10 JPEG, in a random order; then JPEG.
    """
    draw = iter(numbers)
    keys = [next(draw) for _ in range(_OPERATIONS)]
    order = sorted(range(_OPERATIONS), key=keys.__getitem__)
    small, large = sorted((order.index(0), order.index(1)))
    order[small], order[large] = 0, 1
    size = image.shape[1:]
    operations: list[Callable[[Tensor], Tensor]] = [
        partial(_smaller, draw=draw, strength=strength),
        partial(_resized, size=size, draw=draw, modes=("bilinear", "bicubic")),
        partial(_blurred, draw=draw, strength=strength),
        partial(_blurred, draw=draw, strength=strength),
        partial(_with_noise, noise=noise, draw=draw, strength=strength),
        partial(_maybe_jpeg, draw=draw, strength=strength),
    ]
    for index in order:
        image = operations[index](image).clamp(0, 1)
    return jpeg(image, _quality(next(draw), strength))


def _smaller(image: Tensor, draw: Iterator[float], strength: float) -> Tensor:
    factor = 1 + (_FACTOR - 1) * strength * next(draw)
    size = [max(1, round(side / factor)) for side in image.shape[1:]]
    return _resized(image, size, draw, ("nearest", "bilinear", "bicubic", "area"))


def _resized(
    image: Tensor, size: Sequence[int], draw: Iterator[float], modes: Sequence[str]
) -> Tensor:
    mode = modes[int(next(draw) * len(modes))]
    if list(image.shape[1:]) == list(size):
        return image
    return F.interpolate(image[None], tuple(size), mode=mode)[0]


def _blurred(image: Tensor, draw: Iterator[float], strength: float) -> Tensor:
    """Blurred by a gaussian, half of the time of two widths along a random direction."""
    size, round_one = _SIZES[int(next(draw) * len(_SIZES))], next(draw) < 0.5
    first, second, angle = next(draw), next(draw), next(draw) * math.pi
    least = 0.01
    if round_one:
        wide = narrow = max(_BLUR * strength * first, 0.1) ** 2
    else:
        wide, narrow = (max(_VARIANCE * strength * each, least) for each in (first, second))
    kernel = gaussian_kernel_2d(size, wide, narrow, angle).to(image)
    margin = size // 2
    padded = F.pad(image[:, None], (margin, margin, margin, margin), mode="replicate")
    return F.conv2d(padded, kernel[None, None])[:, 0]


def gaussian_kernel_2d(size: int, variance: float, other: float, angle: float) -> Tensor:
    """A gaussian (size, size) with sum 1: one variance along a direction, another across it."""
    offsets = torch.arange(size, dtype=torch.float64, device="cpu") - (size - 1) / 2
    rows, columns = offsets[:, None], offsets
    along = columns * math.cos(angle) + rows * math.sin(angle)
    across = rows * math.cos(angle) - columns * math.sin(angle)
    weights = torch.exp(-0.5 * (along**2 / variance + across**2 / other))
    return weights / weights.sum()


def _with_noise(image: Tensor, noise: Tensor, draw: Iterator[float], strength: float) -> Tensor:
    """Noise of each colour, of all alike, or 1 time in 5 of both together."""
    size, kind, share = _NOISE * strength * next(draw), next(draw), next(draw)
    shared = 0.0 if kind < 0.4 else 1.0 if kind < 0.8 else share
    height, width = image.shape[1:]
    part = noise[:, :height, :width]
    both = math.sqrt(1 - shared) * part[:3] + math.sqrt(shared) * part[3:]
    return image + size * both


def _maybe_jpeg(image: Tensor, draw: Iterator[float], strength: float) -> Tensor:
    wanted, quality = next(draw) < 0.9, _quality(next(draw), strength)
    return jpeg(image, quality) if wanted else image


def _quality(number: float, strength: float) -> int:
    lowest, highest = _QUALITY
    return round(highest - (highest - lowest) * strength * number)
