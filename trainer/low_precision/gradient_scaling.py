"""A gradient scale for each residual branch of a transformer (arXiv 2102.12092, D).

Activation gradients shrink from block to block until 16 bits cannot hold them, and no one scale
fits all. Here the gradient is scaled where it enters a branch (attention or feed-forward, with its
norm), and unscaled where it leaves it, before it joins the identity path, which is kept in fp32.
There Inf and NaN become 0, so that the branches before are spared. Gradients of weights are
unscaled in fp32 as soon as they are whole, so every ZeRO stage sees plain ones.

With M data-parallel processes the paper divides the loss by the global batch, so that its gradients
are M times smaller than those of a process's own mean, which DeepSpeed averages afterwards. Its
scales are therefore applied divided by M.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from models.nn.transformer import Block
from trainer import distributed


class PerBlockScaling(BaseModel, frozen=True, extra="forbid"):
    """The paper's rule; powers of two, per process (its M)."""

    kind: Literal["per_block"]
    start: float = 13.0
    growth: float = Field(default=1 / 1000, gt=0)
    """Power by which a scale grows at an update without Inf or NaN."""
    backoff: float = Field(default=1 / 2, gt=0)
    """Power by which it falls at an overflow; that update is skipped."""
    window: int = Field(default=125, gt=0)
    """Updates between two reductions of a scale, at least."""
    lowest: float = 7.0
    highest: float = 24.0


class WholeScaling(BaseModel, frozen=True, extra="forbid"):
    """What DeepSpeed does: one dynamic scale of the loss in fp16, and none otherwise."""

    kind: Literal["whole"] = "whole"


@dataclass
class ResidualBranch:
    """One residual branch, from its norm to what is added to the identity path."""

    entry: nn.Module
    exit: nn.Module
    power: float
    """Binary logarithm of scale / M."""
    last_backoff: int | None = None
    """The update at which the scale was last reduced."""

    @property
    def scale(self) -> float:
        return 2.0**self.power

    def unscale_input(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook of `entry`."""
        if not torch.is_grad_enabled():
            return inputs
        first = _UnscaleInputGrad.apply(inputs[0], self.scale)  # type: ignore[no-untyped-call]
        return (first, *inputs[1:])

    def scale_output(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of `exit`."""
        if not torch.is_grad_enabled():
            return output.float()
        return _ScaleOutputGrad.apply(output, self.scale)  # type: ignore[no-untyped-call]


def residual_branches(module: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """First and last module of each residual branch of a transformer, in order."""
    blocks = [each for each in module.modules() if isinstance(each, Block)]
    return [
        pair
        for block in blocks
        for pair in (
            (block.attention_norm, block.attention),
            (block.forward_norm, block.feed_forward),
        )
    ]


class GradientScales:
    """The scales of one module's branches, installed as hooks in its forward.

    The module's weights are fp32 (its products may be 16-bit, by autocast).
    """

    def __init__(self, module: nn.Module, config: PerBlockScaling) -> None:
        self._config = config
        self.branches = [
            ResidualBranch(first, last, config.start) for first, last in residual_branches(module)
        ]
        self.updates = 0
        self.skipped = 0
        self.exhausted = False
        """Whether a branch at its lowest scale overflowed in the last update."""
        device = next(module.parameters()).device
        # one entry per branch, and one for all weights outside of them
        self._overflows = torch.zeros(len(self.branches) + 1, device=device)
        owners: dict[int, int] = {}
        for index, branch in enumerate(self.branches):
            branch.entry.register_forward_pre_hook(branch.unscale_input)
            branch.exit.register_forward_hook(branch.scale_output)
            for weight in (*branch.entry.parameters(), *branch.exit.parameters()):
                owners[id(weight)] = index
        for weight in module.parameters():
            if weight.requires_grad:
                hook = self._gradient_hook(owners.get(id(weight), len(self.branches)))
                weight.register_hook(hook)  # type: ignore[no-untyped-call]

    def _gradient_hook(self, index: int) -> Callable[[Tensor], Tensor]:
        """Unscale the gradient of a weight in a branch; set Inf and NaN to 0 and record them."""
        branch = self.branches[index] if index < len(self.branches) else None

        def hook(grad: Tensor) -> Tensor:
            clean = zero_nonfinite(grad)
            torch.maximum(
                self._overflows[index], (clean != grad).any().float(), out=self._overflows[index]
            )
            return clean if branch is None else clean.div_(branch.scale)

        return hook

    def update_scales(self) -> bool:
        """Adjust the scales after the backward passes of one update; returns whether to apply it.

        Every process calls it, after its last backward and before the optimizer. The update of the
        whole network is skipped when one branch of one process had Inf or NaN.
        """
        overflowed = (distributed.total(self._overflows) > 0).tolist()
        self._overflows.zero_()
        self.exhausted = False
        for branch, overflow in zip(self.branches, overflowed, strict=False):
            self._adjust(branch, overflow=overflow)
        self.updates += 1
        self.skipped += any(overflowed)
        return not any(overflowed)

    def _adjust(self, branch: ResidualBranch, *, overflow: bool) -> None:
        config = self._config
        if not overflow:
            branch.power += config.growth
        elif branch.last_backoff is None or self.updates - branch.last_backoff >= config.window:
            self.exhausted = self.exhausted or branch.power <= config.lowest
            branch.power -= config.backoff
            branch.last_backoff = self.updates
        branch.power = min(max(branch.power, config.lowest), config.highest)

    @property
    def most_skips(self) -> int:
        """Updates in which a scale falls from its start to its lowest value."""
        config = self._config
        falls = math.ceil((config.start - config.lowest) / config.backoff)
        return max(falls, 1) * config.window

    def status(self) -> dict[str, float]:
        """Lowest and highest scale (without M), and updates skipped."""
        powers = [branch.power for branch in self.branches]
        return {
            "lowest_gradient_scale": 2.0 ** min(powers),
            "highest_gradient_scale": 2.0 ** max(powers),
            "skipped_updates": float(self.skipped),
        }

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint, equal on every process."""
        return {
            "updates": self.updates,
            "skipped": self.skipped,
            "powers": [branch.power for branch in self.branches],
            "fell": [branch.last_backoff for branch in self.branches],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.updates, self.skipped = state["updates"], state["skipped"]
        for branch, power, last_backoff in zip(
            self.branches, state["powers"], state["fell"], strict=True
        ):
            branch.power, branch.last_backoff = power, last_backoff


def zero_nonfinite(grad: Tensor) -> Tensor:
    """A copy of a gradient with its Inf and NaN set to 0."""
    return grad.nan_to_num(0.0, 0.0, 0.0)


class _ScaleOutputGrad(torch.autograd.Function):
    """fp32 of a branch's output; backward scales the gradient before it is rounded to 16 bits."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, scale: float) -> Tensor:  # noqa: ANN401 - torch's context
        ctx.scale, ctx.dtype = scale, output.dtype
        return output.float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - as above
        return (grads[0] * ctx.scale).to(ctx.dtype), None


class _UnscaleInputGrad(torch.autograd.Function):
    """A branch's input as it is; backward filters and unscales the gradient, in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:  # noqa: ANN401 - torch's context
        ctx.scale, ctx.dtype = scale, x.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - as above
        return zero_nonfinite(grads[0].float()).div_(ctx.scale).to(ctx.dtype), None
