"""The training loop: time, optimizers and IO. Objectives live in tasks, networks in models."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from data_pipeline.batch import Batch
from data_pipeline.stream import Stream, StreamState
from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from trainer import distributed, previews
from trainer.averages.ema import Ema
from trainer.averages.snapshots import Snapshots
from trainer.checkpoint import Checkpoints
from trainer.distributed import World
from trainer.engine import Engine, NonFiniteGradientsError
from trainer.finite import FirstNonFinite, non_finite_state, stop_training
from trainer.metrics import MetricAccumulator
from trainer.recipe import Recipe
from trainer.rng import micro_batches, seed_dropout
from trainer.run import Progress
from trainer.signals import Preemption
from trainer.task import Step, Task
from trainer.tracking.tracker import Tracker

log = logging.getLogger(__name__)

FEW_DAMAGED = 8
"""As many damaged samples end no run that allows some, whatever their share."""


@dataclass
class TrainState:
    """Updates done, whether a signal ended the run, and the averages."""

    seen: FirstNonFinite
    step: int = 0
    saved: int | None = None
    """The step of the newest checkpoint."""
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
        UserError: numbers stopped being finite, or a checkpoint cannot be read or written.
    """
    state = TrainState(seen=FirstNonFinite(context.world))
    if recipe.ema:
        state.emas = {name: Ema(engine, recipe.ema) for name, engine in engines.items()}
    stream = resume(task, engines, stream, context, state)
    first, start = state.step, stream
    batches = iter(stream)
    metrics = MetricAccumulator(context.world.device)
    while state.step < recipe.steps and not state.preempted:
        waiting = time.perf_counter()
        batch = next(batches)
        metrics.waited += time.perf_counter() - waiting
        try:
            update(recipe, task, engines, batch, state, context.world, metrics)
        except NonFiniteGradientsError as error:
            check_losses(state)
            raise stop_training(str(error), state.saved) from error
        for ema in state.emas.values():
            ema.update()
        state.step += 1
        if state.emas:
            check_before_snapshot(engines, state, context)
            context.snapshots.take(state.step, next(iter(state.emas.values())))
        metrics.samples += recipe.batch
        metrics.steps += 1
        last = state.step == recipe.steps
        if task.measures(state.step):
            check_losses(state)
            metrics.latest = previews.measure(task, engines, state.emas, state.step)
            context.tracker.tag(task.tags())
        if state.step % recipe.log.every == 0 or last:
            check_losses(state)
            check_damaged(recipe, (state.step - first) * recipe.batch, metrics)
            report(recipe, engines, state.step, metrics, context)
        if recipe.log.previews and (state.step % recipe.log.previews == 0 or last):
            check_losses(state)
            images = previews.preview(recipe, task, engines, state.emas, batch, state.step)
            context.tracker.log_images(state.step, images)
        preempted = distributed.any_rank(context.preemption.requested, context.world.device)
        context.preemption.requested = preempted
        if state.step % recipe.checkpoint.every == 0 or last or preempted:
            check_losses(state)
            check_state(engines, state)
            position = start.state_after(state.step - first).model_dump()
            extra = {"stream": position, "task": task.state()}
            context.checkpoints.save(state.step, engines, state.emas, extra)
            state.saved = state.step
        state.preempted = preempted and not last
    return state


def resume(
    task: Task,
    engines: Mapping[str, Engine],
    stream: Stream,
    context: TrainContext,
    state: TrainState,
) -> Stream:
    """Take over the newest checkpoint of finite numbers; returns the stream from there on.

    Raises:
        UserError: there are checkpoints, and none can be used.
    """
    saved = context.checkpoints.newest()
    while saved is not None:
        values = context.checkpoints.restore(saved, engines, state.emas)
        fault = non_finite_state(engines, state.emas)
        if fault is None:
            state.step = state.saved = values["step"]
            task.restore(values.get("task", {}))
            log.info("resuming from %s", saved)
            return stream.at(StreamState.from_json(values["stream"]))
        log.warning("%s is not used: %s is not finite", saved, fault)
        saved = context.checkpoints.newest(before=saved)
    return stream


