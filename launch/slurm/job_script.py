"""The batch script of a job, from a template in which every value is quoted for the shell."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from launch.slurm.config import Cluster, JobResources
from mezzotint.common.errors import UserError

ALWAYS_EXPORTED = re.compile(r"PYTHONPATH|(AWS|MLFLOW|MEZZOTINT)_[A-Za-z0-9_]+")
"""Variables that a job inherits whenever they are set in the shell that submits."""
NEVER_EXPORTED = frozenset(
    {
        *("MEZZOTINT_CACHE", "MEZZOTINT_JOB"),  # the script sets them
        *("MEZZOTINT_PIPELINE", "MEZZOTINT_WATCH_PARENT"),  # of a process started here
    }
)
NOT_IN_COMMENT = re.compile(r"[\x00-\x1f\x7f']")
"""Characters that a quoted word of an #SBATCH line cannot hold."""


class RawShell(str):
    """Shell code that is not quoted."""


@dataclass(frozen=True)
class JobSpec:
    """What a job runs, and where."""

    run: str
    stage: str
    root: Path
    """The run directory that was submitted."""
    directory: Path
    """The run directory of the stage."""
    command: tuple[str, ...]
    """A module and its arguments."""
    resources: JobResources
    trains: bool
    """Whether it saves a checkpoint on a signal."""

    @property
    def name(self) -> str:
        return f"{self.run}/{self.stage}"

    @property
    def path(self) -> Path:
        return self.directory / "job.sh"


@dataclass(frozen=True)
class JobScript:
    """A batch script, and the options that its #SBATCH lines cannot hold."""

    text: str
    arguments: tuple[str, ...]


def render_job_script(
    job: JobSpec, cluster: Cluster, *, python: str, cwd: str, environment: Mapping[str, str]
) -> JobScript:
    """The script of one job.

    Raises:
        UserError: the path of the log holds a backslash, which SLURM interprets.
    """
    lines: list[str] = []
    arguments: list[str] = []
    for option in sbatch_options(job, cluster, cwd, environment):
        (arguments if NOT_IN_COMMENT.search(option) else lines).append(option)
    text = _ENVIRONMENT.get_template("job.sh.j2").render(
        title=RawShell(f"Stage {job.stage} of {job.run}, on {cluster.name}."),
        stage=job.stage,
        options=lines,
        root=job.root,
        directory=job.directory,
        cwd=cwd,
        python=python,
        setup=[RawShell(line) for line in cluster.setup],
        tasks=job.resources.tasks,
        scratch=cluster.scratch,
        cpus=job.resources.cpus_per_task,
        command=RawShell(" ".join(_argument(job, word) for word in job.command)),
        train=job.trains,
    )
    return JobScript(text, tuple(arguments))


def sbatch_options(
    job: JobSpec, cluster: Cluster, cwd: str, environment: Mapping[str, str]
) -> list[str]:
    """The options of sbatch; those of the cluster file come last."""
    resources = job.resources
    names = exported_variables(cluster, environment)
    found: dict[str, object] = {
        "job-name": job.name,
        "partition": resources.partition,
        "account": cluster.account,
        "nodes": resources.nodes,
        "ntasks-per-node": resources.tasks_per_node,
        "cpus-per-task": resources.cpus_per_task,
        "gpus-per-node": resources.gpus_per_node or None,
        "mem": resources.memory,
        "time": cluster.time,
        "signal": f"B:USR2@{cluster.signal_seconds}" if job.trains else None,
        "export": ",".join(names) or "NONE",
        "chdir": cwd,
        "output": filename_pattern(str(job.directory / "logs" / "job.log")),
        "open-mode": "append",
    }
    own = [f"--{name}={value}" for name, value in found.items() if value is not None]
    return [*own, "--requeue", "--kill-on-invalid-dep=yes", *cluster.options]


def filename_pattern(path: str) -> str:
    """A path as a file name pattern of SLURM."""
    if "\\" in path:
        raise UserError(
            f"{path}: SLURM cannot write a log there because of the backslash; choose another runs "
            "directory"
        )
    return path.replace("%", "%%")


def exported_variables(cluster: Cluster, environment: Mapping[str, str]) -> list[str]:
    """Names of the variables that a job inherits; the script never holds their values."""
    always = {name for name in environment if ALWAYS_EXPORTED.fullmatch(name)} - NEVER_EXPORTED
    return sorted(always | (set(cluster.export) & set(environment)))


def _argument(job: JobSpec, word: str) -> str:
    """A quoted word of the command; directories are variables of the script."""
    names = {str(job.root): '"$root"', str(job.directory): '"$directory"'}
    return names.get(word) or shlex.quote(word)


def _quoted(value: object) -> str:
    return value if isinstance(value, RawShell) else shlex.quote(str(value))


_ENVIRONMENT = Environment(
    loader=PackageLoader("launch.slurm", ""),
    undefined=StrictUndefined,
    finalize=_quoted,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # this is shell: `finalize` quotes
)
