"""Low-rank adapters change a network by matrices of a small rank, and leave it as it was."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from models.diffusion.condition import Condition
from models.diffusion.unet.network import UNetConfig
from models.nn.cpu import one_image, products
from models.nn.cpu.dispatch import kernels_in_format
from models.nn.low_rank import LowRank, adapters, add_adapters, remove_adapters

UNET = UNetConfig(
    image_size=8, channels=8, multipliers=(1, 2), depth=1, attention=(4,), head_width=8, groups=8,
    text={"vocab": 9, "length": 3, "width": 8, "layers": 1, "heads": 1},
)  # fmt: skip
X, TIMES = torch.linspace(-1, 1, 192).view(1, 3, 8, 8), torch.tensor([0.4])
CONDITION = Condition(text=torch.tensor([[3, 4, 0]]))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def network():
    torch.manual_seed(0)
    model = UNET.build().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=rng()) * 0.1)
    return model


def features_unet():
    """With spatial transformers, skips of 1 x 1, and convolutions of stride 2."""
    torch.manual_seed(0)
    settings = {"multipliers": (1, 2), "depth": 1, "attention": (16, 8), "heads": 2, "groups": 4}
    model = UNetConfig.model_validate(
        {
            **settings, "image_size": 16, "channels": 8, "features": {"width": 6},
            "transformer": {}, "modulation": "add", "resampling": "convolution",
        }
    ).build().eval()  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=rng()) * 0.1)
    return model


def output(model):
    with torch.no_grad():
        return model(X, TIMES, CONDITION)


def test_an_adapter_adds_a_matrix_of_its_rank():
    layer = nn.Conv2d(6, 5, 3)
    adapter = LowRank(layer.weight, 2, rng())
    assert torch.equal(adapter(layer.weight), layer.weight)
    with torch.no_grad():
        adapter.up.copy_(torch.randn(5, 2, generator=rng(1)))
    change = (adapter(layer.weight) - layer.weight).detach()
    assert change.shape == layer.weight.shape
    assert torch.allclose(change.flatten(1), adapter.up @ adapter.down, atol=1e-6)
    assert int(torch.linalg.matrix_rank(change.flatten(1), tol=1e-4)) == 2


def test_adapters_learn_alone_and_leave_no_trace():
    model = network()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    plain = output(model)
    add_adapters(model, 2, rng(), without=[model.text])
    assert len(list(adapters(model))) > 10
    assert not any(name.startswith("text") for name, _ in adapters(model))
    assert torch.equal(output(model), plain)
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learning
    assert all(name.endswith((".up", ".down")) for name in learning)
    optimizer = torch.optim.Adam([w for w in model.parameters() if w.requires_grad], 0.01)
    model(X, TIMES, CONDITION).square().sum().backward()
    optimizer.step()
    assert not torch.allclose(output(model), plain, atol=1e-4)
    remove_adapters(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert torch.equal(output(model), plain)


@pytest.mark.parametrize("in_format", [True, False])
def test_products_with_factors_are_those_with_the_adapted_weights(in_format, monkeypatch):
    """In outputs and in all gradients; the convolutions of one image too, as on AMD's CPUs."""
    monkeypatch.setattr(one_image, "IS_INTEL", False)
    monkeypatch.setattr(products, "IS_INTEL", False)
    model, features = features_unet(), torch.randn(1, 3, 6, generator=rng())
    x = torch.randn(1, 3, 16, 16, generator=rng(1))
    found = []
    with kernels_in_format([model]) if in_format else nullcontext():
        add_adapters(model, 2, rng())
        trained = {
            name: weight for name, weight in model.named_parameters() if weight.requires_grad
        }
        with torch.no_grad():
            for name, weight in trained.items():
                if name.endswith("up"):
                    weight.copy_(torch.randn(weight.shape, generator=rng(2)) * 0.1)
        for factored in (True, False):
            if not factored:
                for module in model.modules():
                    vars(module).pop("forward", None)
                    vars(module).pop("together", None)
            given = features.clone().requires_grad_()
            out = model(x, TIMES, Condition(features=given))
            gradients = torch.autograd.grad(out.square().sum(), [given, *trained.values()])
            found.append((out.detach(), *gradients))
        with torch.no_grad():
            merged = model(x, TIMES, Condition(features=features))
        remove_adapters(model)
    names = ["output", "features", *trained]
    for name, one, other in zip(names, *found, strict=True):
        assert float((one - other).norm()) <= 1e-4 * max(float(other.norm()), 1e-3), name
    assert torch.allclose(merged, found[0][0], atol=1e-4)


def test_weights_of_no_larger_rank_get_none():
    model = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 8))
    add_adapters(model, 2, rng())
    assert [name for name, _ in adapters(model)] == ["1"]
