"""Best of N: the expected value of the best-scored of N candidates."""

import math

import torch
from torch import Tensor


def best_of_weights(count: int, best_of: int) -> Tensor:
    """Probability (count,) that the candidate of rank r (0 = best) is the best of a random subset.

    All subsets of `best_of` out of `count` candidates are equally likely. Rank r is the best when
    it is in the subset and the others come from the count - 1 - r below.
    """
    if not 1 <= best_of <= count:
        raise ValueError(f"cannot take the best of {best_of} out of {count} candidates")
    subsets = math.comb(count, best_of)
    weights = [math.comb(count - 1 - rank, best_of - 1) / subsets for rank in range(count)]
    return torch.tensor(weights, dtype=torch.float64, device="cpu")


def expected_best(values: Tensor, scores: Tensor, best_of: int) -> Tensor:
    """Per row, the expected value of the one that `scores` (R, N) choose among `best_of`.

    `values` (R, N) is what is counted (exact matches, or the scores themselves). Averaging over
    all subsets uses every candidate for every N; with the scores as values the result never
    decreases in N.
    """
    ranked = values.double().gather(1, scores.argsort(dim=1, descending=True, stable=True))
    return ranked @ best_of_weights(values.shape[1], best_of)


def sizes(count: int) -> list[int]:
    """1, 2, 4, ... up to `count`, and `count` itself."""
    powers = [2**power for power in range(count.bit_length()) if 2**power < count]
    return [*powers, count]
