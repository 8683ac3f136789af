"""Puts weights into engines in one process: `python assigned.py FILE`, FILE a list in JSON.

One engine gets its module with the weights, another gets them later; both train two updates. The
answers go to FILE with the rank as suffix.
"""

import torch
from entries import answer_entries
from torch import Tensor, nn

from launch.errors import run_command
from trainer import distributed, engine
from trainer.averages.ema import Ema
from trainer.previews import ema_weights
from trainer.recipe import load


class Net(nn.Module):
    """Two layers of odd sizes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(7, 5), nn.Linear(5, 3)
        rng = torch.Generator().manual_seed(seed)
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape, generator=rng).bfloat16().float()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh()).float().square().mean()


def train(built: engine.Engine) -> list[Tensor]:
    """The weights after each of two updates."""
    dtype = next(built.module.parameters()).dtype
    x = torch.ones(2, 7, dtype=dtype)
    found = []
    for step in range(2):
        built.backward(built(x))
        built.step(step)
        found.append(flat(built))
    return found


def flat(built: engine.Engine) -> Tensor:
    whole = built.gather_full_state(built.local_weights())
    return torch.cat([value.float().flatten() for value in whole.values()])


def compare(overrides: list[str], world: distributed.World) -> dict[str, bool]:
    recipe = load("recipes/emoji_prior.yaml", overrides)

    def make(seed: int) -> engine.Engine:
        return engine.Engine("model", Net(seed), recipe, world, recipe.engine.precision)

    wanted = Net(1).state_dict()
    before, after, swapped = make(1), make(2), make(1)
    after.assign(wanted)
    start = flat(after)
    expected = train(before)
    answer = {
        "assigned": bool(
            torch.equal(start, torch.cat([each.flatten() for each in wanted.values()]))
        ),
        "trained alike": all(map(torch.equal, train(after), expected)),
        "moved": not torch.equal(expected[0], start),
    }
    average = Ema(swapped, recipe.ema)
    for value in average.values.values():
        value.zero_()
    with ema_weights({"model": swapped}, {"model": average}):
        pass
    answer["swapped back"] = all(map(torch.equal, train(swapped), expected))
    for each in (before, after, swapped):
        each._engine.destroy()
    return answer


def main() -> None:
    answer_entries(lambda overrides, _, world: compare(overrides, world))


if __name__ == "__main__":
    run_command(main)
