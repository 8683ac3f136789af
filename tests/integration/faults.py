"""Trains a small dVAE that meets a fault: `python faults.py FILE`, FILE a list in JSON.

Each entry names a fault, a step and perhaps the rank that alone meets it; what training said and
left goes to FILE with the rank as suffix. An entry may be started again, without the fault. An
entry without checks is that of a build that had none, and crashes at step 11.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from deepspeed.accelerator import get_accelerator

from launch.errors import run_command
from mezzotint.common.errors import UserError
from trainer import engine, loop
from trainer.distributed import world_from_environment
from trainer.recipe import load
from trainer.run import RunDirectory
from trainer.session import run

COMMON = [
    *("steps=12", "batch=8", "micro_batch=4", "engine.precision=fp32", "checkpoint.every=5"),
    *("checkpoint.keep=2", "log.every=100", "log.previews=null", "engine.zero=0"),
    *("model.width=16", "model.initial_width=16", "model.vocab=16", "data.cache_in_memory=false"),
]
UPDATE, CHECKS = loop.update, (loop.check_losses, loop.check_state)
CRASH = "a crash"


def spoil_loss(task, engines, state) -> None:
    """The loss of this update is NaN; its gradients are too."""
    losses = task.losses

    def wrapped(*arguments):
        for each in losses(*arguments):
            yield replace(each, value=each.value * torch.nan)

    task.losses = wrapped


def spoil_gradient(task, engines, state) -> None:
    """The loss is finite, a gradient is not."""
    weight = next(engines["model"].module.parameters())
    handle = weight.register_hook(lambda grad: (handle.remove(), grad * torch.nan)[1])


def spoil_gradients(task, engines, state) -> None:
    """From here on, whatever the loss scale is."""
    weight = next(engines["model"].module.parameters())
    weight.register_hook(lambda grad: grad * torch.nan)


def spoil_average(task, engines, state) -> None:
    next(iter(state.emas["model"].values.values())).view(-1)[0] = torch.nan


def spoil_moment(task, engines, state) -> None:
    """An infinite variance: its weight does not move, and stays finite."""
    inner = engines["model"]._engine.optimizer
    inner = getattr(inner, "optimizer", inner)
    for values in inner.state.values():
        values["exp_avg_sq"].view(-1)[0] = torch.inf


def spoil_last_weight(task, engines, state) -> None:
    """A weight that no loss depends on any more in this update."""
    after = task.after_update

    def wrapped(step):
        after(step)
        weight = list(engines["model"].local_weights().values())[-1]
        weight.view(-1)[0] = torch.nan

    task.after_update = wrapped


def spoil_loss_and_signal(task, engines, state) -> None:
    spoil_loss(task, engines, state)
    os.kill(os.getpid(), signal.SIGTERM)


def spoil_preview(task, engines, state) -> None:
    preview = task.preview
    task.preview = lambda *given: {**preview(*given), "lost": torch.full((1, 3, 8, 8), torch.nan)}


def nothing(task, engines, state) -> None:
    pass


def faulty(fault: Callable[..., None], step: int, rank: int | None) -> Callable[..., None]:
    """An update that meets the fault at a step (from 1)."""

    def update(recipe, task, engines, batch, state, world, metrics) -> None:
        if state.step + 1 == 11 and loop.check_losses not in CHECKS:
            raise UserError(CRASH)
        if state.step + 1 == step and rank in (None, world.rank):
            fault(task, engines, state)
        UPDATE(recipe, task, engines, batch, state, world, metrics)

    return update


def train(entry: dict, directory: RunDirectory) -> str:
    """Train once; returns what it said, or how it ended."""
    recipe = load("recipes/emoji_dvae.yaml", [*COMMON, *entry.get("overrides", [])])
    if world_from_environment().is_main:
        directory.claim(recipe)
    try:
        state = run(recipe, directory, None, lambda step, steps, metrics: None)
    except UserError as error:
        return str(error)
    return "preempted" if state.preempted else "finished"


def left(directory: RunDirectory) -> dict[str, list[str]]:
    """What a run has left."""
    names = ("checkpoints", "averages", "previews", "model")
    return {name: sorted(path.name for path in (directory.path / name).glob("*")) for name in names}


def main() -> None:
    file = Path(sys.argv[1])
    world = world_from_environment()
    answers = []
    for place, entry in enumerate(json.loads(file.read_text())):
        directory = RunDirectory(file.with_suffix(f".{place}"))
        if "fp16" in entry:
            engine.resolve_precision = lambda precision, device: precision
            get_accelerator().is_fp16_supported = lambda: True
        fault = globals()[entry.get("fault", "nothing")]
        loop.update = faulty(fault, entry.get("step", 7), entry.get("rank"))
        if entry.get("unchecked"):
            loop.check_losses = loop.check_state = lambda *given: None
        answer = {"said": train(entry, directory), **left(directory)}
        loop.update, (loop.check_losses, loop.check_state) = UPDATE, CHECKS
        if entry.get("again"):
            answer["again"] = train(entry, directory)
            answer["left again"] = left(directory)
        answers.append(answer)
    file.with_suffix(f".rank{world.rank}.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    run_command(main)
