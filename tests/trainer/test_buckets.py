"""Aspect-ratio buckets in a recipe: which models take them, and steps on images that are no
squares."""

from dataclasses import replace

import pytest
import torch
from bare import Bare

from data_pipeline.batch import Batch
from mezzotint.common.errors import UserError
from models.nn.initialization import materialize
from trainer.recipe import load
from trainer.task import Step

CPU = torch.device("cpu")
CACHE = "data.cache_in_memory=false"
BUCKETS = (CACHE, "data.image.buckets={multiple: 8}")


def rng(seed: int) -> torch.Generator:
    return torch.Generator(CPU).manual_seed(seed)


@pytest.mark.parametrize("name", ["emoji_caption", "emoji_dvae", "emoji_vqgan", "emoji_vqvae2"])
def test_a_step_and_a_preview_of_images_that_are_no_squares(name):
    recipe = load(f"recipes/{name}.yaml", BUCKETS)
    task = recipe.task.build(recipe.model.build())
    for part_name, part in task.parts().items():
        for _ in materialize(part, 0, part_name, device=CPU):
            pass
    images = torch.rand((2, 3, 16, 48), generator=rng(0), device=CPU) * 2 - 1
    batch = Batch(keys=("a", "b"), captions=("a", "b"), image=images)
    if recipe.data.text is not None:
        text = torch.ones((2, recipe.data.text.length), dtype=torch.int64, device=CPU)
        batch = replace(batch, text=text)
    engines = {each: Bare(part) for each, part in task.parts().items()}
    for loss in task.losses(engines, batch, Step(0, rng(1))):
        assert loss.value.isfinite()
        loss.value.backward()
    with torch.no_grad():
        parts = {each: part.eval() for each, part in task.parts().items()}
        shown = task.preview(parts, batch, rng(2))
    assert {image.shape for image in shown.values()} == {(2, 3, 16, 48)}


def test_a_network_of_sizes_is_trained_with_those_of_its_images():
    sizes = "task.condition={kind: several, conditions: [{kind: text, drop: 0.1}, {kind: sizes}]}"
    recipe = load("recipes/emoji_caption.yaml", [*BUCKETS, "model.size_embedding=8", sizes])
    task = recipe.task.build(recipe.model.build())
    (network,) = task.parts().values()
    for _ in materialize(network, 0, "model", device=CPU):
        pass
    batch = Batch(
        keys=("a",),
        captions=("a",),
        image=torch.zeros((1, 3, 16, 48), device=CPU),
        text=torch.ones((1, recipe.data.text.length), dtype=torch.int64, device=CPU),
        sizes=torch.tensor([[100, 400, 0, 8, 16, 48]], device=CPU),
    )
    (loss,) = task.losses({"model": Bare(network)}, batch, Step(0, rng(1)))
    loss.value.backward()
    assert network.size_embedding.hidden.weight.grad is not None
    with pytest.raises(UserError, match=r"data.image is not set, .* needs the sizes of images"):
        next(
            iter(task.losses({"model": Bare(network)}, replace(batch, sizes=None), Step(0, rng(1))))
        )


def test_a_model_of_one_size_is_refused():
    for name in ("emoji_clip", "emoji_upsampler", "emoji_classifier_noisy"):
        with pytest.raises(UserError, match="this model takes images of one size"):
            load(f"recipes/{name}.yaml", BUCKETS)


def test_sides_that_the_model_cannot_divide_are_refused():
    with pytest.raises(UserError, match=r"buckets.multiple: 2 is no multiple of 4.* set it to 4"):
        load("recipes/emoji_dvae.yaml", [CACHE, "data.image.buckets={multiple: 2}"])
