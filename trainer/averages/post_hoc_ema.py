"""Averages of weights made after training, of any width (arXiv 2312.02696, 3).

An average of power gamma at update t weighs the weights of update k by
(k^(gamma+1) - (k-1)^(gamma+1)) / t^(gamma+1), exactly. Snapshots of such averages are combined so
that the weights of all updates come as near as possible to those of the wanted average.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.averages.config import power

PIECE = 8192
"""Updates whose weights are in memory at once."""


@dataclass(frozen=True)
class EmaProfile:
    """An average: its relative width, and the update it ends at."""

    sigma_rel: float
    update: int

    def weights(self, first: int, last: int) -> Tensor:
        """What it gives to the weights of the updates first..last-1, counted from 1; fp64."""
        exponent = power(self.sigma_rel) + 1
        k = torch.arange(first, last, dtype=torch.float64)
        # shares of t, so that no power overflows
        edges = (torch.stack([k - 1, k]) / self.update).clamp(max=1.0) ** exponent
        return edges[1] - edges[0]


@dataclass(frozen=True)
class Combination:
    """How to make an average from snapshots."""

    coefficients: Tensor
    """(n,), fp64: what each snapshot counts."""
    error: float
    """What is missing: the distance of the weights, relative to their size; 0 is exact."""


def combine(snapshots: Sequence[EmaProfile], wanted: EmaProfile) -> Combination:
    """The least-squares combination of snapshots.

    Solved by QR over pieces of the run: the memory does not grow with its length.
    """
    last = max(each.update for each in (*snapshots, wanted))
    columns = [*snapshots, wanted]
    rows = torch.zeros(0, len(columns), dtype=torch.float64)
    for first in range(1, last + 1, PIECE):
        piece = torch.stack(
            [each.weights(first, min(first + PIECE, last + 1)) for each in columns], dim=1
        )
        rows = torch.linalg.qr(torch.cat([rows, piece]), mode="r").R
    basis, aim = rows[:, :-1], rows[:, -1:]
    coefficients = torch.linalg.lstsq(basis, aim, driver="gelsd").solution
    error = (basis @ coefficients - aim).norm() / aim.norm()
    return Combination(coefficients[:, 0], float(error))
