"""What a submit would do: which stages become jobs, what each job waits for, and its script."""

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launch.pipeline.config import Pipeline, TrainStage, dependencies, stage_order, stage_recipe
from launch.pipeline.runner import downstream_stages, is_up_to_date
from launch.pipeline.state import PipelineState
from launch.slurm.config import Cluster, JobResources
from launch.slurm.job_script import JobScript, JobSpec, render_job_script
from launch.slurm.records import TRAIN
from mezzotint.common.errors import UserError
from trainer.recipe import Recipe
from trainer.run import RunDirectory


@dataclass(frozen=True)
class PlannedJob:
    """One job to submit."""

    task: JobSpec
    script: JobScript
    after: tuple[str, ...]
    """Stages whose jobs it waits for."""


@dataclass(frozen=True)
class SubmitPlan:
    """What a submit would do to a run directory."""

    run: str
    root: Path
    jobs: Mapping[str, PlannedJob] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    """Finished stages."""
    left: tuple[str, ...] = ()
    """Stages whose jobs wait or run already."""


def plan_recipe(
    recipe: Recipe, cluster: Cluster, root: Path, live: Iterable[str] = ()
) -> SubmitPlan:
    """One job that trains `recipe` in `root`.

    Raises:
        UserError: it cannot run there.
    """
    if RunDirectory(root).finished():
        return SubmitPlan(recipe.name, root, skipped=(TRAIN,))
    if TRAIN in live:
        return SubmitPlan(recipe.name, root, left=(TRAIN,))
    shape = cluster.training()
    check_batch(recipe, shape.tasks, "batch")
    task = recipe_job(recipe, root, shape)
    return SubmitPlan(recipe.name, root, {TRAIN: PlannedJob(task, job_script(task, cluster), ())})


def recipe_job(recipe: Recipe, root: Path, shape: JobResources) -> JobSpec:
    """The job that trains a recipe in `root`."""
    command = ("launch.train.worker", str(root))
    return JobSpec(recipe.name, TRAIN, root, root, command, shape, trains=True)


def plan_pipeline(
    pipeline: Pipeline,
    cluster: Cluster,
    root: Path,
    live: Iterable[str] = (),
    redo: Iterable[str] = (),
) -> SubmitPlan:
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
    ledger, alive = PipelineState(root), set(live)
    again = {stale for name in redo for stale in downstream_stages(pipeline, name)}
    skipped: list[str] = []
    left: list[str] = []
    jobs: dict[str, PlannedJob] = {}
    for name in stage_order(pipeline):
        waits = tuple(each for each in dependencies(pipeline, name) if each not in skipped)
        if not waits and name not in again and is_up_to_date(pipeline, ledger, name):
            skipped.append(name)
        elif name in alive and not set(waits) & set(jobs):
            left.append(name)
        else:
            task = stage_job(pipeline, cluster, root, name)
            jobs[name] = PlannedJob(task, job_script(task, cluster), waits)
    return SubmitPlan(pipeline.name, root, jobs, tuple(skipped), tuple(left))


def stage_job(pipeline: Pipeline, cluster: Cluster, root: Path, name: str) -> JobSpec:
    """The job of one stage."""
    stage = pipeline.stages[name]
    trains = isinstance(stage, TrainStage)
    shape = cluster.training(stage.nodes) if trains else cluster.serial()
    if isinstance(stage, TrainStage):
        check_batch(stage_recipe(stage), shape.tasks, f"stages.{name}.set.batch")
    command = ("launch.cli.main", "stage", str(root), name)
    return JobSpec(pipeline.name, name, root, root / name, command, shape, trains=trains)


def check_batch(recipe: Recipe, tasks: int, key: str) -> None:
    """Refuse a batch that the processes of a job cannot share evenly."""
    try:
        recipe.micro_batch_for(tasks)
    except UserError as error:
        raise UserError(
            f"{key}: {str(error).partition(': ')[2]}, or change nodes or tasks_per_node in the "
            "cluster file"
        ) from error


def job_script(task: JobSpec, cluster: Cluster) -> JobScript:
    """The script of a job submitted by this process."""
    return render_job_script(
        task, cluster, python=sys.executable, cwd=os.getcwd(), environment=os.environ
    )


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
