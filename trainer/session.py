"""One training run from recipe to model directory, as one of its processes sees it."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from data_pipeline.stream import Stream
from mezzotint.common.files import write_json
from models import store
from trainer import distributed, engine
from trainer.averages.snapshots import Snapshots
from trainer.caption_lengths import log_cut_captions
from trainer.checkpoint import Checkpoints
from trainer.distributed import World
from trainer.engine import Engine
from trainer.loop import TrainContext, TrainState, train
from trainer.model_card import model_card
from trainer.recipe import Recipe
from trainer.run import Progress, RunDirectory
from trainer.setup import TrainingInputs, open_inputs
from trainer.signals import Preemption
from trainer.tracking.run_log import RunInfo, TrackingConfig, read_metrics
from trainer.tracking.tracker import Tracker


def run(
    recipe: Recipe, directory: RunDirectory, tracking: TrackingConfig | None, progress: Progress
) -> TrainState:
    """Train, export the averaged weights, and write the summary; every process calls it."""
    world = distributed.world_from_environment()
    distributed.use_threads(world, sorted(os.sched_getaffinity(0)))
    engine.start(world)
    inputs = open_inputs(recipe)
    if world.is_main:
        log_cut_captions(recipe, inputs.dataset)
    started = time.time()
    checkpoints = Checkpoints(directory.checkpoints, world, recipe.checkpoint.keep)
    last = checkpoints.last()
    if last is None:
        fit_to_data(inputs, world)
    engines = engine.build(inputs.task.parts(), recipe, world, last)
    stream = Stream(
        inputs.dataset,
        global_batch=recipe.batch,
        rank=world.rank,
        world=world.size,
        seed=recipe.seed,
    )
    info = RunInfo(
        name=directory.path.name,
        params=recipe.model_dump(mode="json"),
        tags={"mezzotint.kind": "train"},
        dataset=(inputs.dataset.manifest.name, inputs.dataset.fingerprint, recipe.data.url),
    )
    tracker = Tracker(
        directory,
        tracking,
        info,
        writes=world.is_main,
        samples=world.is_local_main,
        processes=world.size,
    )
    with Preemption() as preemption, tracked(tracker, directory):
        context = TrainContext(
            world,
            checkpoints,
            tracker,
            preemption,
            progress,
            Snapshots(directory.averages, recipe.ema, recipe.steps, world.is_main),
        )
        state = train(recipe, inputs.task, engines, stream, context)
        if not state.preempted:
            export(recipe, directory, inputs, engines, state, world, time.time() - started)
        distributed.barrier()  # no rank waits for the last uploads
        tracker.close("KILLED" if state.preempted else "FINISHED", {"model": directory.model})
    return state


def fit_to_data(inputs: TrainingInputs, world: World) -> None:
    """Give the networks of a new run what the task measures over the data set, once for all."""
    found = inputs.task.fit(inputs.dataset.batch, len(inputs.dataset)) if world.is_main else ""
    found = distributed.broadcast_string(found)
    if found:
        inputs.task.use_fit(found)


@contextmanager
def tracked(tracker: Tracker, directory: RunDirectory) -> Iterator[None]:
    """Close the tracker as failed or killed when the run raises."""
    try:
        yield
    except KeyboardInterrupt:
        tracker.close("KILLED")
        raise
    except BaseException as error:
        tracker.close("FAILED", {"logs": directory.path / "logs"}, error=error)
        raise


def export(
    recipe: Recipe,
    directory: RunDirectory,
    inputs: TrainingInputs,
    engines: Mapping[str, Engine],
    state: TrainState,
    world: World,
    seconds: float,
) -> None:
    """Export the first part as a model directory and write the summary."""
    name, first = next(iter(engines.items()))
    weights = (
        state.emas[name].gather_full_state()
        if state.emas
        else first.gather_full_state(first.local_weights())
    )
    weights = {key: value.float() for key, value in weights.items()}
    weights.update({key: value.cpu() for key, value in first.module.named_buffers()})
    if not world.is_main:
        return
    tokenizer = inputs.tokenizer
    metrics = read_metrics(directory.metrics)[-1]["metrics"]
    parameters = sum(value.numel() for value in weights.values())
    for target in filter(None, (str(directory.model), recipe.publish)):
        store.save(
            target,
            recipe.model,
            weights,
            card=model_card(recipe, inputs.dataset.manifest, parameters, metrics),
            tokenizer=tokenizer.model_bytes if tokenizer else None,
            text_length=recipe.data.text.length if recipe.data.text else None,
            text_encoder=inputs.text_encoder,
            preprocessing=inputs.preprocessing,
            first_stage=inputs.first_stage,
            base=inputs.base,
            hint=inputs.hint,
            embeddings=inputs.embeddings,
        )
    write_json(
        directory.summary,
        {
            "steps": state.step,
            "seconds": round(seconds, 1),
            "parameters": parameters,
            "zero": recipe.engine.zero,
            "precision": first.precision,
            "processes": world.size,
            "metrics": metrics,
            "model": store.describe(str(directory.model)).digest,
        },
    )


def read_summary(directory: RunDirectory) -> dict[str, object]:
    """The summary of a finished run."""
    return json.loads(directory.summary.read_text(encoding="utf-8"))
