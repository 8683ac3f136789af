"""The cluster file: the resources of jobs, and the paths of the cluster."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from mezzotint.common.errors import UserError

Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""The name of an environment variable."""
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,-]*$")]
"""The name of a partition or an account."""
SingleLine = Annotated[str, Field(pattern=r"^[^\n\r\x00]*$")]


@dataclass(frozen=True)
class JobResources:
    """The resources of one job."""

    partition: str | None
    nodes: int
    tasks_per_node: int
    cpus_per_task: int
    gpus_per_node: int
    memory: str | None

    @property
    def tasks(self) -> int:
        return self.nodes * self.tasks_per_node


class Cluster(BaseModel, frozen=True, extra="forbid"):
    """A SLURM cluster and the settings of jobs on it."""

    name: SingleLine = Field(min_length=1, max_length=100)
    """For display only."""
    shared: str = Field(pattern=r"^/")
    """A directory that all nodes share under this path; run directories must lie inside."""
    scratch: str = Field(pattern=r"^/")
    """A directory on each node's own disk; the shard cache lies there."""
    partition: Identifier | None = None
    serial_partition: Identifier | None = None
    """Partition of the jobs that do not train (one process, no GPU); `partition` by default."""
    account: Identifier | None = None
    nodes: int = Field(default=1, gt=0)
    """Nodes of a training job whose stage does not set `nodes`."""
    tasks_per_node: int = Field(default=1, gt=0)
    """Processes on each node of a training job: one per GPU."""
    cpus_per_task: int = Field(default=1, gt=0)
    gpus_per_node: int = Field(default=0, ge=0)
    memory: str | None = Field(default=None, pattern=r"^[1-9][0-9]*[KMGT]?$")
    """Memory of each node, as SLURM writes it (`--mem`); None: the partition's default."""
    serial_memory: str | None = Field(default=None, pattern=r"^[1-9][0-9]*[KMGT]?$")
    """Memory of the jobs that do not train; `memory` by default."""
    gpu_memory: str | None = Field(default=None, pattern=r"^[1-9][0-9]*[KMGT]?$")
    """Memory of each GPU, in the same format; `mezzotint check` says whether training fits."""
    time: str | None = Field(default=None, pattern=r"^(\d+-)?\d+(:\d+){0,2}$")
    """Time limit of a job, as SLURM writes it (`1-12:00:00`)."""
    signal_seconds: int = Field(default=120, gt=0)
    """How long before the time limit a training job gets the signal to save and exit."""
    restarts: int = Field(default=3, ge=0)
    """Restarts in a row without a newer checkpoint, after which a job gives up."""
    setup: tuple[SingleLine, ...] = ()
    """Shell lines that prepare the environment (modules, proxies)."""
    export: tuple[Variable, ...] = ()
    """Names of further variables that jobs inherit from the submitting shell."""
    options: tuple[Annotated[str, Field(pattern=r"^--[a-z][^\n\r\x00]*$")], ...] = ()
    """Further options of sbatch, one per entry (`--constraint=a100`)."""

    @model_validator(mode="after")
    def _gpus_match_tasks(self) -> Self:
        if self.gpus_per_node and self.gpus_per_node != self.tasks_per_node:
            raise ValueError(
                f"tasks_per_node {self.tasks_per_node} and gpus_per_node {self.gpus_per_node}: "
                "training runs one process per GPU, set both to the same number"
            )
        return self

    @field_validator("time", mode="before")
    @classmethod
    def _is_quoted(cls, value: object) -> object:
        if isinstance(value, int | float):
            raise ValueError('put it into quotes, like "1:00:00": YAML reads it as a number')
        return value

    def training_resources(self, nodes: int | None = None) -> JobResources:
        """The resources of a training job, on `nodes` nodes if its stage sets them."""
        return JobResources(
            self.partition,
            nodes or self.nodes,
            self.tasks_per_node,
            self.cpus_per_task,
            self.gpus_per_node,
            self.memory,
        )

    def serial_resources(self) -> JobResources:
        """The resources of a job with one process."""
        partition = self.serial_partition or self.partition
        memory = self.serial_memory or self.memory
        return JobResources(partition, 1, 1, self.cpus_per_task, 0, memory)


def load_cluster(path: str | Path) -> Cluster:
    """Read a cluster file.

    Raises:
        UserError: an unreadable file, an unknown key or an impossible value.
    """
    from trainer.recipe import read_tree, validate  # imports torch, which `status` does not need

    return validate(Cluster.model_validate, read_tree(path), str(path))


def memory_bytes(text: str) -> int:
    """Bytes of an amount as SLURM writes it; a bare number counts megabytes."""
    found = re.fullmatch(r"(\d+)([KMGT]?)", text)
    if found is None:
        raise UserError(f"memory: {text!r} is no amount like 3000M or 64G")
    return int(found[1]) * 1024 ** ("KMGT".index(found[2] or "M") + 1)
