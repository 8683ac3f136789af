"""Best of N as an average over all subsets."""

from itertools import combinations

import pytest
import torch

from evaluation.metrics.best_of_n import best_of_weights, expected_best, sizes


@pytest.mark.parametrize("best_of", [1, 2, 3, 5])
def test_expected_best_equals_enumerating_all_subsets(best_of):
    rng = torch.Generator().manual_seed(0)
    scores, values = torch.rand(3, 5, generator=rng), torch.rand(3, 5, generator=rng)
    for row in range(3):
        picks = [
            values[row, max(subset, key=lambda index: scores[row, index])].item()
            for subset in combinations(range(5), best_of)
        ]
        got = expected_best(values, scores, best_of)[row].item()
        assert got == pytest.approx(sum(picks) / len(picks), abs=1e-7)


def test_the_weights_are_probabilities():
    assert best_of_weights(512, 32).sum().item() == pytest.approx(1.0, abs=1e-12)
    for best_of in range(1, 17):
        assert best_of_weights(16, best_of).sum().item() == pytest.approx(1.0, abs=1e-12)


def test_the_mean_score_of_the_best_of_n_never_decreases_in_n():
    rng = torch.Generator().manual_seed(1)
    scores = torch.randn(40, 16, generator=rng)
    table = [expected_best(scores, scores, size) for size in sizes(16)]
    means = [each.mean().item() for each in table]
    assert means == sorted(means)
    assert table[0] == pytest.approx(scores.double().mean(dim=1))
    assert table[-1] == pytest.approx(scores.double().max(dim=1).values)


def test_the_sizes_double_and_end_at_the_number_of_candidates():
    assert sizes(16) == [1, 2, 4, 8, 16]
    assert sizes(6) == [1, 2, 4, 6]
    assert sizes(1) == [1]


def test_the_best_of_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="best of 3 out of 2"):
        best_of_weights(2, 3)
