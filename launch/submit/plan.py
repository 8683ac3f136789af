"""What a submit would do: which stages become jobs, what each job waits for, and its script."""

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launch.pipeline.config import Pipeline, TrainStage, needs, order, recipe_of
from launch.pipeline.runner import finished, readers
from launch.pipeline.state import Ledger
from launch.slurm.config import Cluster, Shape
from launch.slurm.job_script import Script, Task, render
from launch.slurm.records import TRAIN
from mezzotint.common.errors import UserError
from trainer.recipe import Recipe
from trainer.run import RunDirectory


@dataclass(frozen=True)
class Planned:
    """One job to submit."""

    task: Task
    script: Script
    after: tuple[str, ...]
    """Stages whose jobs it waits for."""


@dataclass(frozen=True)
class Plan:
    """What a submit would do to a run directory."""

    run: str
    root: Path
    jobs: Mapping[str, Planned] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    """Finished stages."""
    left: tuple[str, ...] = ()
    """Stages whose jobs wait or run already."""


def plan_recipe(recipe: Recipe, cluster: Cluster, root: Path, live: Iterable[str] = ()) -> Plan:
    """One job that trains `recipe` in `root`.

    Raises:
        UserError: it cannot run there.
    """
    if RunDirectory(root).finished():
        return Plan(recipe.name, root, skipped=(TRAIN,))
    if TRAIN in live:
        return Plan(recipe.name, root, left=(TRAIN,))
    shape = cluster.training()
    share(recipe, shape.tasks, "batch")
    task = recipe_task(recipe, root, shape)
    return Plan(recipe.name, root, {TRAIN: Planned(task, write(task, cluster), ())})


def recipe_task(recipe: Recipe, root: Path, shape: Shape) -> Task:
    """The job that trains a recipe in `root`."""
    command = ("launch.train.worker", str(root))
    return Task(recipe.name, TRAIN, root, root, command, shape, trains=True)


def plan_pipeline(
    pipeline: Pipeline,
    cluster: Cluster,
    root: Path,
    live: Iterable[str] = (),
    redo: Iterable[str] = (),
) -> Plan:
    """A job for every stage that is not finished and has none.

    Args:
        pipeline: its stages.
        cluster: where the jobs run.
        root: its run directory.
        live: stages whose jobs wait or run.
        redo: stages to run again although they are finished, with all that read them.

    Raises:
        UserError: a finished stage has other settings, or a stage cannot run there.
    """
    ledger, alive = Ledger(root), set(live)
    again = {stale for name in redo for stale in readers(pipeline, name)}
    skipped: list[str] = []
    left: list[str] = []
    jobs: dict[str, Planned] = {}
    for name in order(pipeline):
        waits = tuple(each for each in needs(pipeline, name) if each not in skipped)
        if not waits and name not in again and finished(pipeline, ledger, name):
            skipped.append(name)
        elif name in alive and not set(waits) & set(jobs):
            left.append(name)
        else:
            task = stage_task(pipeline, cluster, root, name)
            jobs[name] = Planned(task, write(task, cluster), waits)
    return Plan(pipeline.name, root, jobs, tuple(skipped), tuple(left))


def stage_task(pipeline: Pipeline, cluster: Cluster, root: Path, name: str) -> Task:
    """The job of one stage."""
    stage = pipeline.stages[name]
    trains = isinstance(stage, TrainStage)
    shape = cluster.training(stage.nodes) if trains else cluster.serial()
    if isinstance(stage, TrainStage):
        share(recipe_of(stage), shape.tasks, f"stages.{name}.set.batch")
    command = ("launch.cli.main", "stage", str(root), name)
    return Task(pipeline.name, name, root, root / name, command, shape, trains=trains)


def share(recipe: Recipe, tasks: int, key: str) -> None:
    """Refuse a batch that the processes of a job cannot share evenly."""
    try:
        recipe.micro_batch_for(tasks)
    except UserError as error:
        raise UserError(
            f"{key}: {str(error).partition(': ')[2]}, or change nodes or tasks_per_node in the "
            "cluster file"
        ) from error


def write(task: Task, cluster: Cluster) -> Script:
    """The script of a job submitted by this process."""
    return render(task, cluster, python=sys.executable, cwd=os.getcwd(), environment=os.environ)


def run_directory(runs: Path, name: str, cluster: Cluster) -> Path:
    """The path of a run under which every node sees it.

    Raises:
        UserError: it is outside of what the nodes share.
    """
    shared = Path(os.path.normpath(cluster.shared))
    typed = Path(os.path.abspath(runs)) / name
    if typed.is_relative_to(shared):
        return typed
    real = typed.resolve()
    if real.is_relative_to(shared.resolve()):
        return shared / real.relative_to(shared.resolve())
    raise UserError(
        f"{typed}: is not inside {shared}, which all nodes share (`shared` in the cluster file); "
        f"choose another place with --runs {shared}/..."
    )
