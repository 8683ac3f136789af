"""A gradient scale per residual branch: exact where mathematics is, and what it is for."""

import math

import pytest
import torch
from torch import nn

from models.activation_checkpointing import enable_activation_checkpointing
from models.autoregressive.prior import PriorConfig, weighted
from trainer.low_precision.gradient_scaling import GradientScales, PerBlockScaling, zero_nonfinite

RULE = PerBlockScaling(kind="per_block")
CONFIG = PriorConfig(
    kind="prior", text_vocab=30, text_length=4, image_vocab=20, grid=(2, 3), width=32, layers=3,
    heads=2, head_width=16,
)  # fmt: skip


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def build() -> nn.Module:
    torch.manual_seed(0)
    return CONFIG.build()


def scaled(rule: PerBlockScaling = RULE) -> tuple[nn.Module, GradientScales]:
    module = build()
    return module, GradientScales(module, rule)


def loss(module: nn.Module) -> torch.Tensor:
    text = torch.randint(1, CONFIG.text_vocab, (4, CONFIG.text_length), generator=rng())
    codes = torch.randint(0, CONFIG.image_vocab, (4, CONFIG.image_length), generator=rng())
    return weighted(module(text, codes, codes))


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in module.named_parameters()}


def poison(scales: GradientScales, position: int, value: float = torch.nan) -> None:
    """What passes backward through one branch's output meets NaN or Inf once."""
    branch = scales.branches[position]

    def spoil(grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone()
        grad.view(-1)[0] = value
        return grad

    def hook(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        output.register_hook(spoil)
        handle.remove()

    handle = branch.exit.register_forward_hook(hook, prepend=True)


def test_equal_scales_give_the_gradients_of_none():
    plain = build()
    loss(plain).backward()
    module, scales = scaled(PerBlockScaling(kind="per_block", start=13.3))
    loss(module).backward()
    wanted = gradients(plain)
    for name, grad in gradients(module).items():
        assert torch.allclose(grad, wanted[name], rtol=1e-6, atol=1e-6 * wanted[name].abs().max())
    assert scales.update_scales()


def test_blocks_that_are_computed_again_are_scaled_once():
    module, _ = scaled()
    loss(module).backward()
    again, _ = scaled()
    enable_activation_checkpointing(again)
    loss(again).backward()
    wanted = gradients(module)
    for name, grad in gradients(again).items():
        assert torch.allclose(grad, wanted[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("position", [0, 3, 5])
def test_a_fault_in_one_branch_moves_its_scale_alone_and_skips_the_update(position, value):
    module, scales = scaled()
    poison(scales, position, value)
    loss(module).backward()
    assert all(grad.isfinite().all() for grad in gradients(module).values())
    assert not scales.update_scales()
    for number, branch in enumerate(scales.branches):
        moved = -1 / 2 if number == position else 1 / 1000
        assert branch.scale == pytest.approx(2**13 * 2**moved, rel=1e-12)
    assert scales.status()["skipped_updates"] == 1


def test_branches_before_a_fault_get_the_gradients_of_the_identity_path():
    """Inf and NaN end where the branch joins it."""
    module, scales = scaled()
    poison(scales, 3)
    loss(module).backward()
    assert module.blocks[0].feed_forward.out.weight.grad.abs().max() > 0


def test_a_second_fault_within_125_updates_does_not_divide_again():
    _, scales = scaled()
    branch = scales.branches[2]
    for update in range(126):
        before = branch.power
        scales._overflows[2] = update in {0, 1, 124, 125}
        assert scales.update_scales() == (update not in {0, 1, 124, 125})
        divides = update in {0, 125}
        stays = update in {1, 124}
        assert branch.power - before == pytest.approx(
            -0.5 if divides else 0.0 if stays else 0.001, abs=1e-12
        )


def test_a_thousand_good_updates_double_a_scale():
    _, scales = scaled()
    for _ in range(1000):
        assert scales.update_scales()
    assert scales.branches[0].scale / 2**13 == pytest.approx(2.0, abs=1e-9)


@pytest.mark.parametrize(("fault", "end"), [(True, 2.0**7), (False, 2.0**24)])
def test_scales_stay_between_the_papers_bounds(fault, end):
    _, scales = scaled(PerBlockScaling(kind="per_block", growth=0.5, window=1))
    for _ in range(40):
        scales._overflows.fill_(float(fault))
        scales.update_scales()
    assert {branch.scale for branch in scales.branches} == {end}


def test_a_fault_outside_the_branches_skips_the_update_and_moves_no_scale():
    _, scales = scaled()
    scales._overflows[-1] = 1.0
    assert not scales.update_scales()
    assert {branch.power for branch in scales.branches} == {13.001}


def test_restored_scales_go_on_where_they_were():
    _, scales = scaled()
    scales._overflows[1] = 1.0
    scales.update_scales()
    _, others = scaled()
    others.restore(scales.state())
    assert others.state() == scales.state()
    others._overflows[1] = 1.0
    others.update_scales()
    assert others.branches[1].power == 12.5


def test_nothing_is_scaled_without_gradients():
    module, _ = scaled()
    with torch.no_grad():
        assert torch.equal(loss(module), loss(build()))


def test_the_filter_empties_exactly_what_is_not_finite():
    grad = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf, -2.0])
    assert zero_nonfinite(grad).tolist() == [1.0, 0.0, 0.0, 0.0, -2.0]


def test_there_are_two_scales_per_block_as_in_the_paper():
    module, scales = scaled()
    assert len(scales.branches) == 2 * CONFIG.layers
    assert math.log2(scales.branches[0].scale) == 13
    assert module.blocks[0].attention is scales.branches[0].exit
