"""Train a recipe on this machine: in one process, or in several that share each batch."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO

from launch.errors import Stopped
from mezzotint.common.disk_space import check_space
from mezzotint.common.locks import RUN, TRAINING, run_lock, write_owner
from trainer.recipe import Recipe
from trainer.run import Progress, RunDirectory
from trainer.signals import PREEMPTED, handle_signals
from trainer.tracking.address import URI
from trainer.tracking.environment import tracking_environment
from trainer.tracking.run_log import TrackingConfig

LOCKED = "MEZZOTINT_LOCKED"
"""Set for a rank whose parent process holds the locks of the run."""
JOB_SECONDS = 120.0
"""A requeued job waits so long for the lock of its last start, which a node may hold that died."""


def train(
    recipe: Recipe, run: RunDirectory, tracking: TrackingConfig | None, progress: Progress
) -> None:
    """Train `recipe` in `run`, resuming from its checkpoint; returns when the model is written.

    Raises:
        Stopped: a signal ended it (exit code 75, a checkpoint is saved), or a process failed.
        UserError: bad input.
    """
    from trainer.setup import check
    from trainer.tracking.tracker import finalize

    recipe = run.located(recipe)
    with ExitStack() as stack:
        locks: list[IO[str]] = []
        if is_main_process():
            locks += hold(stack, run, RUN) if "MEZZOTINT_JOB" not in os.environ else []
            if not run.finished():
                check(recipe)
                check_space(run.path, 50_000_000, purpose="the run")
            locks += hold(stack, run, TRAINING)
            run.claim(recipe)
        if run.finished():
            if is_main_process():
                finalize(run, tracking)
            return
        count = 1 if is_launched() else num_processes(recipe)
        if count > 1:
            run_ranks(run, tracking, count, locks)
            return
        from trainer.session import run as train_here

        if train_here(recipe, run, tracking, progress).preempted and is_main_process():
            raise Stopped(PREEMPTED)


def hold(stack: ExitStack, run: RunDirectory, name: str) -> list[IO[str]]:
    """Take a lock of the run until the stack closes; a job waits for its last start to end.

    Raises:
        UserError: another live process holds it.
    """
    wait = {"wait": JOB_SECONDS} if "MEZZOTINT_JOB" in os.environ else {}
    file = stack.enter_context(run_lock(run.path, name, **wait))
    return [] if file is None else [file]


def is_launched() -> bool:
    """Whether a job script, torchrun or srun started this process as a rank of a run."""
    steps = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    return "RANK" in os.environ or "MEZZOTINT_JOB" in os.environ or steps > 1


def is_main_process() -> bool:
    """Whether this process writes what is written once per run."""
    if "RANK" in os.environ:
        return os.environ["RANK"].strip() == "0"
    step = "SLURM_STEP_NUM_TASKS" in os.environ
    return not step or os.environ.get("SLURM_PROCID", "0") == "0"


def num_processes(recipe: Recipe) -> int:
    """Processes to start on this machine: the recipe's number, else one per GPU, at least one."""
    if recipe.engine.processes is not None:
        return recipe.engine.processes
    import torch

    return max(1, torch.cuda.device_count())


def run_ranks(
    run: RunDirectory,
    tracking: TrackingConfig | None,
    count: int,
    locks: Sequence[IO[str]] = (),
    output: IO[str] | None = None,
) -> None:
    """Train in `count` data-parallel processes; when one fails, all are stopped.

    They inherit the run's locks, which stay held if this process is killed and they live on. What
    they print goes to `output`, or where this process prints.

    Raises:
        Stopped: with the exit code of the process that failed.
    """
    environment = dict(os.environ)
    environment.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        **{LOCKED: "1"},
    )
    if "OMP_NUM_THREADS" in environment:
        threads = max(1, int(environment["OMP_NUM_THREADS"]) // count)
        environment["OMP_NUM_THREADS"] = str(threads)
    environment.pop(URI, None)
    if tracking is not None:
        environment.update(tracking_environment(tracking))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "launch.train.worker", str(run.path)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            pass_fds=[lock.fileno() for lock in locks],
            stdout=output,
            stderr=output,
        )
        for rank in range(count)
    ]
    for lock in locks:
        write_owner(lock, [rank.pid for rank in ranks])
    code = wait_for_ranks(ranks)
    if code != 0:
        raise Stopped(code)


def wait_for_ranks(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Exit code of a group of processes: the first that is not 0 stops the others."""

    def forward(number: int, frame: object) -> None:
        for rank in ranks:
            rank.send_signal(number)

    with handle_signals(forward, signal.SIGTERM, signal.SIGUSR2):
        try:
            while True:
                codes = [rank.poll() for rank in ranks]
                failed = [code for code in codes if code not in (None, 0)]
                if failed:
                    return _stop_ranks(ranks, failed[0] or 1)
                if all(code == 0 for code in codes):
                    return 0
                time.sleep(0.1)
        finally:
            for rank in ranks:
                if rank.poll() is None:
                    rank.kill()
                    rank.wait()


def _stop_ranks(ranks: list[subprocess.Popen[bytes]], code: int) -> int:
    """Wait for the others, which may be saving a checkpoint; the caller kills what is left."""
    deadline = time.monotonic() + (30.0 if code == PREEMPTED else 3.0)
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.1)
    return code if code > 0 else 128 - code


def free_port() -> int:
    """A TCP port that is free on this machine now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
