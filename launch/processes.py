"""Runs a function in several processes, each on a device, that share its blocks of inference.

They are local processes that this one starts, or the ranks of torchrun or srun. This process is
rank 0 of its local ones, so what it prints and returns is that of a lone process.
"""

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import TypeVar

import torch
import torch.distributed as dist

from mezzotint.common.errors import UserError
from mezzotint.inference.process_group import ProcessGroup
from trainer import distributed

T = TypeVar("T")
Function = Callable[[torch.device, ProcessGroup], T]

IMAGES_PER_PROCESS = 128
"""Images that are worth the start of one more process on a CPU."""
Worker = tuple[SpawnProcess, "Connection[None, str]"]
"""A local process, and the end of a pipe on which it says why it failed."""


def run_in_processes(
    function: Function[T], *, device: str | None, processes: int | None, blocks: int, images: int
) -> T:
    """`function(device, group)` in every process; returns what it gives in this one.

    `device` is cpu, cuda or cuda:N; None is all GPUs if there are any, else the CPU. Without a
    number of `processes` there is one for each GPU, or for each CPU core if the images are many,
    and not more than blocks.

    Raises:
        UserError: no such device, a process was ended, or `processes` besides ranks.
    """
    world = distributed.world_from_environment()
    if world.size > 1:
        if processes is not None:
            raise UserError(
                f"--processes {processes}: {world.size} ranks share the work already; leave the "
                "option out"
            )
        distributed.join(replace(world, device=torch.device("cpu")))
        try:
            chosen = devices(device, world.local_rank + 1)[-1]
            return function(chosen, ProcessGroup(world.rank, world.size))
        finally:
            distributed.leave()
    count = processes or default_processes(device, blocks, images)
    chosen_devices = devices(device, count)
    if count == 1:
        return function(chosen_devices[0], ProcessGroup())
    return _run_locally(function, chosen_devices)


def devices(device: str | None, count: int) -> list[torch.device]:
    """The devices of `count` processes.

    Raises:
        UserError: no such device.
    """
    gpus = torch.cuda.device_count()
    try:
        chosen = torch.device(device or ("cuda" if gpus else "cpu"))
    except RuntimeError as error:
        raise UserError(f"--device {device}: give cpu, cuda or cuda:N") from error
    if chosen.type != "cuda":
        return [chosen] * count
    indices = range(gpus) if chosen == torch.device("cuda") else [chosen.index]
    if not gpus or indices[-1] >= gpus:
        raise UserError(f"--device {device}: this machine has {gpus} CUDA devices")
    return [torch.device("cuda", indices[rank % len(indices)]) for rank in range(count)]


def default_processes(device: str | None, blocks: int, images: int) -> int:
    """One for each GPU, or on a CPU as many as cores where there is work for them."""
    chosen = devices(device, 1)[0]
    if chosen.type == "cuda":
        available = 1 if device is not None and ":" in device else torch.cuda.device_count()
    else:
        available = min(len(os.sched_getaffinity(0)), images // IMAGES_PER_PROCESS)
    return max(1, min(available, blocks))


def _run_locally(function: Function[T], places: list[torch.device]) -> T:
    """Start the other processes, run as rank 0, and end them."""
    context = multiprocessing.get_context("spawn")
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory(prefix="mezzotint-") as directory:
        store = os.path.join(directory, "rendezvous")
        try:
            for rank, place in enumerate(places[1:], start=1):
                ours, theirs = context.Pipe(duplex=False)
                arguments = (function, place, rank, len(places), store, theirs)
                process = context.Process(target=worker_main, args=arguments)
                process.start()
                theirs.close()
                workers.append((process, ours))
            _join(store, 0, len(places))
            return function(places[0], ProcessGroup(0, len(places)))
        except (RuntimeError, EOFError) as error:
            raise worker_error(workers) or error from error
        finally:
            for process, _ in workers:
                process.terminate()
                process.join()
            distributed.leave()


def _join(store: str, rank: int, size: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)


def worker_main(
    function: Function[object],
    device: torch.device,
    rank: int,
    size: int,
    store: str,
    failure: "Connection[str, None]",
) -> None:
    """The life of a local process; the one that started it also ends it at Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _join(store, rank, size)
        function(device, ProcessGroup(rank, size))
        signal.pause()  # a process that leaves would break what the others still send
    except UserError as error:
        failure.send(str(error))
    finally:
        distributed.leave()


def worker_error(workers: list[Worker]) -> Exception | None:
    """Why a process ended, if one did."""
    for process, failure in workers:
        process.join(timeout=5)
        if process.exitcode is None:
            continue
        try:
            return UserError(failure.recv())
        except EOFError:
            if process.exitcode < 0:
                return UserError(
                    f"a process was ended by signal {-process.exitcode}; each of them holds the "
                    "models: try a smaller --processes"
                )
            return RuntimeError(f"a process failed with exit code {process.exitcode}; see above")
    return None
