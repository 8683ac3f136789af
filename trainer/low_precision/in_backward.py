"""AdamW inside backward, at 6 bytes a weight: no gradient outlives its own update.

Weights and both moments are bf16, and a weight's update runs as soon as its gradient is complete;
then the gradient is freed. Rounding to nearest would lose most updates, which are far below half a
step of a bf16 weight, and keep a running variance from ever falling. Everything is therefore
rounded up or down at random, right on average (stochastic rounding, arXiv 1502.02551). Random
numbers are keyed by seed, update and weight: the order of backward does not matter, and a resumed
run goes on bit for bit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from trainer.low_precision.adamw import MEANS, VARIANCES, chunks, update_moments, updated_weight

STORED = torch.bfloat16
UPDATES = "updates"


def stochastic_round(values: Tensor, rng: Generator) -> Tensor:
    """fp32 numbers as bf16 ones beside them, that are right on average.

    Inf and NaN stay what they are.
    """
    low = torch.randint(1 << 16, values.shape, generator=rng, device=rng.device, dtype=torch.int32)
    bits = (values.view(torch.int32) + low) & -(1 << 16)
    return torch.where(values.isfinite(), bits.view(torch.float32), values).to(STORED)


class InBackwardAdamW(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101, algorithm 2) over bf16 weights; `step` only counts.

    The learning rate in `param_groups` must be set before backward. `clip` bounds the norm of each
    weight's own gradient; the norm of all is known only when they are gone.
    """

    skip = False
    """Unused: the updates have happened already."""

    def __init__(
        self,
        weights: Sequence[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        clip: float | None,
        seed: int,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(weights, {**defaults, UPDATES: 0})
        self._clip, self._seed = clip, seed
        self._done: set[int] = set()
        self._squares: list[Tensor] = []
        for index, weight in enumerate(weights):
            weight.register_post_accumulate_grad_hook(self._hook(index))  # type: ignore[no-untyped-call]

    @property
    def updates(self) -> int:
        return self.param_groups[0][UPDATES]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Close an update; its work was done in backward."""
        self.param_groups[0][UPDATES] += 1
        self._done.clear()
        self._squares.clear()

    def norm(self) -> Tensor:
        """Global norm of the gradients since the last `step`, before any bound."""
        return torch.stack(self._squares).sum().sqrt() if self._squares else torch.zeros(())

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        def update(weight: Tensor) -> None:
            if index in self._done:
                raise UserError(
                    "engine.update: with in_backward each part runs backward once per update, and "
                    "this task runs it more often; use after_backward"
                )
            self._done.add(index)
            with torch.no_grad():
                self._update(
                    weight, keyed_generator(self._seed, self.updates, index, device=weight.device)
                )
            weight.grad = None

        return update

    def _update(self, weight: Tensor, rng: Generator) -> None:
        group, state, grad = self.param_groups[0], self.state[weight], weight.grad
        assert grad is not None
        if not state:
            for name in (MEANS, VARIANCES):
                state[name] = torch.zeros_like(weight)
        norm = torch.linalg.vector_norm(grad, dtype=torch.float32)
        self._squares.append(norm.square())
        bound = None if self._clip is None else (self._clip / (norm + 1e-6)).clamp(max=1.0)
        whole = (weight.detach(), grad, state[MEANS], state[VARIANCES])
        for each in zip(*(chunks(tensor) for tensor in whole), strict=True):
            _update_chunk(*each, bound=bound, group=group, rng=rng)


def _update_chunk(
    weight: Tensor,
    grad: Tensor,
    means: Tensor,
    variances: Tensor,
    *,
    bound: Tensor | None,
    group: Mapping[str, Any],
    rng: Generator,
) -> None:
    """Algorithm 2 on one-dimensional pieces, in fp32, in place."""
    whole = grad.float() if bound is None else grad.float() * bound
    mean, variance = update_moments(means.float(), variances.float(), whole, group["betas"])
    means.copy_(stochastic_round(mean, rng))
    variances.copy_(stochastic_round(variance, rng))
    weight.copy_(
        stochastic_round(
            updated_weight(weight.float(), mean, variance, group, group[UPDATES] + 1), rng
        )
    )
