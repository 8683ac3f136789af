"""The Fréchet distance between two sets of features (Heusel et al., arXiv 1706.08500, eq. 6)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D) of n features, float64."""

    mean: Tensor
    covariance: Tensor
    n: int


def fit(features: Tensor) -> Gaussian:
    """Gaussian of features (n, D), with the unbiased covariance.

    Raises:
        ValueError: fewer than two features, from which no covariance can be estimated.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"need at least 2 feature vectors (n, D), got {tuple(features.shape)}")
    exact = features.double()
    return Gaussian(mean=exact.mean(dim=0), covariance=torch.cov(exact.T), n=len(features))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (AB)^(1/2)), float64.

    tr (AB)^(1/2) is the sum of the square roots of the eigenvalues of A^(1/2) B A^(1/2), which is
    symmetric and positive semidefinite: no complex square root, no jitter on the diagonal, exact
    also where a covariance is singular (fewer images than feature dimensions).
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    inner = root @ b.covariance @ root
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * cross
    return ((a.mean - b.mean).square().sum() + spread).item()


def caution(a: Gaussian, b: Gaussian) -> str | None:
    """What a reader must know about a distance estimated from few images; None if enough."""
    dimensions, fewest = len(a.mean), min(a.n, b.n)
    if fewest > dimensions:
        return None
    return (
        f"{fewest} images for {dimensions} feature dimensions: the covariance is singular and the "
        "distance is biased upwards; compare it only with distances from as many images"
    )
