"""Counts equal gradients in one process: `python sums.py FILE`, FILE a list of settings in JSON.

Every gradient of an update is 1/16, of those micro-batches that have it.
The answers go to FILE with the rank as suffix.
"""

import torch
from deepspeed.accelerator import get_accelerator
from entries import answer_entries
from torch import Tensor, nn

from launch.errors import run_command
from trainer import distributed, engine
from trainer.recipe import load


class Sum(nn.Module):
    """The sum of a linear layer's outputs and of a bias that only the first inputs use."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 6, bias=False)
        self.early = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor, early: int) -> Tensor:
        outputs = self.layer(x).float().sum() + (self.early.float().sum() if early else 0.0)
        return outputs / 16  # fp16 holds the sum times its first loss scale


def count(overrides: list[str], world: distributed.World) -> dict[str, float]:
    """The norm of the gradient of an update, in units of one of its numbers."""
    recipe = load("recipes/emoji_prior.yaml", overrides)
    precision = recipe.engine.precision
    built = engine.Engine("model", Sum(), recipe, world, precision)
    rounds = recipe.batch // world.size
    dtype = next(built.module.parameters()).dtype
    before = {name: value.float().clone() for name, value in whole(built).items()}
    for number in range(rounds):
        built.backward(built(torch.ones(1, 8, dtype=dtype), int(number < rounds // 2)))
        built.step(0)
    moved = {
        name: float((value.float() - before[name]).abs().max())
        for name, value in whole(built).items()
    }
    status = built.status()
    built._engine.destroy()
    return {**status, "moved": min(moved.values())}


def whole(built: engine.Engine) -> dict[str, Tensor]:
    return built.gather_full_state(built.local_weights())


def main() -> None:
    get_accelerator().is_fp16_supported = lambda: True
    answer_entries(lambda overrides, _, world: count(overrides, world))


if __name__ == "__main__":
    run_command(main)
