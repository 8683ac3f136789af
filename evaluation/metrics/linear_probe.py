"""A linear classifier of features: an independent judge of what pictures show."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on standardised features, float64."""

    mean: Tensor
    """(D,)."""
    deviation: Tensor
    """(D,)."""
    weight: Tensor
    """(K, D)."""
    bias: Tensor
    """(K,)."""

    @classmethod
    def fit(
        cls, features: Tensor, labels: Tensor, classes: int, *, penalty: float = 0.01
    ) -> "LinearProbe":
        """Fit on features (N, D) of labels (N,): balanced cross-entropy + penalty/2 |W|^2.

        Every class counts the same however many samples it has. The problem is convex, so the
        result depends on the data alone.

        Raises:
            ValueError: a class without samples.
        """
        counts = torch.bincount(labels, minlength=classes)
        if len(counts) > classes or int(counts.min()) == 0:
            raise ValueError(f"need samples of each of {classes} classes, got {counts.tolist()}")
        exact = features.double()
        mean, deviation = exact.mean(dim=0), exact.std(dim=0).clamp(min=1e-6)
        plain = (exact - mean) / deviation
        share = (len(labels) / classes / counts.double())[labels] / len(labels)
        weight = torch.zeros(classes, exact.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            errors = F.cross_entropy(F.linear(plain, weight, bias), labels, reduction="none")
            value = (share * errors).sum() + penalty / 2 * weight.square().sum()
            torch.autograd.backward(value)
            return value.detach()

        optimizer.step(loss)  # type: ignore[no-untyped-call, arg-type, unused-ignore]
        return cls(mean, deviation, weight.detach(), bias.detach())

    def __call__(self, features: Tensor) -> Tensor:
        """The class (N,) of features (N, D)."""
        plain = (features.double() - self.mean) / self.deviation
        return F.linear(plain, self.weight, self.bias).argmax(dim=1)
