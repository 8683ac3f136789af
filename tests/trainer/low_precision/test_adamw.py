"""AdamW with 16-bit moments beside torch's."""

import pytest
import torch

from trainer.low_precision.adamw import SmallMomentAdamW
from trainer.low_precision.float16_formats import MEAN, VARIANCE
from trainer.optimizers.adamw import SkippableAdamW

SETTINGS = {"lr": 0.01, "betas": (0.9, 0.96), "eps": 1e-8, "weight_decay": 0.1}


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def target() -> torch.Tensor:
    return torch.randn(40, 30, generator=rng())


def small(weight: torch.Tensor, moments: str) -> SmallMomentAdamW:
    return SmallMomentAdamW([{"params": [weight], "moments": moments}], **SETTINGS)


def descend(weight: torch.Tensor, optimizer: torch.optim.Optimizer, steps: int) -> float:
    goal = target().to(weight.dtype)
    for _ in range(steps):
        weight.grad = weight.detach() - goal
        optimizer.step()
    return (weight.detach() - goal).square().mean().item()


def test_with_fp32_moments_it_is_torchs_adamw():
    ours, theirs = (torch.zeros(40, 30, requires_grad=True) for _ in range(2))
    descend(ours, small(ours, "fp32"), 50)
    descend(theirs, torch.optim.AdamW([theirs], **SETTINGS), 50)
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("moments", ["bf16", "codec_16"])
def test_16_bit_moments_descend_like_32_bit_ones(moments):
    ours, theirs = (torch.zeros(40, 30, requires_grad=True) for _ in range(2))
    loss = descend(ours, small(ours, moments), 100)
    assert loss == pytest.approx(descend(theirs, small(theirs, "fp32"), 100), rel=0.1)


@pytest.mark.parametrize(
    ("moments", "dtype"), [("bf16", torch.bfloat16), ("codec_16", torch.int16)]
)
def test_moments_take_four_bytes_a_weight(moments, dtype):
    weight = torch.zeros(40, 30, requires_grad=True)
    optimizer = small(weight, moments)
    descend(weight, optimizer, 1)
    stored_as = [value for value in optimizer.state[weight].values() if value.ndim]
    assert {value.dtype for value in stored_as} == {dtype}
    assert sum(value.nbytes for value in stored_as) == 4 * weight.numel()


def test_moments_are_the_codes_of_what_adam_computes():
    weight = torch.zeros(40, 30, requires_grad=True)
    optimizer = small(weight, "codec_16")
    weight.grad = target()
    optimizer.step()
    state = optimizer.state[weight]
    assert torch.equal(state["exp_avg"], MEAN.encode(torch.zeros(40, 30).lerp(target(), 0.1)))
    variance = (1 - 0.96) * target().square()
    assert torch.allclose(VARIANCE.decode(state["exp_avg_sq"]), variance, rtol=2**-10)


def test_the_running_variance_is_clipped_to_five():
    weight = torch.zeros(3, requires_grad=True)
    optimizer = small(weight, "codec_16")
    weight.grad = torch.tensor([1e3, 1.0, -1e3])
    optimizer.step()
    values = VARIANCE.decode(optimizer.state[weight]["exp_avg_sq"])
    assert values.tolist() == pytest.approx([5.0, 0.04, 5.0], rel=2**-11)


@pytest.mark.parametrize("moments", ["fp32", "bf16", "codec_16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_goes_on_bit_for_bit(moments, dtype):
    straight = torch.zeros(40, 30, dtype=dtype, requires_grad=True)
    broken = torch.zeros(40, 30, dtype=dtype, requires_grad=True)
    descend(straight, small(straight, moments), 8)
    before = small(broken, moments)
    descend(broken, before, 5)
    after = small(broken, moments)
    after.load_state_dict(before.state_dict())
    descend(broken, after, 3)
    assert torch.equal(straight, broken)


def test_large_weights_are_worked_on_in_pieces(monkeypatch):
    whole, cut = (torch.zeros(40, 30, requires_grad=True) for _ in range(2))
    descend(whole, small(whole, "codec_16"), 5)
    monkeypatch.setattr("trainer.low_precision.adamw.CHUNK", 7)
    descend(cut, small(cut, "codec_16"), 5)
    assert torch.equal(whole, cut)


@pytest.mark.parametrize("kind", ["small", "torch"])
def test_an_update_that_is_skipped_changes_nothing(kind):
    weight = torch.zeros(40, 30, requires_grad=True)
    optimizer = small(weight, "bf16") if kind == "small" else SkippableAdamW([weight], **SETTINGS)
    descend(weight, optimizer, 2)
    before, moments = weight.detach().clone(), optimizer.state[weight]["exp_avg"].clone()
    optimizer.skip = True
    descend(weight, optimizer, 2)
    assert torch.equal(weight, before)
    assert torch.equal(optimizer.state[weight]["exp_avg"], moments)
    assert optimizer.state[weight]["step"] == 2
