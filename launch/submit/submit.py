"""`mezzotint submit`: a recipe or a pipeline as SLURM jobs, one per stage."""

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from launch.pipeline.config import Pipeline, load_run_pipeline
from launch.pipeline.config import load_pipeline as load_pipeline
from launch.pipeline.runner import archive_stage, downstream_stages, stage_settings
from launch.pipeline.state import PipelineState
from launch.pipeline.tracking import open_pipeline_run
from launch.slurm import client
from launch.slurm.config import Cluster
from launch.slurm.records import TRAIN, Job, Submission, read_submission
from launch.submit.plan import PlannedJob, SubmitPlan, plan_pipeline, plan_recipe, run_directory
from launch.train.local import tracking_from_environment
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_text
from mezzotint.common.locks import run_lock
from mezzotint.common.storage_errors import redact
from trainer.recipe import Recipe, read_tree
from trainer.recipe import load as load_recipe
from trainer.run import RunDirectory, first_difference

Source = Recipe | Pipeline
ENDING_TIMEOUT = 90.0
"""Seconds to wait for jobs that are ending before others take their place."""


@dataclass(frozen=True)
class DryRun:
    """What would be submitted."""

    plan: SubmitPlan

    def to_text(self) -> str:
        """The scripts, one after the other."""
        parts = [planned.script.text for planned in self.plan.jobs.values()]
        return "\n".join([*parts, *_unsubmitted(self.plan)]).rstrip("\n")

    def to_json(self) -> str:
        """The scripts by stage, with what is not submitted."""
        jobs = {
            name: {"after": planned.after, "script": planned.script.text}
            for name, planned in self.plan.jobs.items()
        }
        return _json(self.plan, jobs)


@dataclass(frozen=True)
class SubmitResult:
    """What was submitted."""

    plan: SubmitPlan
    runs: Path
    jobs: Mapping[str, Job] = field(default_factory=dict)

    def to_json(self) -> str:
        """Ids and scripts by stage, with what was not submitted."""
        jobs = {
            name: {"id": job.id, "after": job.after, "script": str(self.plan.jobs[name].task.path)}
            for name, job in self.jobs.items()
        }
        return _json(self.plan, jobs)

    def to_text(self) -> str:
        """Ids, and where to look."""
        width = max((len(name) for name in self.jobs), default=0)
        lines = [_job_line(job, width) for job in self.jobs.values()]
        runs = "" if self.runs == Path("runs") else f" --runs {self.runs}"
        stage = "" if list(self.plan.jobs) == [TRAIN] else " STAGE"
        lines += _unsubmitted(self.plan)
        if self.jobs or self.plan.left:
            lines += [
                f"Status: mezzotint status {self.plan.run}{runs} --watch",
                f"Logs:   mezzotint logs {self.plan.run}{stage}{runs}",
                f"MLflow: {tracking_address()}",
            ]
        return "\n".join(lines)


def load_source(path: Path, overrides: Sequence[str]) -> Source:
    """Read a pipeline (it has stages) or a recipe.

    Raises:
        UserError: unreadable, or not valid; the key is named.
    """
    if "stages" in read_tree(path):
        return load_pipeline(path, overrides)
    return load_recipe(path, overrides)


def plan_submit(
    source: Source, cluster: Cluster, runs: Path, *, redo: Sequence[str] = ()
) -> DryRun:
    """What `submit` would do where no job of the run is live; SLURM is not asked."""
    root = run_directory(runs, source.name, cluster)
    return DryRun(_plan(source, cluster, root, (), redo))


def submit(
    source: Source, cluster: Cluster, runs: Path, *, redo: Sequence[str] = ()
) -> SubmitResult:
    """Submit every stage that is not finished and has no live job.

    Raises:
        UserError: SLURM refuses one of the jobs (none is submitted then), a live job has other
            settings, or the run directory is held by another process.
    """
    root = run_directory(runs, source.name, cluster)
    with run_lock(root):
        before = read_submission(root) or Submission(source.name, cluster)
        live = wait_for_ending_jobs(before)
        check_unchanged(source, root, live)
        chosen = _plan(source, cluster, root, live, redo)
        for planned in chosen.jobs.values():
            client.check_job(planned.script.text, planned.script.arguments)
        _prepare(source, root, live, redo)
        jobs = _submit(chosen, cluster, before)
    return SubmitResult(chosen, runs, jobs)


def wait_for_ending_jobs(before: Submission, patience: float = ENDING_TIMEOUT) -> tuple[str, ...]:
    """Stages whose jobs wait or run; jobs that are just ending are waited for.

    Raises:
        UserError: SLURM is not there, or a job does not come to its end.
    """
    deadline = time.monotonic() + patience
    while True:
        states = client.job_states(job.id for job in before.jobs.values())
        live = {
            name: states[job.id]
            for name, job in before.jobs.items()
            # ids start again on a fresh cluster: the name tells whether it is the same job
            if job.id in states and states[job.id].name == job.name and states[job.id].live
        }
        ending = [job for job in live.values() if job.state == "COMPLETING"]
        if not ending:
            return tuple(live)
        if time.monotonic() > deadline:
            raise UserError(
                f"job {ending[0].id} ({ending[0].name}) has not come to its end in "
                f"{patience:.0f} s; see squeue, and submit again when it is gone"
            )
        time.sleep(1.0)


