"""The training loop: time, optimizers and IO. Objectives live in tasks, networks in models."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

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
from trainer.recipe import Recipe
from trainer.rng import micro_batches, seed_dropout
from trainer.run import Progress
from trainer.signals import Preemption
from trainer.task import Step, Task
from trainer.tracking.tracker import Tracker

log = logging.getLogger(__name__)


@dataclass
class TrainState:
    """Updates done, whether a signal ended the run, and the averages."""

    step: int = 0
    preempted: bool = False
    emas: dict[str, Ema] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainContext:
    """What the loop uses besides recipe, task, engines and data."""

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
    context: TrainContext,
) -> TrainState:
    """Train to the recipe's last step, from the newest checkpoint if there is one.

    Raises:
        UserError: the loss stopped being finite, or a checkpoint cannot be read or written.
    """
    state = TrainState()
    if recipe.ema:
        state.emas = {name: Ema(engine, recipe.ema) for name, engine in engines.items()}
    saved = context.checkpoints.newest()
    if saved is not None:
        values = context.checkpoints.restore(saved, engines, state.emas)
        state.step = values["step"]
        task.restore(values.get("task", {}))
        stream = stream.at(StreamState.from_json(values["stream"]))
        log.info("resuming from %s", saved)
    first, start = state.step, stream
    batches = iter(stream)
    metrics = MetricAccumulator(context.world.device)
    while state.step < recipe.steps:
        waiting = time.perf_counter()
        batch = next(batches)
        metrics.waited += time.perf_counter() - waiting
        update(recipe, task, engines, batch, state.step, context.world, metrics)
        for ema in state.emas.values():
            ema.update()
        state.step += 1
        if state.emas:
            context.snapshots.take(state.step, next(iter(state.emas.values())))
        metrics.samples += recipe.batch
        metrics.steps += 1
        last = state.step == recipe.steps
        if state.step % recipe.log.every == 0 or last:
            report(recipe, engines, state.step, metrics, context)
        if recipe.log.previews and (state.step % recipe.log.previews == 0 or last):
            images = preview(recipe, task, engines, state.emas, batch, state.step)
            context.tracker.log_images(state.step, images)
        preempted = distributed.any_rank(context.preemption.requested, context.world.device)
        context.preemption.requested = preempted
        if state.step % recipe.checkpoint.every == 0 or last or preempted:
            position = start.state_after(state.step - first).model_dump()
            extra = {"stream": position, "task": task.state()}
            context.checkpoints.save(state.step, engines, state.emas, extra)
        if preempted and not last:
            state.preempted = True
            break
    return state


def update(
    recipe: Recipe,
    task: Task,
    engines: Mapping[str, Engine],
    batch: Batch,
    index: int,
    world: World,
    metrics: MetricAccumulator,
) -> None:
    """One optimizer step of every part, over this process's share of the global batch."""
    micro = recipe.micro_batch_for(world.size)
    accumulation = recipe.batch // (micro * world.size)
    for number, part in enumerate(micro_batches(batch, micro, world.device)):
        position = world.rank * accumulation + number
        rng = keyed_generator(recipe.seed, index, position, device=world.device)
        step = Step(index, rng, position, accumulation * world.size)
        seed_dropout(step.rng)
        for loss in task.losses(engines, part, step):
            engine = engines[loss.part]
            engine.backward(loss.value)
            engine.step(index)
            metrics.add({f"loss/{loss.part}": loss.value, **loss.metrics})
    task.after_update(Step(index, keyed_generator(recipe.seed, index, 0, device=world.device)))


def report(
    recipe: Recipe,
    engines: Mapping[str, Engine],
    step: int,
    metrics: MetricAccumulator,
    context: TrainContext,
) -> None:
    """Log the metrics since the last report.

    Raises:
        UserError: a loss is not finite.
    """
    values = metrics.read()
    for name, engine in engines.items():
        suffix = "" if len(engines) == 1 else f"/{name}"
        values[f"learning_rate{suffix}"] = engine.learning_rate(step - 1)
        values.update({f"{key}{suffix}": value for key, value in engine.status().items()})
    context.tracker.log(step, values)
    context.progress(step, recipe.steps, values)
    for key, value in values.items():
        if key.startswith("loss/") and not math.isfinite(value):
            raise UserError(
                f"{key} is {value} at step {step}: lower optimizer.lr.peak, or use "
                "engine.precision=fp32; the last checkpoint precedes this step"
            )
    metrics.reset()
