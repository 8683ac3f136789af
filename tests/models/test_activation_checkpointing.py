"""Activation checkpointing changes what is kept, and nothing else."""

import pytest
import torch

from models.activation_checkpointing import enable_activation_checkpointing
from models.autoencoders.dvae import DVAEConfig
from models.autoregressive.prior import PriorConfig
from models.clip import ClipConfig
from models.diffusion.condition import Condition
from models.diffusion.dit import DiTConfig
from models.diffusion.super_resolution import SuperResolutionConfig
from models.diffusion.text_diffusion import TextDiffusionConfig
from models.diffusion.unet.network import UNetConfig


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


TEXT = torch.tensor([[3, 4, 0], [5, 0, 0]])
TIMES = torch.tensor([0.2, 0.7])
IMAGES = noise(2, 3, 16, 16)
FEATURES = Condition(features=noise(2, 3, 6))
LOW = Condition(low_res=noise(2, 3, 8, 8), noise_level=TIMES)
CASES = {
    "prior": (
        PriorConfig(
            text_vocab=9, text_length=3, image_vocab=8, grid=(4, 4), width=64, layers=3, heads=1,
            dropout=0.1,
        ),
        3,
        lambda model: sum(part.square().mean() for part in model(TEXT, TEXT.new_ones(2, 16))),
    ),
    "dvae": (
        DVAEConfig(image_size=16, vocab=8, width=16, groups=2, initial_width=8),
        8,
        lambda model: model.decoder(model.logits(IMAGES).softmax(1)).square().mean(),
    ),
    "text_diffusion": (
        TextDiffusionConfig(
            image_size=16, patch=4, width=32, layers=4, heads=2, text_vocab=9, text_length=3,
            dropout=0.1,
        ),
        4,
        lambda model: model(IMAGES, TIMES, Condition(text=TEXT)).square().mean(),
    ),
    "super_resolution": (
        SuperResolutionConfig(low_size=8, image_size=16, channels=(8, 16), blocks=2),
        8,
        lambda model: model(IMAGES, TIMES, LOW).square().mean(),
    ),
    "unet": (
        UNetConfig(
            image_size=16, channels=16, multipliers=(1, 2), depth=1, attention=(8,), groups=8,
            head_width=8, dropout=0.1, text={"vocab": 9, "length": 3, "width": 16, "layers": 2},
        ),
        2 + 4 + 3 + 7,  # captions, down, middle, up
        lambda model: model(IMAGES, TIMES, Condition(text=TEXT)).square().mean(),
    ),
    "unet with transformers": (
        UNetConfig(
            image_size=16, channels=16, multipliers=(1, 2), depth=1, attention=(8,), groups=8,
            head_width=8, dropout=0.1, features={"width": 6}, transformer={"depth": 2},
        ),
        4 + 3 + 7,  # down, middle, up
        lambda model: model(IMAGES, TIMES, FEATURES).square().mean(),
    ),
    "dit": (
        DiTConfig(image_size=16, width=32, layers=4, heads=2, dropout=0.1),
        4,
        lambda model: model(IMAGES, TIMES, Condition()).square().mean(),
    ),
}  # fmt: skip


def run(config, loss, *, recomputed):
    torch.manual_seed(0)
    model = config.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise(*parameter.shape) * 0.02)
    count = enable_activation_checkpointing(model) if recomputed else 0
    kept = []

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept.append(tensor.nbytes)
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(model)
    value.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    return value.detach(), gradients, count, sum(kept)


@pytest.mark.parametrize(("config", "blocks", "loss"), CASES.values(), ids=CASES)
def test_losses_and_gradients_stay_the_same_and_far_less_is_kept(config, blocks, loss):
    value, gradients, _, kept = run(config, loss, recomputed=False)
    again, others, count, fewer = run(config, loss, recomputed=True)
    assert count == blocks
    assert torch.equal(value, again)
    for name, gradient in gradients.items():
        if gradient is None:  # frozen positions
            assert others[name] is None
        else:
            assert torch.equal(gradient, others[name]), name
    assert fewer < kept / 2


def test_names_stay_and_sampling_with_a_cache_works():
    config, _, _ = CASES["prior"]
    model = config.build().eval()
    names = list(model.state_dict())
    enable_activation_checkpointing(model)
    assert list(model.state_dict()) == names
    with torch.no_grad():
        x = model.embed_text(TEXT)
        assert torch.equal(model.run(x, model.new_caches(2)), model.run(x))


def test_a_network_without_such_blocks_is_counted_as_none():
    with torch.device("meta"):
        clip = ClipConfig(image_size=8, patch=4, text_vocab=9, text_length=3).build()
    assert enable_activation_checkpointing(clip) == 0
