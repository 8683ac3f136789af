"""AdamW inside backward: unbiased, deterministic, and the same optimizer otherwise."""

import pytest
import torch
from torch import nn

from mezzotint.common.errors import UserError
from models.nn.transformer import Block
from trainer.low_precision.adamw import SmallMomentAdamW
from trainer.low_precision.in_backward import InBackwardAdamW, stochastic_round

SETTINGS = {"lr": 0.01, "betas": (0.9, 0.96), "eps": 1e-8, "weight_decay": 0.1}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def descend(
    weight: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int, *, scale: float = 1.0
) -> float:
    goal = torch.randn(40, 30, generator=rng()).to(weight.dtype)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * scale * (weight - goal).square().sum()).backward()
        optimizer.step()
    return (weight.detach() - goal).float().square().mean().item()


def zeros() -> nn.Parameter:
    return nn.Parameter(torch.zeros(40, 30, dtype=torch.bfloat16))


def inside(weights: list[nn.Parameter], **changes) -> InBackwardAdamW:
    return InBackwardAdamW(weights, **{**SETTINGS, "clip": None, "seed": 3, **changes})


def test_rounding_takes_one_of_both_neighbours_and_the_number_in_the_mean():
    value = 1 + 2**-7 * 0.3
    drawn = stochastic_round(torch.full((100_000,), value), rng())
    assert set(drawn.tolist()) == {1.0, 1 + 2**-7}
    error = (0.3 * 0.7 / 100_000) ** 0.5 * 2**-7
    assert drawn.double().mean().item() == pytest.approx(value, abs=4 * error)


@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_of_bf16_infinity_and_nan_stay_as_they_are(sign):
    values = sign * torch.tensor([0.0, 1.0, 2.0**-130, 3e38, torch.inf, torch.nan]).bfloat16()
    again = stochastic_round(values.float(), rng())
    assert torch.equal(again[:-1], values[:-1])
    assert again[-1].isnan()


def test_small_steps_add_up_where_nearest_rounding_loses_them():
    """A step of 1/100 of a bf16 step, a thousand times."""
    weights, step, draws = torch.ones(2000).bfloat16(), 2**-7 / 100, rng()
    nearest = weights.clone()
    for _ in range(1000):
        weights = stochastic_round(weights.float() + step, draws)
        nearest = (nearest.float() + step).bfloat16()
    assert (nearest == 1).all()
    assert weights.float().mean().item() == pytest.approx(1 + 1000 * step, rel=2e-3)


def test_it_descends_like_fp32_states():
    weight, plain = zeros(), nn.Parameter(torch.zeros(40, 30))
    loss = descend(weight, inside([weight]), 150)
    groups = [{"params": [plain], "moments": "fp32"}]
    wanted = descend(plain, SmallMomentAdamW(groups, **SETTINGS), 150)
    assert loss == pytest.approx(wanted, rel=0.05)


def test_a_gradient_is_gone_as_soon_as_its_weight_is_updated():
    torch.manual_seed(0)
    block = Block(32, 2, 16, causal=True, dropout=0.0).bfloat16()
    optimizer = inside(list(block.parameters()))
    before = [weight.detach().clone() for weight in block.parameters()]
    seen = []
    block.attention_norm.register_full_backward_hook(
        lambda *_: seen.append([weight.grad for weight in block.feed_forward.parameters()])
    )
    block(torch.randn(2, 8, 32, dtype=torch.bfloat16, requires_grad=True)).sum().backward()
    assert seen == [[None] * 4]
    assert all(weight.grad is None for weight in block.parameters())
    optimizer.step()
    updated_weight = [
        not torch.equal(one, two) for one, two in zip(block.parameters(), before, strict=True)
    ]
    assert (
        sum(updated_weight) >= len(updated_weight) - 1
    )  # of the keys' and queries' biases little is left


def test_everything_that_is_kept_takes_six_bytes_a_weight():
    weight = zeros()
    optimizer = inside([weight])
    descend(weight, optimizer, 2)
    stored_as = [weight, *optimizer.state[weight].values()]
    assert sum(each.nbytes for each in stored_as) == 6 * weight.numel()


def test_the_order_in_which_gradients_come_does_not_matter():
    outcomes = []
    for turned in (False, True):
        pair = [zeros(), zeros()]
        optimizer = inside(pair)
        for _ in range(3):
            one, two = ((weight - 1).square().sum() for weight in pair)
            (two + one if turned else one + two).backward()
            optimizer.step()
        outcomes.append(pair)
    for one, two in zip(*outcomes, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(*outcomes[0])


def test_a_restored_optimizer_goes_on_bit_for_bit():
    straight, broken = zeros(), zeros()
    descend(straight, inside([straight]), 8)
    before = inside([broken])
    descend(broken, before, 5)
    resumed = nn.Parameter(broken.detach().clone())
    after = inside([resumed])
    after.load_state_dict(before.state_dict())
    assert after.updates == 5
    descend(resumed, after, 3)
    assert torch.equal(straight, resumed)


def test_large_weights_are_worked_on_in_pieces(monkeypatch):
    monkeypatch.setattr("trainer.low_precision.adamw.CHUNK", 7)
    weight = zeros()
    assert descend(weight, inside([weight]), 150) < 0.2


def test_the_norm_is_that_of_all_gradients_and_each_is_bounded_alone():
    """A bound on every gradient leaves AdamW's first step as it is, and shows in its moments."""
    weights = [zeros(), zeros()]
    optimizer = inside(weights, clip=0.5)
    loss = sum((index + 1) * weight.sum() for index, weight in enumerate(weights))
    loss.backward()
    assert optimizer.norm().item() == pytest.approx((1200 * (1 + 4)) ** 0.5, rel=1e-5)
    for weight in weights:
        mean = optimizer.state[weight]["exp_avg"].float()
        assert mean.norm().item() == pytest.approx(0.1 * 0.5, rel=1e-2)


def test_a_second_backward_within_an_update_is_refused():
    weight = zeros()
    optimizer = inside([weight])
    weight.sum().backward()
    with pytest.raises(UserError, match=r"engine.update: .* runs it more often"):
        weight.sum().backward()
    optimizer.step()
    weight.sum().backward()
