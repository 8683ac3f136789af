"""`mezzotint submit`: a recipe or a pipeline as SLURM jobs, one per stage."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import yaml

from launch.pipeline.config import Pipeline, load_pipeline, load_run_pipeline, stated
from launch.pipeline.runner import archive_stage, downstream_stages, stage_settings
from launch.pipeline.state import PipelineState
from launch.pipeline.tracking import open_pipeline_run
from launch.slurm import client
from launch.slurm.config import Cluster
from launch.slurm.records import TRAIN, Job, Submission, read_submission
from launch.submit.plan import PlannedJob, SubmitPlan, plan_pipeline, plan_recipe, run_directory
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_text
from mezzotint.common.locks import run_lock
from mezzotint.common.storage_errors import redact
from trainer.recipe import Recipe, read_tree
from trainer.recipe import load as load_recipe
from trainer.run import RunDirectory, first_difference
from trainer.tracking.address import tracking_uri
from trainer.tracking.environment import tracking_from_environment

Source = Recipe | Pipeline
ENDING_TIMEOUT = 90.0
"""Seconds to wait for jobs that are ending before their stages are submitted again."""


@dataclass(frozen=True)
class SubmitResult:
    """What was submitted, or with `jobs` None what would be."""

    plan: SubmitPlan
    runs: Path
    jobs: Mapping[str, Job] | None

    def to_json(self) -> str:
        """Per stage, the job's id and the path of its script; in a dry run, the script itself."""
        jobs: dict[str, object] = {}
        for name, planned in self.plan.jobs.items():
            job = {"id": self.jobs[name].id, "script": str(planned.spec.path)} if self.jobs else {}
            jobs[name] = {"after": planned.after, "script": planned.script.text, **job}
        tree = {"run": self.plan.run, "root": str(self.plan.root), "jobs": jobs}
        return json.dumps(
            {**tree, "skipped": self.plan.skipped, "active": self.plan.active}, indent=1
        )

    def to_text(self) -> str:
        """Job ids and the commands that show them; in a dry run, the scripts."""
        plan, lines = self.plan, []
        if self.jobs is None:
            lines = [planned.script.text for planned in plan.jobs.values()]
        width = max(map(len, plan.jobs), default=0)
        lines += [_job_line(job, width) for job in (self.jobs or {}).values()]
        if plan.skipped:
            lines.append(f"already finished: {', '.join(plan.skipped)}")
        if plan.active:
            lines.append(f"already submitted: {', '.join(plan.active)}")
        if self.jobs or (plan.active and self.jobs is not None):
            runs = "" if self.runs == Path("runs") else f" --runs {quote(str(self.runs))}"
            stage = "" if list(plan.jobs) == [TRAIN] else " STAGE"
            lines += [
                f"Status: mezzotint status {plan.run}{runs} --watch",
                f"Logs:   mezzotint logs {plan.run}{stage}{runs}",
                f"MLflow: {tracking_address()}",
            ]
        return "\n".join(lines).rstrip("\n")


def load_source(path: Path, overrides: Sequence[str]) -> Source:
    """Read a pipeline (a file with stages) or a recipe.

    Raises:
        UserError: unreadable or not valid; the key is named.
    """
    if "stages" in read_tree(path):
        return load_pipeline(path, overrides)
    return load_recipe(path, overrides)


def submit(
    source: Source,
    cluster: Cluster,
    runs: Path,
    *,
    redo: Sequence[str] = (),
    dry_run: bool = False,
) -> SubmitResult:
    """Submit every stage that is not finished and has no live job.

    In a dry run, only plan it as if no job were live; SLURM is not queried.

    Raises:
        UserError: SLURM rejects one of the jobs (none is submitted then), a live job has other
            settings, or another process uses the run directory.
    """
    root = run_directory(runs, source.name, cluster)
    if dry_run:
        return SubmitResult(_plan(source, cluster, root, (), redo), runs, None)
    with run_lock(root):
        before = read_submission(root) or Submission(source.name, cluster)
        live = wait_for_ending_jobs(before)
        check_unchanged(source, root, live)
        plan = _plan(source, cluster, root, live, redo)
        for planned in plan.jobs.values():
            client.check_job(planned.script.text, planned.script.arguments)
        _prepare(source, root, live, redo)
        jobs = _submit(plan, cluster, before)
    return SubmitResult(plan, runs, jobs)


