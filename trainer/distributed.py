"""Processes: ranks, devices and collectives.

Ranks come from the environment (RANK, WORLD_SIZE, LOCAL_RANK; those of a SLURM step where RANK is
unset), and so does the rendezvous (MASTER_ADDR, MASTER_PORT). Without them a run is one process.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from mezzotint.common.errors import UserError

TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class World:
    """Rank and device of this process."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once per run."""
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        """Whether this process does what is done once on every node."""
        return self.local_rank == 0

    @property
    def backend(self) -> str:
        return "nccl" if self.device.type == "cuda" else "gloo"


def world_from_environment() -> World:
    """Read rank and size from the environment, without joining a process group.

    Raises:
        UserError: a variable is missing or is not a number.
    """
    if "RANK" in os.environ:
        rank, size = _number("RANK"), _number("WORLD_SIZE")
        local_rank = 0 if size == 1 and "LOCAL_RANK" not in os.environ else _number("LOCAL_RANK")
        local_size = _number("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else size
    elif "SLURM_STEP_NUM_TASKS" in os.environ:  # started by srun; unset in a batch script
        rank, size = _number("SLURM_PROCID"), _number("SLURM_STEP_NUM_TASKS")
        local_rank = _number("SLURM_LOCALID")
        listed = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
        local_size = _tasks_on_node(listed, _number("SLURM_NODEID"))
    else:
        rank, size, local_rank, local_size = 0, 1, 0, 1
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
    return World(rank, size, local_rank, local_size, device)


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except KeyError as error:
        raise UserError(f"{name} is not set; RANK or a SLURM step needs it") from error
    except ValueError as error:
        raise UserError(f"{name}={os.environ[name]!r} is not a number") from error


def _tasks_on_node(listed: str, node: int) -> int:
    """Processes on one node of a step, from SLURM's list of them: `4(x2),1`."""
    counts = [
        int(count)
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed)
        for _ in range(int(times or 1))
    ]
    if node >= len(counts):
        raise UserError(f"SLURM_STEP_TASKS_PER_NODE={listed!r} has no entry for node {node}")
    return counts[node]


def join(world: World) -> None:
    """Join the process group of the run; a single process creates its own, without a network."""
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    if dist.is_initialized():
        return
    os.environ["LOCAL_RANK"] = str(world.local_rank)  # DeepSpeed reads it at initialize
    if world.size == 1:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(world.backend, rank=0, world_size=1, store=store)
        return
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(f"{name} is not set: {world.size} processes need a rendezvous address")
    dist.init_process_group(world.backend, rank=world.rank, world_size=world.size, timeout=TIMEOUT)


def leave() -> None:
    """Leave the process group, if this process is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _is_single_process() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


def barrier() -> None:
    """Wait for every process of the run."""
    if not _is_single_process():
        dist.barrier()


def mean(values: Tensor) -> Tensor:
    """Element-wise mean of a tensor over all processes."""
    return values if _is_single_process() else total(values) / dist.get_world_size()


def total(values: Tensor) -> Tensor:
    """Element-wise sum of a tensor over all processes."""
    if _is_single_process():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


def minimum(values: Tensor) -> Tensor:
    """Element-wise minimum of a tensor over all processes."""
    if _is_single_process():
        return values
    values = values.clone()
    dist.all_reduce(values, dist.ReduceOp.MIN)
    return values


def any_rank(flag: bool, device: torch.device) -> bool:  # noqa: FBT001 - the value reduced
    """Whether the flag is true on at least one process."""
    return flag if _is_single_process() else bool(total(torch.tensor([int(flag)], device=device)))


def gather_strings(text: str) -> list[str]:
    """The texts of all processes, in rank order."""
    if _is_single_process():
        return [text]
    texts: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    return [each or "" for each in texts]


def broadcast_string(text: str) -> str:
    """The text of rank 0."""
    if _is_single_process():
        return text
    box: list[str] = [text]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes, (B, ...) -> (world * B, ...), differentiable in this one's own rows.

    Every process computes the same loss over all rows, and DeepSpeed averages gradients over
    processes; the gradient is therefore scaled by the world size, so that the average is the
    gradient of that loss.
    """
    if _is_single_process():
        return rows
    return _GatherRows.apply(rows)  # type: ignore[no-untyped-call]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        return gather_shards(rows)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        world, rank = dist.get_world_size(), dist.get_rank()
        return grads[0].chunk(world)[rank] * world


def gather_shards(shard: Tensor) -> Tensor:
    """Concatenate equally shaped shards of all processes along their first dimension."""
    if _is_single_process():
        return shard
    parts = [torch.empty_like(shard) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, shard.contiguous())
    return torch.cat(parts)


def use_threads(world: World, cores: Sequence[int]) -> None:
    """Share the machine's cores among its processes: more threads than cores is slower."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(cores) // world.local_size))
