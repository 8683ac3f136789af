"""The batch script of a job: one template, in which every value is quoted for the shell."""

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
"""What a quoted word of an #SBATCH line cannot hold."""


class RawShell(str):
    """Shell that stands in the script as it is."""


@dataclass(frozen=True)
class JobSpec:
    """What a job does, and where."""

    run: str
    stage: str
    root: Path
    """The run directory that was submitted."""
    directory: Path
    """Where the stage works."""
    command: tuple[str, ...]
    """A module of ours and its arguments."""
    shape: JobResources
    trains: bool
    """Whether it can save a checkpoint when it is told to leave."""

    @property
    def name(self) -> str:
        """SLURM's job name."""
        return f"{self.run}/{self.stage}"

    @property
    def path(self) -> Path:
        """Where its script lies."""
        return self.directory / "job.sh"


@dataclass(frozen=True)
class JobScript:
    """A batch script, and the options that a line of it cannot hold."""

    text: str
    arguments: tuple[str, ...]


def render_job_script(
    task: JobSpec, cluster: Cluster, *, python: str, cwd: str, environment: Mapping[str, str]
) -> JobScript:
    """The script of one job.

    Raises:
        UserError: a path holds a backslash, in which SLURM sees an order.
    """
    lines: list[str] = []
    arguments: list[str] = []
    for option in sbatch_options(task, cluster, cwd, environment):
        (arguments if NOT_IN_COMMENT.search(option) else lines).append(option)
    text = _ENVIRONMENT.get_template("job.sh.j2").render(
        title=RawShell(f"Stage {task.stage} of {task.run}, on {cluster.name}."),
        stage=task.stage,
        options=lines,
        root=task.root,
        directory=task.directory,
        cwd=cwd,
        python=python,
        setup=[RawShell(line) for line in cluster.setup],
        tasks=task.shape.tasks,
        scratch=cluster.scratch,
        cpus=task.shape.cpus_per_task,
        command=RawShell(" ".join(_argument(task, word) for word in task.command)),
        train=task.trains,
    )
    return JobScript(text, tuple(arguments))


def sbatch_options(
    task: JobSpec, cluster: Cluster, cwd: str, environment: Mapping[str, str]
) -> list[str]:
    """sbatch's options, the cluster file's own last."""
    shape = task.shape
    names = exported_variables(cluster, environment)
    found: dict[str, object] = {
        "job-name": task.name,
        "partition": shape.partition,
        "account": cluster.account,
        "nodes": shape.nodes,
        "ntasks-per-node": shape.tasks_per_node,
        "cpus-per-task": shape.cpus_per_task,
        "gpus-per-node": shape.gpus_per_node or None,
        "mem": shape.memory,
        "time": cluster.time,
        "signal": f"B:USR2@{cluster.signal_seconds}" if task.trains else None,
        "export": ",".join(names) or "NONE",
        "chdir": cwd,
        "output": filename_pattern(str(task.directory / "logs" / "job.log")),
        "open-mode": "append",
    }
    own = [f"--{name}={value}" for name, value in found.items() if value is not None]
    return [*own, "--requeue", "--kill-on-invalid-dep=yes", *cluster.options]


def filename_pattern(path: str) -> str:
    """A path as SLURM's file name pattern."""
    if "\\" in path:
        raise UserError(
            f"{path}: SLURM cannot write its log there, a backslash means something to it; "
            "choose another runs directory"
        )
    return path.replace("%", "%%")


def exported_variables(cluster: Cluster, environment: Mapping[str, str]) -> list[str]:
    """Names of the variables that a job takes over: values never enter a script."""
    usual = {name for name in environment if ALWAYS_EXPORTED.fullmatch(name)} - NEVER_EXPORTED
    return sorted(usual | (set(cluster.export) & set(environment)))


def _argument(task: JobSpec, word: str) -> str:
    """A word of the command; the script has names for its directories."""
    names = {str(task.root): '"$root"', str(task.directory): '"$directory"'}
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
