"""Resumes with the groups of weights in another order: `python regrouped.py FILE`.

FILE is a list of settings in JSON; the answers go to FILE with the rank as suffix.
"""

from pathlib import Path

import torch
from entries import answer_entries
from torch import Tensor, nn

from launch.errors import run_command
from mezzotint.common.errors import UserError
from trainer import distributed, engine
from trainer.checkpoint import Checkpoints
from trainer.optimizers import build, groups
from trainer.recipe import load

BUILD = build.build
DECAY = {"matrices": 0.3, "others": 0.0}


class Net(nn.Module):
    """Two groups of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(7, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh()).float().square().mean()


def grouped(order: tuple[str, ...]) -> None:
    """From here on optimizers have their groups in this order, each with a decay of its own."""

    def build_groups(module, settings):
        optimizer = BUILD(module, settings)
        for group in optimizer.param_groups:
            group["weight_decay"] = DECAY[group["name"]]
        groups.arrange(optimizer, order)
        return optimizer

    engine.optimizers.build = build_groups


def update(built: engine.Engine, steps: range) -> Tensor:
    dtype = next(built.module.parameters()).dtype
    for step in steps:
        built.backward(built(torch.ones(1, 7, dtype=dtype)))
        built.step(step)
    whole = built.gather_full_state(built.local_weights())
    return torch.cat([value.float().flatten() for value in whole.values()])


def resume(overrides: list[str], root: Path, world: distributed.World) -> dict[str, object]:
    recipe = load("recipes/emoji_prior.yaml", overrides)
    checkpoints = Checkpoints(root, world, keep=1)

    def make(order: tuple[str, ...], found: Path | None = None) -> engine.Engine:
        grouped(order)
        torch.manual_seed(0)
        return engine.build({"model": Net()}, recipe, world, found)["model"]

    first = make(("matrices", "others"))
    update(first, range(3))
    path = checkpoints.save(3, {"model": first}, {}, {})
    expected = update(first, range(3, 6))
    again = make(("others", "matrices"), checkpoints.last())
    checkpoints.restore(path, {"model": again}, {})
    decays = {
        group["name"]: group["weight_decay"] for group in again._engine.optimizer.param_groups
    }
    answer = {"decays": decays, "alike": bool(torch.equal(update(again, range(3, 6)), expected))}
    other = make(("others", "matrices"))
    try:
        checkpoints.restore(path, {"model": other}, {})
    except UserError as error:
        answer["refused"] = str(error)
    for each in (first, again, other):
        each._engine.destroy()
    return answer


def main() -> None:
    answer_entries(resume)


if __name__ == "__main__":
    run_command(main)
