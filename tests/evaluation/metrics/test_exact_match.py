"""Exact match: nearest by pixels, ties by image."""

import pytest
import torch

from evaluation.metrics.exact_match import Candidates, nearest


def images(count, size=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, size, size, 3), generator=rng, dtype=torch.uint8)


def test_a_noisy_copy_is_matched_to_its_original_and_the_mse_is_on_the_unit_scale():
    real = images(20)
    noisy = real.clone()
    noisy[:, 0, 0, 0] ^= 1
    candidates = Candidates.of(real, [str(index) for index in range(20)])
    matches = nearest(noisy, [str(index) for index in range(20)], candidates)
    assert all(match.exact for match in matches)
    one_level = (1 / 127.5) ** 2 / (8 * 8 * 3)
    assert [match.mse for match in matches] == pytest.approx([one_level] * 20, rel=1e-12)


def test_the_right_image_under_the_wrong_caption_is_no_match():
    real = images(2)
    candidates = Candidates.of(real, ["cat", "dog"])
    assert [match.exact for match in nearest(real, ["dog", "cat"], candidates)] == [False, False]


def test_any_caption_of_pixel_identical_images_counts():
    real = images(3)
    real[2] = real[0]
    candidates = Candidates.of(real, ["mrs claus", "other", "mother christmas"])
    assert len(candidates.captions) == 2
    captions = ["mother christmas", "mrs claus", "other"]
    assert [m.exact for m in nearest(real[[0, 0, 0]], captions, candidates)] == [True, True, False]


def test_distances_equal_a_direct_sum_in_any_block_size():
    real, generated = images(15), images(7, seed=1)
    candidates = Candidates.of(real, [str(index) for index in range(15)])
    direct = (generated[:, None].long() - real[None].long()).square().sum(dim=(2, 3, 4))
    for block in (1, 3, 256):
        matches = nearest(generated, ["?"] * 7, candidates, block=block)
        assert [match.candidate for match in matches] == direct.argmin(dim=1).tolist()
        scale = 127.5**2 * 8 * 8 * 3
        assert [match.mse for match in matches] == [
            value / scale for value in direct.min(dim=1).values.tolist()
        ]


def test_images_of_another_size_are_refused():
    candidates = Candidates.of(images(2), ["a", "b"])
    with pytest.raises(ValueError, match="cannot be compared"):
        nearest(images(1, size=4), ["a"], candidates)
