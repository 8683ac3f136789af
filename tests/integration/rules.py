"""Trains with settings of an engine in one process: `python rules.py FILE`, FILE a list in JSON.

Each entry has the overrides of a small prior. The losses, what the engine says of itself and the
weights at the end go to FILE with the rank as suffix. An entry that is to be resumed is saved in
the middle, and trained from there once more by new engines. Where an entry names the branch of a
fault, its gradient meets NaN at the last update, on the last process alone.
"""

import hashlib
from pathlib import Path

import torch
from entries import answer_entries

from launch.errors import run_command
from models.autoregressive.prior import weighted
from trainer import distributed, engine
from trainer.averages.ema import Ema
from trainer.checkpoint import Checkpoints
from trainer.recipe import Recipe, load

STEPS = 6


def build(recipe: Recipe, world: distributed.World) -> tuple[engine.Engine, Ema]:
    torch.manual_seed(recipe.seed)
    part = recipe.model.build()
    built = engine.Engine("model", part, recipe, world, recipe.engine.precision)
    return built, Ema(built, recipe.ema)


def update(built: engine.Engine, ema: Ema, recipe: Recipe, world, step: int) -> float:
    config, micro = recipe.model, recipe.batch // world.size
    rng = torch.Generator().manual_seed(step)
    text = torch.randint(1, config.text_vocab, (recipe.batch, config.text_length), generator=rng)
    codes = torch.randint(0, 9, (recipe.batch, config.image_length), generator=rng)
    first = micro * world.rank
    text, codes = text[first : first + micro], codes[first : first + micro]
    loss = weighted(built(text, codes, codes))
    built.backward(loss)
    built.step(step)
    ema.update()
    return float(distributed.mean(loss.detach()))


def digest(built: engine.Engine, ema: Ema) -> str:
    return digest_of(built.gather_full_state(built.local_weights()), ema.gather_full_state())


def weights(built: engine.Engine) -> str:
    return digest_of(built.gather_full_state(built.local_weights()))


def digest_of(*dictionaries: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for tensors in dictionaries:
        for value in tensors.values():
            found.update(value.float().numpy().tobytes())
    return found.hexdigest()


def poison(built: engine.Engine, place: int) -> None:
    """The next gradient that enters a branch is NaN."""

    def hook(module, inputs, output) -> None:
        output.register_hook(lambda grad: torch.full_like(grad, torch.nan))
        handle.remove()

    handle = built._hooks._scales.branches[place].exit.register_forward_hook(hook, prepend=True)


def train(entry: dict, root: Path, world: distributed.World) -> dict:
    recipe = load("recipes/emoji_prior.yaml", entry["overrides"])
    built, ema = build(recipe, world)
    checkpoints = Checkpoints(root, world, keep=1)
    losses, path = [], None
    held = {}
    for step in range(STEPS):
        if step == STEPS - 1 and entry["fault"] is not None:
            held["before the fault"] = weights(built)
            if world.rank == world.size - 1:
                poison(built, entry["fault"])
        if entry["resumed"] and step == STEPS // 2:
            path = checkpoints.save(step, {"model": built}, {"model": ema}, {})
        losses.append(update(built, ema, recipe, world, step))
    answer = {"losses": losses, "status": built.status(), "weights": digest(built, ema), **held}
    if entry["fault"] is not None:
        answer["after the fault"] = weights(built)
        answer["scales"] = [branch.scale for branch in built._hooks._scales.branches]
    built._engine.destroy()
    if path is not None:
        built, ema = build(recipe, world)
        checkpoints.restore(path, {"model": built}, {"model": ema})
        for step in range(STEPS // 2, STEPS):
            update(built, ema, recipe, world, step)
        answer["resumed"] = digest(built, ema)
        built._engine.destroy()
    return answer


def main() -> None:
    answer_entries(train)


if __name__ == "__main__":
    run_command(main)
