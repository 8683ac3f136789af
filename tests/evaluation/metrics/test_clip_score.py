"""CLIP score arithmetic, without a CLIP model."""

import pytest
import torch
from torch.nn.functional import normalize

from evaluation.metrics.clip_retrieval import distractors, retrieves
from evaluation.metrics.clip_score import clip_scores, shuffled
from mezzotint.common.keyed_random import keyed_generator, keyed_seed


def test_the_score_is_100_times_the_cosine():
    images = torch.eye(3)
    texts = normalize(torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]]), dim=1)
    assert clip_scores(images, texts).tolist() == pytest.approx([70.7107, 100.0, -100.0])


def test_swapped_captions_score_lower_than_the_right_ones():
    images = normalize(torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    partner = shuffled([str(index) for index in range(12)], torch.Generator().manual_seed(0))
    assert clip_scores(images, images[partner]).mean() < clip_scores(images, images).mean()


def test_shuffling_leaves_no_caption_in_its_place_and_uses_each_once():
    for count in (2, 3, 17):
        captions = [str(index) for index in range(count)]
        partner = shuffled(captions, torch.Generator().manual_seed(count))
        assert sorted(partner) == list(range(count))
        assert all(other != index for index, other in enumerate(partner))


def test_distractors_are_fixed_by_seed_and_caption_and_never_right():
    pool = [f"caption {index}" for index in range(60)] + ["caption 3"]
    first = distractors("caption 3", pool, {"caption 5"}, 49, seed=0)
    assert first == distractors("caption 3", pool, {"caption 5"}, 49, seed=0)
    assert first != distractors("caption 3", pool, {"caption 5"}, 49, seed=1)
    assert len(set(first)) == 49
    assert not {"caption 3", "caption 5"} & {pool[index] for index in first}


def test_too_few_wrong_captions_are_refused():
    with pytest.raises(ValueError, match="49 wrong captions"):
        distractors("a", ["a", "b", "c"], set(), 49, seed=0)


def test_retrieval_wants_the_own_caption_strictly_above_all_others():
    image, own = torch.tensor([1.0, 0.0]), torch.tensor([0.8, 0.6])
    assert retrieves(image, own, torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    assert not retrieves(image, own, torch.tensor([[0.8, 0.6], [0.0, 1.0]]))


def test_keyed_generators_depend_on_every_label_and_on_nothing_else():
    assert keyed_seed(0, "a", 1) == keyed_seed(0, "a", 1)
    assert len({keyed_seed(0, "a", 1), keyed_seed(1, "a", 1), keyed_seed(0, "a", 2)}) == 3
    assert keyed_seed(0, "ab", "c") != keyed_seed(0, "a", "bc")
    draws = [torch.rand(3, generator=keyed_generator(0, "x")).tolist() for _ in range(2)]
    assert draws[0] == draws[1]
