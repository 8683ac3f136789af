"""Weights that are written down: bit for bit those of a network that is built whole."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mezzotint.common.errors import UserError
from trainer.deferred_init import SMALL, Sketch
from trainer.recipe import load

TINY = sorted(path.as_posix() for path in Path("recipes").glob("emoji_*.yaml"))


def both(build) -> tuple[nn.Module, nn.Module, Sketch]:
    """A network as ever, the same in a sketch, and the sketch."""
    torch.manual_seed(5)
    whole = build()
    after = torch.get_rng_state()
    torch.manual_seed(5)
    sketch = Sketch()
    with sketch:
        drawn = build()
    assert torch.equal(torch.get_rng_state(), after)
    return whole, drawn, sketch


def same(whole: nn.Module, drawn: nn.Module, sketch: Sketch) -> None:
    others = dict(drawn.named_parameters())
    for name, weight in whole.named_parameters():
        assert torch.equal(sketch.draw(others[name]), weight), name
    for name, buffer in drawn.named_buffers():
        assert torch.equal(sketch.draw(buffer), whole.get_buffer(name)), name


@pytest.mark.parametrize("recipe", TINY)
def test_the_weights_of_every_tiny_network_are_the_same_and_not_held(recipe):
    whole, drawn, sketch = both(load(recipe).model.build)
    same(whole, drawn, sketch)
    held = sum(each.numel() for each in drawn.parameters() if not each.is_meta)
    assert held < 0.2 * sum(each.numel() for each in drawn.parameters())


class Odd(nn.Module):
    """What initialisations do besides filling."""

    def __init__(self) -> None:
        super().__init__()
        side = SMALL // 32
        flat = torch.empty(side, side).normal_()
        self.factor = nn.Parameter(torch.linalg.qr(flat)[0] * torch.diag(flat).sign())
        self.product = nn.Parameter(torch.empty(side, side).normal_() * 0.02)
        self.copied = nn.Linear(side, side)
        with torch.no_grad():
            self.copied.weight.copy_(self.product)
            self.copied.weight[: side // 2].mul_(self.copied.weight.abs().max().item())
            self.product.zero_()
        self.embedding = nn.Embedding(side, side, padding_idx=0)
        self.halves = nn.Parameter(torch.empty(side, side).uniform_())
        self.keyed = nn.Parameter(torch.empty(side, side))
        rng = torch.Generator().manual_seed(9)
        nn.init.uniform_(self.keyed, generator=rng)
        nn.init.normal_(self.halves[:, : side // 2], generator=rng)


def test_copies_slices_factorisations_and_own_generators_are_drawn_alike():
    same(*both(Odd))


def test_a_sketch_that_is_filled_is_the_network_with_its_shared_weights():
    def build() -> nn.Module:
        module = Odd()
        module.shared = module.copied
        return module

    whole, drawn, sketch = both(build)
    sketch.fill(drawn)
    assert not any(each.is_meta for each in (*drawn.parameters(), *drawn.buffers()))
    assert drawn.shared.weight is drawn.copied.weight
    same(whole, drawn, sketch)


def test_a_weight_that_torch_does_not_fill_without_memory_is_refused():
    with Sketch() as sketch:
        weight = nn.init.trunc_normal_(nn.Parameter(torch.empty(128, 128)))
    with pytest.raises(UserError, match=r"engine.zero: a weight of shape \[128, 128\]"):
        sketch.draw(weight)


def test_weights_can_be_drawn_again_and_again():
    _, drawn, sketch = both(lambda: nn.Linear(128, 128))
    assert torch.equal(sketch.draw(drawn.weight), sketch.draw(drawn.weight))
