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
from trainer.checkpoint import Checkpoints
from trainer.distributed import World
from trainer.engine import Engine
from trainer.loop import TrainContext, TrainState, train
from trainer.model_card import model_card
from trainer.progress import Progress
from trainer.recipe import Recipe
from trainer.run import RunDirectory
from trainer.setup import TrainingInputs, open_materials
from trainer.signals import Preemption
from trainer.tracking.run_log import RunInfo, Status, TrackingConfig, read_metrics
from trainer.tracking.tracker import Tracker


def run(
    recipe: Recipe, directory: RunDirectory, link: TrackingConfig | None, progress: Progress
) -> TrainState:
    """Train, export the averaged weights, and write the summary; every process calls it."""
    world = distributed.place()
    distributed.use_threads(world, sorted(os.sched_getaffinity(0)))
    engine.start(world)
    materials = open_materials(recipe)
    started = time.time()
    engines = engine.build(materials.task.parts(), recipe, world)
    stream = Stream(
        materials.dataset,
        global_batch=recipe.batch,
        rank=world.rank,
        world=world.size,
        seed=recipe.seed,
    )
    opening = RunInfo(
        name=directory.path.name,
        params=recipe.model_dump(mode="json"),
        tags={"mezzotint.kind": "train"},
        dataset=(
            materials.dataset.manifest.name,
            materials.dataset.fingerprint,
            recipe.data.url,
        ),
    )
    tracker = Tracker(
        directory,
        link,
        opening,
        writes=world.is_main,
        samples=world.leads_node,
        processes=world.size,
    )
    with Preemption() as preemption, tracked(tracker, directory):
        around = TrainContext(
            world,
            Checkpoints(directory.checkpoints, world, recipe.checkpoint.keep),
            tracker,
            preemption,
            progress,
            Snapshots(directory.averages, recipe.ema, recipe.steps, world.is_main),
        )
        state = train(recipe, materials.task, engines, stream, around)
        if not state.preempted:
            export(recipe, directory, materials, engines, state, world, time.time() - started)
        distributed.barrier()  # nobody waits for what the tracker sends at last
        tracker.close("KILLED" if state.preempted else "FINISHED", {"model": directory.model})
    return state


@contextmanager
def tracked(tracker: Tracker, directory: RunDirectory) -> Iterator[None]:
    """Close the tracker as failed or killed when the run does not come to its own end."""
    status: Status = "FAILED"
    try:
        yield
    except KeyboardInterrupt:
        status = "KILLED"
        tracker.close(status)
        raise
    except BaseException:
        tracker.close(status, {"logs": directory.path / "logs"})
        raise


def export(
    recipe: Recipe,
    directory: RunDirectory,
    materials: TrainingInputs,
    engines: Mapping[str, Engine],
    state: TrainState,
    world: World,
    seconds: float,
) -> None:
    """Hand over the first part as a model directory and write what the run did."""
    name, first = next(iter(engines.items()))
    weights = state.emas[name].whole() if state.emas else first.whole(first.local_weights())
    weights = {key: value.float() for key, value in weights.items()}
    weights.update({key: value.cpu() for key, value in first.module.named_buffers()})
    if not world.is_main:
        return
    tokenizer = materials.tokenizer
    metrics = read_metrics(directory.metrics)[-1]["metrics"]
    parameters = sum(value.numel() for value in weights.values())
    for place in filter(None, (str(directory.model), recipe.publish)):
        store.save(
            place,
            recipe.model,
            weights,
            card=model_card(recipe, materials.dataset.manifest, parameters, metrics),
            tokenizer=tokenizer.model_bytes if tokenizer else None,
            text_length=recipe.data.text.length if recipe.data.text else None,
            text_encoder=materials.text_encoder,
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
    """What a finished run did."""
    summary: dict[str, object] = json.loads(directory.summary.read_text(encoding="utf-8"))
    return summary