def check_losses(state: TrainState) -> None:
    """Stop where a loss was not finite on any process; every process calls it.

    Raises:
        UserError: with the loss and the step.
    """
    found = state.seen.read("loss/")
    if found is not None:
        raise stop_training(str(found), state.saved)


def check_damaged(recipe: Recipe, samples: int, metrics: MetricAccumulator) -> None:
    """Stop where too many of the samples that were read did not decode; every process calls it.

    Raises:
        UserError: with the numbers by cause.
    """
    if not recipe.data.max_damaged:
        return
    damaged = metrics.damaged()
    metrics.latest = {**metrics.latest, **{f"damaged/{name}": n for name, n in damaged.items()}}
    total = sum(damaged.values())
    if total > max(FEW_DAMAGED, recipe.data.max_damaged * samples):
        causes = ", ".join(f"{count} {name}s" for name, count in damaged.items() if count)
        raise UserError(
            f"data.max_damaged={recipe.data.max_damaged:g}: {total} of {samples:,} samples do not "
            f"decode ({causes}); `mezzotint data verify {recipe.data.url} --images` names them"
        )


def check_state(engines: Mapping[str, Engine], state: TrainState) -> None:
    """Stop before a state is written that is not finite; every process calls it.

    Raises:
        UserError: with the weight, average or optimizer state, and the step.
    """
    fault = non_finite_state(engines, state.emas)
    if fault is not None:
        found = state.seen.read()
        since = f" ({found})" if found else ""
        raise stop_training(f"{fault} is not finite at step {state.step}{since}", state.saved)


def check_before_snapshot(
    engines: Mapping[str, Engine], state: TrainState, context: TrainContext
) -> None:
    """The same checks, where the averages are about to be kept."""
    if context.snapshots.is_due(state.step):
        check_losses(state)
        check_state(engines, state)


def update(
    recipe: Recipe,
    task: Task,
    engines: Mapping[str, Engine],
    batch: Batch,
    state: TrainState,
    world: World,
    metrics: MetricAccumulator,
) -> None:
    """One optimizer step of every part, over this process's share of the global batch.

    Raises:
        NonFiniteGradientsError: a part has been making no updates.
    """
    index = state.step
    metrics.add_damaged(batch.damaged)
    micro = recipe.micro_batch_for(world.size)
    accumulation = recipe.batch // (micro * world.size)
    for number, part in enumerate(micro_batches(batch, micro, world.device)):
        position = world.rank * accumulation + number
        rng = keyed_generator(recipe.seed, index, position, device=world.device)
        step = Step(index, rng, position, accumulation * world.size)
        seed_dropout(step.rng)
        for loss in task.losses(engines, part, step):
            engine = engines[loss.part]
            state.seen.look(f"loss/{loss.part}", loss.value, index + 1)
            engine.backward(loss.value)
            engine.step(index)
            metrics.add({f"loss/{loss.part}": loss.value, **loss.metrics})
    for name, engine in engines.items():
        if engine.applied_norm is not None:
            state.seen.look(f"the gradient of {name}", engine.applied_norm, index + 1)
    task.after_update(Step(index, keyed_generator(recipe.seed, index, 0, device=world.device)))


def report(
    recipe: Recipe,
    engines: Mapping[str, Engine],
    step: int,
    metrics: MetricAccumulator,
    context: TrainContext,
) -> None:
    """Log the metrics since the last report."""
    values = metrics.read()
    for name, engine in engines.items():
        suffix = "" if len(engines) == 1 else f"/{name}"
        values[f"learning_rate{suffix}"] = engine.learning_rate(step - 1)
        values.update({f"{key}{suffix}": value for key, value in engine.status().items()})
    values.update(metrics.latest)
    context.tracker.log(step, values)
    context.progress(step, recipe.steps, values)
    metrics.reset()
