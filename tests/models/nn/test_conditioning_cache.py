"""Conditioning features are computed once per sampling run, and never stale."""

import pytest
import torch
from torch import nn

from models.diffusion.condition import Condition
from models.diffusion.guidance import with_guidance, without_text
from models.diffusion.process import denoiser
from models.diffusion.unet.network import UNet, UNetConfig
from models.nn.conditioning_cache import MAX_ENTRIES, ActivationCache, cached


class Counting(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_a_module_computes_once_of_a_tensor_and_again_of_another_or_a_changed_one():
    layer, given, cache = Counting(), torch.ones(1, 2), ActivationCache()
    with torch.no_grad(), cache.activate():
        first = cached(layer, given, layer)
        assert cached(layer, given, layer) is first
        assert layer.calls == 1
        cached(layer, given.clone(), layer)
        assert layer.calls == 2
        given.mul_(2)
        assert torch.equal(cached(layer, given, layer), nn.Linear.forward(layer, given))


def test_it_serves_in_inference_mode_too():
    layer, cache = Counting(), ActivationCache()
    with torch.inference_mode(), cache.activate():
        given = torch.ones(1, 2)
        assert cached(layer, given, layer) is cached(layer, given, layer)
    assert layer.calls == 1


def test_it_forgets_the_oldest_of_many():
    layer, cache = Counting(), ActivationCache()
    several = [torch.ones(1, 2) for _ in range(MAX_ENTRIES + 1)]
    with torch.no_grad(), cache.activate():
        for given in [*several, several[0]]:
            cached(layer, given, layer)
    assert layer.calls == MAX_ENTRIES + 2


def test_without_an_active_cache_and_with_gradients_everything_is_computed():
    layer, given = Counting(), torch.ones(1, 2)
    with torch.no_grad():
        cached(layer, given, layer), cached(layer, given, layer)
    with ActivationCache().activate():
        cached(layer, given, layer), cached(layer, given, layer)
    assert layer.calls == 4


SHAPE = {"image_size": 8, "channels": 8, "multipliers": [1], "depth": 1, "groups": 4}
NETWORKS = {
    "own encoder": {"text": {"vocab": 20, "length": 6, "width": 8, "heads": 2, "layers": 1}},
    "ready features": {"features": {"width": 8}},
    "ready features, transformer": {"features": {"width": 8}, "transformer": {}},
}


@pytest.mark.parametrize("condition", list(NETWORKS))
@pytest.mark.parametrize("autocast", [False, True])
def test_sampling_with_guidance_reuses_conditioning_and_gives_the_same(condition, autocast):
    torch.manual_seed(0)
    unet: UNet = UNetConfig.model_validate(
        {**SHAPE, "attention": [8], "heads": 2, **NETWORKS[condition]}
    ).build()
    for weight in unet.parameters():
        nn.init.normal_(weight, std=0.1)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 0.2])
    cond = Condition(text=torch.randint(20, (2, 6)), features=torch.randn(2, 6, 8))
    calls = []
    for name, module in unet.named_modules():
        if name == "text" or name.endswith((".pair", ".attention.context")):
            module.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = denoiser(unet)
        steered = with_guidance(plain, without_text(plain), 3.0)
        first = steered(x, t, cond).x0
        calls_before = len(calls)
        again = steered(x, t, cond).x0
        assert calls_before > 0
        assert len(calls) == calls_before, "conditioning is computed once per run"
        fresh = denoiser(unet)
        assert torch.equal(first, again)
        assert torch.equal(first, with_guidance(fresh, without_text(fresh), 3.0)(x, t, cond).x0)
        with torch.enable_grad():
            direct = with_guidance(fresh, without_text(fresh), 3.0)(x, t, cond).x0
        assert float((direct - first).abs().max()) < (0.05 if autocast else 1e-5)


def test_new_weights_are_read_by_a_new_drawing():
    torch.manual_seed(0)
    unet = UNetConfig.model_validate(
        {**SHAPE, "attention": [8], "heads": 2, **NETWORKS["ready features, transformer"]}
    ).build()
    for weight in unet.parameters():
        nn.init.normal_(weight, std=0.1)
    x, t, cond = (
        torch.randn(1, 3, 8, 8),
        torch.tensor([0.5]),
        Condition(features=torch.ones(1, 6, 8)),
    )
    with torch.no_grad():
        before = denoiser(unet)(x, t, cond).x0
        for name, weight in unet.named_parameters():
            if name.endswith("pair.weight"):
                weight.data.mul_(3)
        assert not torch.equal(before, denoiser(unet)(x, t, cond).x0)
