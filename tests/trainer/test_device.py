"""No training step relies on torch's default device: every tensor is made on an explicit one."""

from pathlib import Path

import pytest
import torch
from bare import Bare
from torch import Generator

from data_pipeline.batch import Batch
from data_pipeline.text.cached_features import CAPTION_ARRAYS
from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common.embedding_scaling import EmbeddingScaling
from models import store
from models.clip import ClipConfig
from models.nn.initialization import materialize
from trainer.recipe import Recipe, load
from trainer.rng import seed_dropout
from trainer.task import Step, Task
from trainer.tasks.conditioning.embeddings import with_embeddings, with_scaling
from trainer.tasks.frozen_text import with_cached_features

CPU = torch.device("cpu")
BATCH = 2
EMBEDDING = 128
"""Values of a CLIP embedding in the recipes."""
INPAINTING = Path("recipes/emoji_latent_inpainting.yaml")
"""It encodes masked images by a first stage: test_inpainting has its step."""
RECIPES = sorted({*Path("recipes").glob("emoji_*.yaml")} - {INPAINTING})


def rng(seed: int = 0) -> Generator:
    return Generator(CPU).manual_seed(seed)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """A model directory of a tiny CLIP whose features have the width that the recipe expects."""
    config = ClipConfig(
        image_size=16, patch=8, vision_width=16, vision_layers=1, text_vocab=40, text_length=6,
        text_width=128, text_layers=1, head_width=16, embed=8,
    )  # fmt: skip
    texts = [f"{who} {what}" for who in ("woman", "man", "person") for what in ("pilot", "cook")]
    path = str(tmp_path_factory.mktemp("encoder") / "clip")
    tokenizer = Tokenizer.train(texts, 40)
    weights = config.build().state_dict()
    store.save(path, config, weights, card="tiny", tokenizer=tokenizer, text_length=6)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """A model directory of the network that a control's recipe names."""
    config = load(Path("recipes/emoji_latent_control.yaml")).model.base
    path = str(tmp_path_factory.mktemp("base") / "model")
    store.save(path, config, config.build().state_dict(), card="new")
    return path


@pytest.fixture
def meta_by_default():
    """Whatever is made without a device has no memory, and meets a CPU tensor with an error."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def small(path: Path, encoder: str, base: str) -> Recipe:
    """A recipe whose discriminator acts from the first step, with a tiny text encoder.

    Latents have a scale, which a run takes from their set.
    """
    latents = [
        "task.target.scaling={mean: 0.0, std: 1.0, samples: 1}",
        "data.arrays=[latents, latent_deviations]",
    ]
    match path.stem:
        case "emoji_dit" | "emoji_stable_unclip":
            overrides = latents
        case "emoji_latent":
            overrides = [*latents, f"task.condition.encoder.model={encoder}"]
        case "emoji_latent_control":
            tower = f"task.condition.encoder.model={encoder}"
            overrides = [*latents, tower, f"task.base={base}"]
        case "emoji_kl" | "emoji_vqgan":
            overrides = ["task.start_step=0"]
        case "emoji_caption_clip":
            overrides = [f"task.condition.encoder.model={encoder}"]
        case _:
            overrides = []
    recipe = load(path, overrides)
    read = recipe.model_copy(update={"data": with_embeddings(recipe.task, recipe.data)})
    captions = with_cached_features(recipe.task, read.data)
    scaling = EmbeddingScaling(kind="l2_sqrt_d", dim=EMBEDDING, samples=1)
    return read.model_copy(update={"data": captions, "task": with_scaling(recipe.task, scaling)})


def batch_for(recipe: Recipe) -> Batch:
    """Random images, tokens, labels and derived arrays of the shapes that a recipe reads."""
    data, model = recipe.data, recipe.model
    size = data.image.size if data.image else 8

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(1, high, (BATCH, *shape), generator=rng(1), device=CPU)

    arrays = {}
    for name in data.arrays:
        match name:
            case "codes" | "bottom" | "top":
                side = (4, 4) if name == "top" else model.grid
                arrays[name] = integers(model.image_vocab, *side)
            case "latents" | "latent_deviations":
                shape = (BATCH, model.image_channels, model.image_size, model.image_size)
                arrays[name] = torch.rand(shape, generator=rng(2), device=CPU)
            case "image_embedding" | "text_embedding":
                arrays[name] = torch.rand((BATCH, EMBEDDING), generator=rng(7), device=CPU)
            case "text_tokens":
                arrays[name] = integers(model.length)
            case "text_features":
                shape = (BATCH, model.length, model.features.width)
                arrays[name] = torch.rand(shape, generator=rng(8), device=CPU)
    return Batch(
        keys=("a", "b"),
        captions=("woman pilot", "man cook"),
        image=torch.rand((BATCH, 3, size, size), generator=rng(3), device=CPU) * 2 - 1,
        text=integers(300, data.text.length) if data.text else None,
        arrays=arrays,
        empty_caption={name: each[0] for name, each in arrays.items() if name in CAPTION_ARRAYS},
        label=integers(data.label.count) if data.label else None,
        hint=hints(recipe) if data.hint else None,
    )


def hints(recipe: Recipe) -> torch.Tensor:
    shape = (BATCH, recipe.model.hint.channels, *2 * (recipe.model.hint_size,))
    return torch.rand(shape, generator=rng(6), device=CPU)


def build(recipe: Recipe) -> Task:
    model = recipe.model.build()
    task = recipe.task.build(model)
    for name, part in task.parts().items():
        for _ in materialize(part, 0, name, device=CPU):
            pass
    return task


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_training_step_needs_no_default_device(path, encoder, base, meta_by_default):
    recipe = small(path, encoder, base)
    task = build(recipe)
    engines = {name: Bare(part.train()) for name, part in task.parts().items()}
    step = Step(0, rng(4))
    seed_dropout(step.rng)
    for loss in task.losses(engines, batch_for(recipe), step):
        assert loss.value.device == CPU
        assert all(value.device == CPU for value in loss.metrics.values())
        loss.value.backward()
    task.after_update(step)
    for part in task.parts().values():
        for name, parameter in part.named_parameters():
            assert parameter.device == CPU, name
            assert parameter.grad is None or parameter.grad.device == CPU, name
        assert any(parameter.grad is not None for parameter in part.parameters())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_preview_needs_no_default_device(path, encoder, base, meta_by_default):
    recipe = small(path, encoder, base)
    task = build(recipe)
    parts = {name: part.eval() for name, part in task.parts().items()}
    with torch.no_grad():
        images = task.preview(parts, batch_for(recipe), rng(5))
    assert all(image.device == CPU for image in images.values())
