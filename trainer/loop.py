"""The training loop: time, optimizers and IO. Objectives live in tasks, networks in models."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.batch import Batch
from data_pipeline.stream import Stream, StreamState
from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from trainer import distributed
from trainer.averages.ema import Ema
from trainer.averages.snapshots import Snapshots
from trainer.checkpoint import Checkpoints
from trainer.distributed import World
from trainer.engine import Engine
from trainer.metrics import MetricAccumulator
from trainer.previews import preview
from trainer.progress import Progress
from trainer.recipe import Recipe
from trainer.rng import micro_batches, seed_dropout
from trainer.signals import Preemption
from trainer.task import StatefulTask, Step, Task
from trainer.tracking.tracker import Tracker

log = logging.getLogger(__name__)


@dataclass
class TrainState:
    """Where a run stands: updates done, and whether it stopped because it was told to leave."""

    step: int = 0
    preempted: bool = False
    emas: dict[str, Ema] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainContext:
    """What the loop uses besides the task: where it runs, what it writes to, who watches."""

    world: World
    checkpoints: Checkpoints
    tracker: Tracker
    preemption: Preemption
    progress: Progress
    snapshots: Snapshots


def train(
    recipe: Recipe,
    task: Task,
    engines: Mapping[str, Engine],
    stream: Stream,
    around: TrainContext,
) -> TrainState:
    """Train to the recipe's last step, from the newest checkpoint if there is one.

    Raises:
        UserError: the loss stopped being finite, or a checkpoint cannot be read or written.
    """
    state = TrainState()
    if recipe.ema:
        state.emas = {name: Ema(engine, recipe.ema) for name, engine in engines.items()}
    saved = around.checkpoints.newest()
    if saved is not None:
        values = around.checkpoints.restore(saved, engines, state.emas)
        state.step = values["step"]
        if isinstance(task, StatefulTask):
            task.restore(values.get("task", {}))
        stream = stream.at(StreamState.from_json(values["stream"]))
        log.info("resuming from %s", saved)
    first, start = state.step, stream
    batches = iter(stream)
    meter = MetricAccumulator(around.world.device)
    while state.step < recipe.steps:
        waiting = time.perf_counter()
        batch = next(batches)
        meter.waited += time.perf_counter() - waiting
        update(recipe, task, engines, batch, state.step, around.world, meter)
        for ema in state.emas.values():
            ema.update()
        state.step += 1
        if state.emas:
            around.snapshots.take(state.step, next(iter(state.emas.values())))
        meter.samples += recipe.batch
        meter.steps += 1
        last = state.step == recipe.steps
        if state.step % recipe.log.every == 0 or last:
            report(recipe, engines, state.step, meter, around)
        if recipe.log.previews and (state.step % recipe.log.previews == 0 or last):
            pictures = preview(recipe, task, engines, state.emas, batch, state.step)
            around.tracker.log_images(state.step, pictures)
        leaving = distributed.any_of(around.preemption.requested, around.world.device)
        around.preemption.requested = leaving
        if state.step % recipe.checkpoint.every == 0 or last or leaving:
            place = start.state_after(state.step - first).model_dump()
            kept = {"stream": place, "task": learnt(task)}
            around.checkpoints.save(state.step, engines, state.emas, kept)
        if leaving and not last:
            state.preempted = True
            break
    return state


def learnt(task: Task) -> Mapping[str, Any]:
    """What a task has learnt besides weights."""
    return task.state() if isinstance(task, StatefulTask) else {}


def update(
    recipe: Recipe,
    task: Task,
    engines: Mapping[str, Engine],
    batch: Batch,
    index: int,
    world: World,
    meter: MetricAccumulator,
) -> None:
    """One optimizer step of every part, over this process's share of the global batch."""
    micro = recipe.micro_batch_for(world.size)
    accumulation = recipe.batch // (micro * world.size)
    for number, part in enumerate(micro_batches(batch, micro, world.device)):
        place = world.rank * accumulation + number
        rng = keyed_generator(recipe.seed, index, place, device=world.device)
        step = Step(index, rng, place, accumulation * world.size)
        seed_dropout(step.rng)
        for loss in task.losses(engines, part, step):
            engine = engines[loss.part]
            engine.backward(loss.value)
            engine.step(index)
            meter.add({f"loss/{loss.part}": loss.value, **loss.metrics})
    task.after_update(Step(index, keyed_generator(recipe.seed, index, 0, device=world.device)))


def report(
    recipe: Recipe,
    engines: Mapping[str, Engine],
    step: int,
    meter: MetricAccumulator,
    around: TrainContext,
) -> None:
    """Log the interval that ends with `step`, and start the next one.

    Raises:
        UserError: a loss is not finite; the run stops rather than train on nothing.
    """
    values = meter.read()
    for name, engine in engines.items():
        suffix = "" if len(engines) == 1 else f"/{name}"
        values[f"learning_rate{suffix}"] = engine.learning_rate(step - 1)
        values.update({f"{key}{suffix}": value for key, value in engine.status().items()})
    around.tracker.log(step, values)
    around.progress(step, recipe.steps, values)
    for key, value in values.items():
        if key.startswith("loss/") and not math.isfinite(value):
            raise UserError(
                f"{key} is {value} at step {step}: lower optimizer.lr.peak, or use "
                "engine.precision=fp32; the last checkpoint is from before"
            )
    meter.reset()
