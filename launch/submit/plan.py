"""The jobs of a submit: which stages need one, what each job waits for, and its script."""

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

    spec: JobSpec
    script: JobScript
    after: tuple[str, ...]
    """Stages whose jobs it waits for."""


@dataclass(frozen=True)
class SubmitPlan:
    """What a submit does in a run directory, by stage."""

    run: str
    root: Path
    jobs: Mapping[str, PlannedJob] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    """Finished stages."""
    active: tuple[str, ...] = ()
    """Stages whose jobs are pending or running."""


def plan_recipe(
    recipe: Recipe, cluster: Cluster, root: Path, live: Iterable[str] = ()
) -> SubmitPlan:
    """One job that trains `recipe` in `root`.

    Raises:
        UserError: the batch cannot be split evenly over the processes of the job.
    """
    if RunDirectory(root).finished():
        return SubmitPlan(recipe.name, root, skipped=(TRAIN,))
    if TRAIN in live:
        return SubmitPlan(recipe.name, root, active=(TRAIN,))
    resources = cluster.training_resources()
    check_batch(recipe, resources.tasks, "batch")
    spec = recipe_job(recipe, root, resources)
    return SubmitPlan(recipe.name, root, {TRAIN: PlannedJob(spec, job_script(spec, cluster), ())})


def recipe_job(recipe: Recipe, root: Path, resources: JobResources) -> JobSpec:
    """The job that trains a recipe in `root`."""
    command = ("launch.train.worker", str(root))
    return JobSpec(recipe.name, TRAIN, root, root, command, resources, trains=True)


def plan_pipeline(
    pipeline: Pipeline,
    cluster: Cluster,
    root: Path,
    live: Iterable[str] = (),
    redo: Iterable[str] = (),
) -> SubmitPlan:
    """A job for every stage that is not finished and has no job.

    `live` are stages whose jobs are pending or running, `redo` finished stages to run again with
    their downstream stages.

    Raises:
        UserError: a finished stage has other settings, or a stage cannot run on the cluster.
    """
    state, alive = PipelineState(root), set(live)
    again = {stage for name in redo for stage in downstream_stages(pipeline, name)}
    skipped: list[str] = []
    active: list[str] = []
    jobs: dict[str, PlannedJob] = {}
    for name in stage_order(pipeline):
        after = tuple(each for each in dependencies(pipeline, name) if each not in skipped)
        if not after and name not in again and is_up_to_date(pipeline, state, name):
            skipped.append(name)
        elif name in alive and not set(after) & set(jobs):
            active.append(name)
        else:
            spec = stage_job(pipeline, cluster, root, name)
            jobs[name] = PlannedJob(spec, job_script(spec, cluster), after)
    return SubmitPlan(pipeline.name, root, jobs, tuple(skipped), tuple(active))


def stage_job(pipeline: Pipeline, cluster: Cluster, root: Path, name: str) -> JobSpec:
    """The job of one stage."""
    stage = pipeline.stages[name]
    trains = isinstance(stage, TrainStage)
    resources = cluster.training_resources(stage.nodes) if trains else cluster.serial_resources()
    if isinstance(stage, TrainStage):
        check_batch(stage_recipe(stage), resources.tasks, f"stages.{name}.set.batch")
    command = ("launch.cli.main", "stage", str(root), name)
    return JobSpec(pipeline.name, name, root, root / name, command, resources, trains=trains)


def check_batch(recipe: Recipe, tasks: int, key: str) -> None:
    """Refuse a batch that cannot be split evenly over the processes of a job."""
    try:
        recipe.micro_batch_for(tasks)
    except UserError as error:
        raise UserError(
            f"{key}: {str(error).partition(': ')[2]}, or change nodes or tasks_per_node in the "
            "cluster file"
        ) from error


def job_script(spec: JobSpec, cluster: Cluster) -> JobScript:
    """The script of a job that runs the Python, directory and variables of this process."""
    return render_job_script(
        spec, cluster, python=sys.executable, cwd=os.getcwd(), environment=os.environ
    )


def run_directory(runs: Path, name: str, cluster: Cluster) -> Path:
    """The path of a run under which every node sees it.

    Raises:
        UserError: it is outside the directory that the nodes share.
    """
    shared = Path(os.path.normpath(cluster.shared))
    path = Path(os.path.abspath(runs)) / name
    if path.is_relative_to(shared):
        return path
    real = path.resolve()
    if real.is_relative_to(shared.resolve()):
        return shared / real.relative_to(shared.resolve())
    raise UserError(
        f"{path}: is not inside {shared}, which all nodes share (`shared` in the cluster file); "
        f"use --runs {shared}/..."
    )
