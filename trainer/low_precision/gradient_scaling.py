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
    retreat: float = Field(default=1 / 2, gt=0)
    """Power by which it falls at another one, which is skipped."""
    window: int = Field(default=125, gt=0)
    """Updates from one fall of a scale to the next that it may take."""
    lowest: float = 7.0
    highest: float = 24.0


class WholeScaling(BaseModel, frozen=True, extra="forbid"):
    """What DeepSpeed does: one dynamic scale of the loss in fp16, and none otherwise."""

    kind: Literal["whole"] = "whole"


@dataclass
class Branch:
    """One residual branch, from its norm to what is added to the identity path."""

    entry: nn.Module
    exit: nn.Module
    power: float
    """Binary logarithm of scale / M."""
    fell: int | None = None
    """The update at which the scale was last divided."""

    @property
    def scale(self) -> float:
        """What gradients are multiplied by inside."""
        return 2.0**self.power


def branches(module: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
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
    """The scales of one module's branches, put into its forward for good.

    The module's weights are fp32 (its products may be 16-bit, by autocast).
    """

    def __init__(self, module: nn.Module, config: PerBlockScaling) -> None:
        self._config = config
        self.branches = [Branch(first, last, config.start) for first, last in branches(module)]
        self.updates = 0
        self.skipped = 0
        device = next(module.parameters()).device
        # one place per branch, and one for all weights outside of them
        self._faults = torch.zeros(len(self.branches) + 1, device=device)
        inside: set[int] = set()
        for place, branch in enumerate(self.branches):
            branch.entry.register_forward_pre_hook(_entry(branch))
            branch.exit.register_forward_hook(_exit(branch))
            for weight in (*branch.entry.parameters(), *branch.exit.parameters()):
                inside.add(id(weight))
                if weight.requires_grad:
                    _listen(weight, self._watch(place, branch))
        for weight in module.parameters():
            if weight.requires_grad and id(weight) not in inside:
                _listen(weight, self._watch(len(self.branches), None))

    def _watch(self, place: int, branch: Branch | None) -> Callable[[Tensor], Tensor]:
        """Unscale a weight's gradient; one that is not finite is noted, and emptied."""

        def hook(grad: Tensor) -> Tensor:
            clean = filtered(grad)
            torch.maximum(
                self._faults[place], (clean != grad).any().float(), out=self._faults[place]
            )
            return clean if branch is None else clean.div_(branch.scale)

        return hook

    def close_update(self) -> bool:
        """Move the scales by what the backwards of one update met; whether to take the update.

        Every process calls it, after its last backward and before the optimizer. The update of the
        whole network is skipped when one branch of one process met Inf or NaN.
        """
        bad = (distributed.total(self._faults) > 0).tolist()
        self._faults.zero_()
        for branch, fault in zip(self.branches, bad, strict=False):
            self._move(branch, fault=fault)
        self.updates += 1
        self.skipped += any(bad)
        return not any(bad)

    def _move(self, branch: Branch, *, fault: bool) -> None:
        config = self._config
        if not fault:
            branch.power += config.growth
        elif branch.fell is None or self.updates - branch.fell >= config.window:
            branch.power -= config.retreat
            branch.fell = self.updates
        branch.power = min(max(branch.power, config.lowest), config.highest)

    def status(self) -> dict[str, float]:
        """Lowest and highest scale (without M), and updates skipped."""
        powers = [branch.power for branch in self.branches]
        return {
            "lowest_gradient_scale": 2.0 ** min(powers),
            "highest_gradient_scale": 2.0 ** max(powers),
            "skipped_updates": float(self.skipped),
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, the same on every process."""
        return {
            "updates": self.updates,
            "skipped": self.skipped,
            "powers": [branch.power for branch in self.branches],
            "fell": [branch.fell for branch in self.branches],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.updates, self.skipped = state["updates"], state["skipped"]
        for branch, power, fell in zip(self.branches, state["powers"], state["fell"], strict=True):
            branch.power, branch.fell = power, fell


def _listen(weight: Tensor, hook: Callable[[Tensor], Tensor]) -> None:
    weight.register_hook(hook)  # type: ignore[no-untyped-call]


def filtered(grad: Tensor) -> Tensor:
    """A copy of a gradient with its Inf and NaN set to 0."""
    return grad.nan_to_num(0.0, 0.0, 0.0)


def _entry(branch: Branch) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if not torch.is_grad_enabled():
            return inputs
        first: Tensor = _UnscaleInputGrad.apply(inputs[0], branch.scale)  # type: ignore[no-untyped-call]
        return (first, *inputs[1:])

    return hook


def _exit(branch: Branch) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output.float()
        scaled: Tensor = _ScaleOutputGrad.apply(output, branch.scale)  # type: ignore[no-untyped-call]
        return scaled

    return hook


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
        return filtered(grads[0].float()).div_(ctx.scale).to(ctx.dtype), None
