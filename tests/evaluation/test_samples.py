"""Sample sets: which prompts, and what is on disk."""

import json

import pytest
import torch

from evaluation import samples
from evaluation.samples import EvaluationPrompt
from mezzotint.common.errors import UserError
from mezzotint.inference.generator import GenerationResult, image_generator


class Dice:
    """Generates noise; remembers nothing."""

    image_size = 4
    candidates = 3

    def generate(self, request, *, progress=None, callback=None):
        images = torch.stack([self.image(request, prompt) for prompt in request.prompts])
        return GenerationResult(images, images.flatten(2).float().mean(dim=2), None, 0.0)

    def image(self, request, prompt):
        rngs = [image_generator(request.seed, n, prompt) for n in range(request.number)]
        shape = (4, 4, 3)
        return torch.stack(
            [torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng) for rng in rngs]
        )

    def reconstruct(self, images):
        return None

    def protocol(self):
        return {"kind": "dice"}


PROMPTS = [
    EvaluationPrompt("composition", f"k{index}", f"caption {index}", 0) for index in range(7)
]


def test_a_block_of_captions_gives_the_same_images_wherever_it_stands():
    whole = samples.generate(Dice(), PROMPTS, seed=0, batch=2)
    later = samples.generate(Dice(), PROMPTS[2:4], seed=0, batch=2)
    assert torch.equal(whole.candidates[2:4], later.candidates)
    assert not torch.equal(
        whole.candidates, samples.generate(Dice(), PROMPTS, seed=1, batch=2).candidates
    )


def test_a_larger_limit_has_the_same_captions_and_some_more():
    keys = [f"key{index}" for index in range(50)]
    few, more = samples.choose(keys, 10, 0), samples.choose(keys, 20, 0)
    assert more[:10] == few
    assert sorted(samples.choose(keys, None, 0)) == list(range(50))
    assert samples.choose(keys, 0, 0) == []


def test_the_chosen_sample_is_the_best_ranked_candidate():
    generated = samples.generate(Dice(), PROMPTS, seed=0, batch=3)
    for index, best in enumerate(generated.scores.argmax(dim=1).tolist()):
        assert torch.equal(generated.chosen[index], generated.candidates[index, best])


def test_a_sample_set_reads_back_as_written(read_samples, tmp_path):
    generated = samples.generate(Dice(), PROMPTS, seed=0, batch=3)
    real = {prompt.key: torch.zeros(4, 4, 3, dtype=torch.uint8) for prompt in PROMPTS}
    samples.write(generated, tmp_path, real)
    back = read_samples(tmp_path)
    assert back.prompts == generated.prompts
    assert torch.equal(back.candidates, generated.candidates)
    assert torch.allclose(back.scores, generated.scores, atol=1e-3)


def test_keys_and_captions_never_become_file_names(tmp_path):
    rows = [EvaluationPrompt("train", "../../escape", "../../caption", 0)]
    out = tmp_path / "deep" / "out"
    samples.write(
        samples.generate(Dice(), rows, seed=0, batch=1),
        out,
        {"../../escape": torch.zeros(4, 4, 3, dtype=torch.uint8)},
    )
    outside = [path for path in tmp_path.rglob("*.png") if not path.is_relative_to(out)]
    assert outside == []
    entry = json.loads((out / "samples.jsonl").read_text())
    assert (entry["key"], entry["sample"]) == ("../../escape", "samples/000000.png")


def test_no_prompts_are_refused():
    with pytest.raises(UserError, match="limit"):
        samples.generate(Dice(), [], seed=0, batch=1)
