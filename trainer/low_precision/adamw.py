"""AdamW with moments of 16 bits, of which few are fp32 at the same time."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.low_precision.float16_formats import CODE, MEAN, VARIANCE, Codec
from trainer.optimizers.schedules import Moments

CHUNK = 1 << 20
"""Numbers that are worked on at once."""
MEANS, VARIANCES = "exp_avg", "exp_avg_sq"


@dataclass(frozen=True)
class _Cast:
    """Numbers kept as torch has them."""

    dtype: torch.dtype

    def encode(self, values: Tensor) -> Tensor:
        return values.to(self.dtype)

    def decode(self, stored: Tensor) -> Tensor:
        return stored.float()


@dataclass(frozen=True)
class _MomentFormat:
    """How both moments are kept, and where the running variance is clipped."""

    mean: _Cast | Codec
    variance: _Cast | Codec
    dtype: torch.dtype
    ceiling: float | None = None


FORMATS: Mapping[Moments, _MomentFormat] = {
    "fp32": _MomentFormat(_Cast(torch.float32), _Cast(torch.float32), torch.float32),
    "bf16": _MomentFormat(_Cast(torch.bfloat16), _Cast(torch.bfloat16), torch.bfloat16),
    "codec_16": _MomentFormat(MEAN, VARIANCE, CODE, ceiling=5.0),
}
"""`codec_16` is the paper's (arXiv 2102.12092, D), which clips the running variance to 5."""


class SmallMomentAdamW(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101, algorithm 2) whose groups say by `moments` how theirs are kept."""

    skip = False
    """While set, `step` leaves weights and moments as they are."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update, or none; a weight without a gradient stays as it is."""
        if self.skip:
            return
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: Tensor, group: Mapping[str, Any]) -> None:
        stored_as = FORMATS[group["moments"]]
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())
            for name in (MEANS, VARIANCES):
                state[name] = torch.zeros_like(weight, dtype=stored_as.dtype)
        state["step"] += 1
        assert weight.grad is not None
        whole = (weight.detach(), weight.grad, state[MEANS], state[VARIANCES])
        for part, grad, means, variances in zip(*(chunks(each) for each in whole), strict=True):
            _update_chunk(part, grad, means, variances, stored_as, group, int(state["step"]))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; torch would turn all of it into the type of the weights."""
        super().load_state_dict(state_dict)
        named = itertools.chain(*(group["params"] for group in state_dict["param_groups"]))
        weights = itertools.chain(*(group["params"] for group in self.param_groups))
        for name, weight in zip(named, weights, strict=True):
            for key in (MEANS, VARIANCES):
                if name in state_dict["state"]:
                    saved = state_dict["state"][name][key]
                    self.state[weight][key] = saved.to(weight.device, copy=True)


def chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Views of PIECE numbers each; the last one has fewer."""
    yield from torch.split(tensor.view(-1), CHUNK)


def update_moments(
    mean: Tensor, variance: Tensor, grad: Tensor, betas: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Running mean and variance of gradients with one more."""
    first, second = betas
    return mean.lerp(grad, 1 - first), (variance * second).addcmul_(grad, grad, value=1 - second)


def updated_weight(
    weight: Tensor, mean: Tensor, variance: Tensor, group: Mapping[str, Any], step: int
) -> Tensor:
    """A weight after update `step` (from 1); the variance becomes something else in place."""
    first, second = group["betas"]
    width = (variance.sqrt_() / (1 - second**step) ** 0.5).add_(group["eps"])
    decayed = weight * (1 - group["lr"] * group["weight_decay"])
    return decayed.addcdiv_(mean, width, value=-group["lr"] / (1 - first**step))


def _update_chunk(
    weight: Tensor,
    grad: Tensor,
    means: Tensor,
    variances: Tensor,
    stored_as: _MomentFormat,
    group: Mapping[str, Any],
    step: int,
) -> None:
    """Algorithm 2 on one-dimensional pieces, in fp32, in place."""
    before = stored_as.mean.decode(means), stored_as.variance.decode(variances)
    mean, variance = update_moments(*before, grad.float(), group["betas"])
    if stored_as.ceiling is not None:
        variance.clamp_(max=stored_as.ceiling)
    means.copy_(stored_as.mean.encode(mean))
    variances.copy_(stored_as.variance.encode(variance))
    weight.copy_(updated_weight(weight.float(), mean, variance, group, step))
