"""A linear classifier of features, independent of the model whose images it classifies."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from evaluation.metrics.intervals import Score, wilson


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on standardised features, float64."""

    mean: Tensor
    """(D,)."""
    std: Tensor
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
        mean, std = exact.mean(dim=0), exact.std(dim=0).clamp(min=1e-6)
        normalized = (exact - mean) / std
        sample_weight = (len(labels) / classes / counts.double())[labels] / len(labels)
        weight = torch.zeros(
            classes, exact.shape[1], dtype=torch.float64, device=exact.device, requires_grad=True
        )
        bias = torch.zeros(classes, dtype=torch.float64, device=exact.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            errors = F.cross_entropy(F.linear(normalized, weight, bias), labels, reduction="none")
            value = (sample_weight * errors).sum() + penalty / 2 * weight.square().sum()
            torch.autograd.backward(value)
            return value.detach()

        optimizer.step(loss)  # type: ignore[no-untyped-call, arg-type, unused-ignore]
        return cls(mean, std, weight.detach(), bias.detach())

    def __call__(self, features: Tensor) -> Tensor:
        """The class (N,) of features (N, D)."""
        normalized = (features.double() - self.mean) / self.std
        return F.linear(normalized, self.weight, self.bias).argmax(dim=1)


def classifier_accuracy(
    probe: LinearProbe, features: Tensor, labels: Tensor, names: Sequence[str]
) -> dict[str, Score | float]:
    """How often the classifier names the right class: of all images, and of those of each class."""
    right = (probe(features) == labels).double()
    of_class = {
        f"accuracy/{name}": float(right[labels == index].mean()) for index, name in enumerate(names)
    }
    return {"accuracy": wilson(float(right.sum()), len(right)), **of_class}
