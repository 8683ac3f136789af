"""Initial values: those that are declared, else torch's, whatever the order."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from models.nn import initialization
from models.nn.initialization import initializer_of, materialize
from trainer.recipe import load

TINY = sorted(path.as_posix() for path in Path("recipes").glob("emoji_*.yaml"))
CPU = torch.device("cpu")
TABLES = ("attn_mask",)
"""Buffers that are computed."""


def deferred(build, seed: int = 0) -> nn.Module:
    with torch.device("meta"):
        module = build()
    for _ in materialize(module, seed, "model", device=CPU):
        pass
    return module


def deviation(values: torch.Tensor) -> float:
    return float(values.detach().double().std(correction=0)) if values.numel() > 1 else 0.0


@pytest.mark.parametrize("recipe", TINY)
def test_every_tiny_network_starts_from_the_same_distributions_on_the_meta_device(recipe):
    build = load(recipe).model.build
    torch.manual_seed(0)
    direct, filled = build(), deferred(build)
    expected = {**dict(direct.named_parameters()), **dict(direct.named_buffers())}
    found = {**dict(filled.named_parameters()), **dict(filled.named_buffers())}
    assert list(found) == list(expected)
    for name, value in found.items():
        assert not value.is_meta
        other = expected[name]
        assert (value.shape, value.dtype) == (other.shape, other.dtype), name
        assert value.requires_grad == other.requires_grad, name
        value, other = value.detach(), other.detach()
        if deviation(other) == 0 or name.endswith(TABLES):
            assert torch.equal(value, other), name
        elif value.numel() >= 1000:
            assert deviation(value) == pytest.approx(deviation(other), rel=0.15), name
            assert float(value.abs().max()) < 1.6 * float(other.abs().max()), name


LAYERS = {
    "linear": lambda: nn.Linear(50, 2000),
    "convolution": lambda: nn.Conv2d(8, 1000, 3),
    "grouped": lambda: nn.Conv2d(64, 1000, 3, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(8, 1000, 4),
    "embedding": lambda: nn.Embedding(200, 100),
    "layer norm": lambda: nn.LayerNorm(64),
    "group norm": lambda: nn.GroupNorm(4, 64),
}


@pytest.mark.parametrize("name", LAYERS)
def test_torch_layers_start_from_the_distributions_of_torch(name):
    torch.manual_seed(0)
    layer = LAYERS[name]()
    for key, value in deferred(LAYERS[name]).named_parameters():
        other = layer.get_parameter(key)
        assert deviation(value) == pytest.approx(deviation(other), rel=0.1), key
        assert float(value.detach().mean()) == pytest.approx(
            float(other.detach().mean()), abs=0.05
        ), key
        if name not in ("embedding", "layer norm", "group norm"):  # uniform: the same bound
            bound = layer.weight[0].numel() ** -0.5
            assert float(value.detach().abs().max()) <= bound
            if value.numel() >= 1000:
                for each in (value, other):
                    assert float(each.detach().abs().max()) == pytest.approx(bound, rel=0.01)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = self.first
        self.table = nn.Parameter(torch.empty(3, 4), requires_grad=False)
        self.register_buffer("scale", torch.empty(2), persistent=False)
        initialization.normal(self.table, 1.0)
        initialization.constant(self.table, 5.0)  # the last declaration counts
        initialization.computed(self.scale, lambda: torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("build", [Shared, lambda: deferred(Shared)])
def test_shared_weights_frozen_ones_and_tables_are_kept(build):
    module = build()
    assert module.second.weight is module.first.weight
    assert module.table.unique().tolist() == [5.0]
    assert not module.table.requires_grad
    assert module.scale.tolist() == [1.0, 2.0]
    assert "scale" not in module.state_dict()


def test_numbers_depend_on_seed_and_name_alone():
    def reversed_order() -> nn.Module:
        module = nn.Module()
        module.b = nn.Linear(4, 4)
        module.a = nn.Linear(4, 4)
        return module

    def ordered() -> nn.Module:
        module = nn.Module()
        module.a, module.c, module.b = nn.Linear(4, 4), nn.Linear(9, 9), nn.Linear(4, 4)
        return module

    torch.manual_seed(1)
    first = deferred(ordered)
    torch.manual_seed(2)
    second = deferred(reversed_order)
    assert torch.equal(first.a.weight, second.a.weight)
    assert torch.equal(first.b.bias, second.b.bias)
    assert not torch.equal(first.a.weight, first.b.weight)
    assert not torch.equal(first.a.weight, deferred(ordered, seed=1).a.weight)


def test_one_parameter_has_memory_at_a_time_when_the_caller_takes_it_away():
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for count, parameter in enumerate(materialize(module, 0, device=CPU), 1):
        held = [each for each in module.parameters() if not each.is_meta and each.numel()]
        assert len(held) == 1
        assert sum(each.is_meta for each in module.parameters()) == 4 - count
        parameter.data = torch.empty(0)


def test_a_type_is_given_to_parameters_and_real_numbers_stay():
    module = nn.Linear(4, 4)
    before = copy.deepcopy(module)
    weight = module.weight
    for parameter in materialize(module, 0, device=CPU, dtype=torch.bfloat16):
        assert parameter.dtype == torch.bfloat16
    assert module.weight is weight
    assert torch.equal(module.weight, before.weight.bfloat16())


def test_a_tensor_without_a_known_start_is_refused():
    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.empty(2))

    with torch.device("meta"):
        module = Unknown()
    with pytest.raises(TypeError, match=r"Unknown.table: declare its initial values"):
        initializer_of(module, "table")