def wait_for_ending_jobs(before: Submission) -> tuple[str, ...]:
    """The stages with pending or running jobs, once no job is in the middle of ending.

    Raises:
        UserError: SLURM does not answer, or a job does not end in time.
    """
    deadline = time.monotonic() + ENDING_TIMEOUT
    while True:
        states = client.job_states(job.id for job in before.jobs.values())
        live = {
            name: states[job.id]
            for name, job in before.jobs.items()
            # a new cluster counts ids from 1 again: the name tells whether it is the same job
            if job.id in states and states[job.id].name == job.name and states[job.id].is_live
        }
        ending = [job for job in live.values() if job.state == "COMPLETING"]
        if not ending:
            return tuple(live)
        if time.monotonic() > deadline:
            raise UserError(
                f"job {ending[0].id} ({ending[0].name}) has not ended after "
                f"{ENDING_TIMEOUT:.0f} s; see squeue, and submit again when it is gone"
            )
        time.sleep(1.0)


def check_unchanged(source: Source, root: Path, live: Iterable[str]) -> None:
    """Refuse settings that differ from those of a live job.

    Raises:
        UserError: the first difference is named.
    """
    for name in live:
        match source:
            case Recipe():
                before = load_recipe(root / "recipe.yaml").model_dump(mode="json")
                now = source.model_dump(mode="json")
            case Pipeline():
                if name not in source.stages:
                    raise UserError(f"{root}: {name} has a live job but is no longer a stage")
                before = stage_settings(load_run_pipeline(root), name)
                now = stage_settings(source, name)
        difference = first_difference(before, now, name)
        if difference is not None:
            raise UserError(
                f"{root}: {name} has a live job, but {difference}; undo the change, or run "
                f"`mezzotint cancel {quote(str(root))} {name}` first"
            )


def _plan(
    source: Source, cluster: Cluster, root: Path, live: Iterable[str], redo: Sequence[str]
) -> SubmitPlan:
    match source:
        case Recipe():
            if redo:
                raise UserError(
                    f"--redo {redo[0]}: {source.name} is a recipe without stages; train it again "
                    "under another name=..."
                )
            return plan_recipe(source, cluster, root, live)
        case Pipeline():
            return plan_pipeline(source, cluster, root, live, redo)


def _prepare(source: Source, root: Path, live: Sequence[str], redo: Sequence[str]) -> None:
    """Write the files that the jobs expect in the run directory."""
    match source:
        case Recipe():
            from trainer.setup import check

            run = RunDirectory(root)
            if not run.finished() and not live:
                check(source)
            run.claim(source)
        case Pipeline():
            busy = {stage for name in redo for stage in downstream_stages(source, name)} & set(live)
            if busy:
                raise UserError(
                    f"--redo: {min(busy)} has a live job; "
                    f"`mezzotint cancel {quote(str(root))}` first"
                )
            for name in redo:
                archive_stage(source, PipelineState(root), name)
            text = yaml.safe_dump(stated(source), sort_keys=False)
            write_text(root / "pipeline.yaml", text)
            open_pipeline_run(root, tracking_from_environment(root=root))


def _submit(plan: SubmitPlan, cluster: Cluster, before: Submission) -> dict[str, Job]:
    """Submit the planned jobs; when one is rejected, those before it are cancelled."""
    known = {name: job for name, job in before.jobs.items() if name not in plan.jobs}
    jobs: dict[str, Job] = {}
    Submission(plan.run, cluster, known).write(plan.root)  # the first job may start at once
    try:
        for name, planned in plan.jobs.items():
            _write_script(planned)
            spec, all_jobs = planned.spec, {**known, **jobs}
            after = [all_jobs[each].id for each in planned.after]
            number = client.submit_job(spec.path, planned.script.arguments, after)
            resources = spec.resources
            jobs[name] = Job(
                number,
                name,
                spec.name,
                time.time(),
                resources.nodes,
                resources.tasks,
                planned.after,
            )
            Submission(plan.run, cluster, {**known, **jobs}).write(plan.root)
    except UserError:
        with suppress(UserError):
            client.cancel_jobs(job.id for job in jobs.values())
        Submission(plan.run, cluster, known).write(plan.root)
        raise
    return jobs


def _write_script(planned: PlannedJob) -> None:
    """Write a job's script and remove the end marks of an earlier job."""
    directory = planned.spec.directory
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    for name in ("exit_code", "cancelled", "refused"):
        (directory / name).unlink(missing_ok=True)
    write_text(planned.spec.path, planned.script.text)


def tracking_address() -> str:
    """The MLflow server of jobs submitted from this shell, without credentials."""
    uri = tracking_uri()
    if uri is None:
        return (
            "MLFLOW_TRACKING_URI is not set; the jobs write their records to disk, and `mezzotint "
            "tracking sync` uploads them"
        )
    return redact(uri)


def _job_line(job: Job, width: int) -> str:
    nodes = f"{job.nodes} node{'s' if job.nodes > 1 else ''}"
    after = f"  after {', '.join(job.after)}" if job.after else ""
    return f"job {job.id}  {job.stage:<{width}}  {nodes}{after}"
