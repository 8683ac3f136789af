"""The Fréchet distance between two sets of features (Heusel et al., arXiv 1706.08500, eq. 6).

It is FID where the features are those of the canonical Inception weights (`features.py`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D) of n features, float64."""

    mean: Tensor
    covariance: Tensor
    n: int


@dataclass(frozen=True)
class FrechetDistance:
    """A Fréchet distance and the sizes of both sets, without which it cannot be compared."""

    value: float
    images: int
    reference_images: int
    sample_size_warning: str | None

    @classmethod
    def between(cls, features: Tensor, reference: Gaussian) -> "FrechetDistance":
        """The distance of features (n, D) to those of reference images."""
        own = fit(features)
        warning = sample_size_warning(own, reference)
        return cls(frechet_distance(own, reference), own.n, reference.n, warning)

    @property
    def counts(self) -> str:
        """The sizes of both sets as text."""
        return f"{self.images} against {self.reference_images} images"


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
    traces = a.covariance.trace() + b.covariance.trace() - 2 * cross
    return ((a.mean - b.mean).square().sum() + traces).item()


def sample_size_warning(a: Gaussian, b: Gaussian) -> str | None:
    """How a distance estimated from few images is biased; None if there are enough."""
    dimensions, fewest = len(a.mean), min(a.n, b.n)
    if fewest > dimensions:
        return None
    return (
        f"{fewest} images for {dimensions} feature dimensions: the covariance is singular and the "
        "distance is biased upwards; compare it only with distances from as many images"
    )
