"""The range of normalised embeddings, and the best of several."""

import math

import pytest
import torch

from mezzotint.common.embedding_scaling import EmbeddingScaling
from models.diffusion.parameterization import from_x0
from models.diffusion.prior.sampling import best_match, embedding_thresholding
from models.diffusion.schedules.schedule import CosineSchedule

T = torch.tensor([0.5, 0.5])


def scaling(kind, dim=4):
    measured = {"mean": (0.0,) * dim, "std": (1.0,) * dim} if kind == "mean_std" else {}
    return EmbeddingScaling(kind=kind, dim=dim, samples=9, **measured)


def limited(kind, x0):
    schedule = CosineSchedule()
    x = torch.zeros_like(x0)

    def plain(x, t, condition):
        return from_x0(x0, x, schedule.at(t))

    found = embedding_thresholding(scaling(kind)).wrap(plain, schedule)(x, T, None)
    here = schedule.at(T).broadcast_to(x)
    torch.testing.assert_close(here.alpha * found.x0 + here.sigma * found.noise, x)
    return found.x0


def test_values_beyond_ten_deviations_are_cut_off():
    x0 = torch.tensor([[11.0, -30.0, 9.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    wanted = torch.tensor([[10.0, -10.0, 9.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    assert torch.equal(limited("mean_std", x0), wanted)


@pytest.mark.parametrize(("kind", "norm"), [("openai_17.2", 17.2), ("l2_sqrt_d", 2.0)])
def test_directions_stay_within_their_sphere(kind, norm):
    x0 = torch.tensor([[30.0, 40.0, 0.0, 0.0], [0.3, 0.4, 0.0, 0.0]])
    found = limited(kind, x0)
    torch.testing.assert_close(found[0], x0[0] * norm / 50)
    torch.testing.assert_close(found[1], x0[1])
    assert math.isclose(float(scaling(kind).normalize(x0).norm(dim=1)[0]), norm, rel_tol=1e-6)


def test_the_most_similar_candidate_of_each_caption_is_kept_whatever_its_length():
    captions = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    candidates = torch.tensor([[[1.0, 0.1], [9.0, 9.0]], [[1.0, 0.0], [-1.0, 0.5]]])
    best, number = best_match(candidates, captions)
    assert number.tolist() == [0, 1]
    assert torch.equal(best, candidates[[0, 1], [0, 1]])
