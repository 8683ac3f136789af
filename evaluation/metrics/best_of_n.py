"""Best of N: the expected value of the best-scored of N candidates."""

import math

import torch
from torch import Tensor


def best_of_weights(count: int, best_of: int, keep: int = 1) -> Tensor:
    """Weight (count,) of the candidate of rank r (0 = best) in the best `keep` of a random subset.

    All subsets of `best_of` out of `count` candidates are equally likely. Rank r is kept when it is
    in the subset and j < `keep` others come from the r above it, the rest from the count - 1 - r
    below; the probabilities are divided by `keep`, so that they sum to 1.
    """
    if not 1 <= best_of <= count:
        raise ValueError(f"cannot take the best of {best_of} out of {count} candidates")
    if not 1 <= keep <= best_of:
        raise ValueError(f"cannot keep {keep} of {best_of} candidates")
    subsets = math.comb(count, best_of) * keep
    return torch.tensor(
        [
            sum(
                math.comb(rank, above) * math.comb(count - 1 - rank, best_of - 1 - above)
                for above in range(keep)
            )
            / subsets
            for rank in range(count)
        ],
        dtype=torch.float64,
        device="cpu",
    )


def expected_best(values: Tensor, scores: Tensor, best_of: int, keep: int = 1) -> Tensor:
    """Per row, the expected mean of the `keep` that `scores` (R, N) choose among `best_of`.

    `values` (R, N) is what is counted (exact matches, or the scores themselves). Averaging over
    all subsets uses every candidate for every N; with the scores as values the result never
    decreases in N.
    """
    ranked = values.double().gather(1, scores.argsort(dim=1, descending=True, stable=True))
    return ranked @ best_of_weights(values.shape[1], best_of, keep)


def sizes(count: int) -> list[int]:
    """1, 2, 4, ... up to `count`, and `count` itself."""
    powers = [2**power for power in range(count.bit_length()) if 2**power < count]
    return [*powers, count]
