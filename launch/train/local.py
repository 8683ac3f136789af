"""Start a recipe on this machine: one process, or several that share each batch."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from launch.errors import Stopped
from mezzotint.common.disk_space import check_space
from mezzotint.common.errors import UserError
from mezzotint.common.locks import run_lock
from trainer.progress import Progress
from trainer.recipe import Recipe
from trainer.run import RunDirectory
from trainer.signals import PREEMPTED
from trainer.tracking.run_log import TrackingConfig


def train(
    recipe: Recipe, run: RunDirectory, link: TrackingConfig | None, progress: Progress
) -> None:
    """Train `recipe` in `run`, resuming what is there; returns when the model is handed over.

    Raises:
        Stopped: told to leave (exit code 75, a checkpoint is saved), or a process failed.
        UserError: bad input.
    """
    from trainer.setup import check
    from trainer.tracking.tracker import catch_up

    with ExitStack() as stack:
        if not launched():
            stack.enter_context(run_lock(run.path))
        if leads():
            if not run.finished():
                check(recipe)
                check_space(run.path, 50_000_000, purpose="the run")
            run.claim(recipe)
        if run.finished():
            if leads():
                catch_up(run, link)
            return
        count = 1 if launched() else processes(recipe)
        if count > 1:
            spawn(run, link, count)
            return
        from trainer.session import run as train_here

        if train_here(recipe, run, link, progress).preempted and leads():
            raise Stopped(PREEMPTED)


def launched() -> bool:
    """Whether this process was started as one of a run's: by its job, by torchrun, by srun."""
    steps = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    return "RANK" in os.environ or "MEZZOTINT_JOB" in os.environ or steps > 1


def leads() -> bool:
    """Whether this process writes what is written once per run."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID"))
    return not launched() or rank == "0"


def processes(recipe: Recipe) -> int:
    """Processes to start on this machine: the recipe's number, else one per GPU, at least one."""
    if recipe.engine.processes is not None:
        return recipe.engine.processes
    import torch

    return max(1, torch.cuda.device_count())


def spawn(run: RunDirectory, link: TrackingConfig | None, count: int) -> None:
    """Run `count` data-parallel processes of a claimed run; when one fails, all are stopped."""
    environment = dict(os.environ)
    environment.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
    )
    if "OMP_NUM_THREADS" in environment:
        share = max(1, int(environment["OMP_NUM_THREADS"]) // count)
        environment["OMP_NUM_THREADS"] = str(share)
    if link is not None:
        environment.update(link_environment(link))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "launch.train.worker", str(run.path)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
    code = wait(ranks)
    if code != 0:
        raise Stopped(code)


def wait(ranks: list[subprocess.Popen[bytes]], grace: float = 30.0) -> int:
    """Exit code of a group of processes: the first that is not 0 stops the others."""

    def forward(number: int, frame: object) -> None:
        for rank in ranks:
            rank.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        while True:
            codes = [rank.poll() for rank in ranks]
            failed = [code for code in codes if code not in (None, 0)]
            if failed:
                return _stop(ranks, failed[0] or 1, grace)
            if all(code == 0 for code in codes):
                return 0
            time.sleep(0.1)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(ranks: list[subprocess.Popen[bytes]], code: int, grace: float) -> int:
    """Let the others end by themselves for a moment (they may be leaving too), then kill them."""
    deadline = time.monotonic() + (grace if code == PREEMPTED else 3.0)
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.1)
    return code if code > 0 else 128 - code


def free_port() -> int:
    """A TCP port that is free on this machine now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def link_environment(link: TrackingConfig) -> dict[str, str]:
    """A tracking link as environment variables, for a process of ours."""
    variables = {"MLFLOW_TRACKING_URI": link.uri, "MEZZOTINT_EXPERIMENT": link.experiment}
    if link.root:
        variables["MEZZOTINT_PIPELINE"] = str(link.root)
    return variables


def link_from_environment(
    default: str | None = None, root: Path | None = None
) -> TrackingConfig | None:
    """Where to track, from the environment; `root` is the pipeline's run directory, if any.

    None where neither MLFLOW_TRACKING_URI nor a default names a store: the record is then kept on
    disk only. The experiment is the pipeline's name, or `mezzotint`, or MEZZOTINT_EXPERIMENT.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or default
    if not uri:
        return None
    if root is None and "MEZZOTINT_PIPELINE" in os.environ:
        root = Path(os.environ["MEZZOTINT_PIPELINE"])
    experiment = root.name if root else "mezzotint"
    return TrackingConfig(uri, os.environ.get("MEZZOTINT_EXPERIMENT") or experiment, root)


def check_recipe_directory(path: Path) -> RunDirectory:
    """The run directory a worker is told to train in."""
    run = RunDirectory(path)
    if not run.recipe.is_file():
        raise UserError(f"{path}: holds no recipe.yaml; start it with `mezzotint train`")
    return run
