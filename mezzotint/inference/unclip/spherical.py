"""Interpolation on spheres, of embeddings and of noise (unCLIP, arXiv 2204.06125, 3.2 and 3.3)."""

import torch
from torch import Tensor

from mezzotint.common.errors import UserError

PARALLEL = 1e-6
"""Sine of the angle below which two directions count as one."""


def slerp(start: Tensor, end: Tensor, fraction: float) -> Tensor:
    """Vectors (..., D) on the arc from `start` to `end`, which are those of fraction 0 and 1.

    Directions turn at constant speed (Shoemake 1985) and lengths change linearly, so that between
    unit vectors all are unit vectors. Along one line they are interpolated linearly.
    """
    a, b = start.double(), end.double()
    length_a, length_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    scale_a, scale_b = length_a.clamp_min(1e-300), length_b.clamp_min(1e-300)
    cosine = ((a / scale_a) * (b / scale_b)).sum(dim=-1, keepdim=True).clamp(-1, 1)
    angle = cosine.acos()
    sine = angle.sin()
    length = (1 - fraction) * length_a + fraction * length_b
    weight_a = ((1 - fraction) * angle).sin() / sine * length / scale_a
    weight_b = (fraction * angle).sin() / sine * length / scale_b
    line = (1 - fraction) * a + fraction * b
    return torch.where(sine < PARALLEL, line, weight_a * a + weight_b * b).to(start)


def slerp_noise(start: Tensor, end: Tensor, fraction: float) -> Tensor:
    """The same for noise (B, C, h, w), each sample as one vector: it stays as large as noise is."""
    return slerp(start.flatten(1), end.flatten(1), fraction).view_as(start)


def text_difference(source: Tensor, target: Tensor) -> Tensor:
    """The direction (D,) from the embedding of one caption to that of another, as a unit vector.

    Raises:
        UserError: both have the same direction.
    """
    found = unit(target.double()) - unit(source.double())
    if float(found.norm()) < PARALLEL:
        raise UserError(
            "textdiff: CLIP reads both captions as the same, so there is no direction from one to "
            "the other; choose captions that differ in what the image shows"
        )
    return unit(found).to(source)


def rotate_towards(embedding: Tensor, direction: Tensor, theta: float) -> Tensor:
    """Embeddings (..., D) turned by a part `theta` of their angle to a direction (D,).

    Their lengths stay; theta 0 returns them as they are.
    """
    return slerp(embedding, direction * embedding.norm(dim=-1, keepdim=True), theta)


def unit(vectors: Tensor) -> Tensor:
    """Vectors (..., D) at length 1."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