def check_unchanged(source: Source, root: Path, live: Iterable[str]) -> None:
    """Refuse settings that differ from those with which a live job was submitted.

    Raises:
        UserError: the first difference is named.
    """
    for name in live:
        match source:
            case Recipe():
                was = load_recipe(root / "recipe.yaml").model_dump(mode="json")
                now = source.model_dump(mode="json")
            case Pipeline():
                if name not in source.stages:
                    raise UserError(f"{root}: {name} has a live job and is no stage any more")
                was, now = (
                    stage_settings(load_run_pipeline(root), name),
                    stage_settings(source, name),
                )
        difference = first_difference(was, now, name)
        if difference is not None:
            raise UserError(
                f"{root}: a job of {name} waits or runs, but {difference}; undo the change, or "
                f"`mezzotint cancel {source.name} {name}` first"
            )


def _plan(
    source: Source, cluster: Cluster, root: Path, live: Iterable[str], redo: Sequence[str]
) -> SubmitPlan:
    match source:
        case Recipe():
            if redo:
                raise UserError(
                    f"--redo {redo[0]}: {source.name} is a recipe, it has no stages; train it "
                    "again under another name=..."
                )
            return plan_recipe(source, cluster, root, live)
        case Pipeline():
            return plan_pipeline(source, cluster, root, live, redo)


def _prepare(source: Source, root: Path, live: Sequence[str], redo: Sequence[str]) -> None:
    """Make the run directory what the jobs expect."""
    match source:
        case Recipe():
            from trainer.setup import check

            run = RunDirectory(root)
            if not run.finished() and not live:
                check(source)
            run.claim(source)
        case Pipeline():
            busy = {stale for name in redo for stale in downstream_stages(source, name)} & set(live)
            if busy:
                raise UserError(
                    f"--redo: {min(busy)} has a live job; `mezzotint cancel {source.name}` first"
                )
            for name in redo:
                archive_stage(source, PipelineState(root), name)
            text = yaml.safe_dump(source.model_dump(mode="json"), sort_keys=False)
            write_text(root / "pipeline.yaml", text)
            open_pipeline_run(root, tracking_from_environment(root=root))


def _submit(chosen: SubmitPlan, cluster: Cluster, before: Submission) -> dict[str, Job]:
    """Submit the planned jobs; when one is refused, those before it are cancelled."""
    known = {name: job for name, job in before.jobs.items() if name not in chosen.jobs}
    jobs: dict[str, Job] = {}
    Submission(chosen.run, cluster, known).write(chosen.root)  # the first job may start at once
    try:
        for name, planned in chosen.jobs.items():
            _write_script(planned)
            after = [({**known, **jobs})[each].id for each in planned.after]
            number = client.submit_job(planned.task.path, planned.script.arguments, after)
            shape = planned.task.shape
            jobs[name] = Job(
                number,
                name,
                planned.task.name,
                time.time(),
                shape.nodes,
                shape.tasks,
                planned.after,
            )
            Submission(chosen.run, cluster, {**known, **jobs}).write(chosen.root)
    except UserError:
        with suppress(UserError):
            client.cancel_jobs(job.id for job in jobs.values())
        Submission(chosen.run, cluster, known).write(chosen.root)
        raise
    return jobs


def _write_script(planned: PlannedJob) -> None:
    """A job's script, and a place for its log; what an earlier job left of its end goes."""
    directory = planned.task.directory
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    for name in ("exit_code", "cancelled", "refused"):
        (directory / name).unlink(missing_ok=True)
    write_text(planned.task.path, planned.script.text)


def tracking_address() -> str:
    """Where jobs submitted from this shell are tracked, without credentials."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return (
            "MLFLOW_TRACKING_URI is not set; the jobs keep their records, and `mezzotint tracking "
            "sync` sends them"
        )
    return redact(uri)


def _unsubmitted(chosen: SubmitPlan) -> list[str]:
    """What a plan does not submit, in words."""
    lines = []
    if chosen.skipped:
        lines.append(f"already finished: {', '.join(chosen.skipped)}")
    if chosen.left:
        lines.append(f"already submitted: {', '.join(chosen.left)}")
    return lines


def _job_line(job: Job, width: int) -> str:
    nodes = f"{job.nodes} node{'s' if job.nodes > 1 else ''}"
    after = f"  after {', '.join(job.after)}" if job.after else ""
    return f"job {job.id}  {job.stage:<{width}}  {nodes}{after}"


def _json(chosen: SubmitPlan, jobs: Mapping[str, object]) -> str:
    tree = {
        "run": chosen.run,
        "root": str(chosen.root),
        "jobs": jobs,
        "skipped": chosen.skipped,
        "left": chosen.left,
    }
    return json.dumps(tree, indent=1)
