"""A run starts, is locked and is found again however it is started."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch.train import local, worker
from mezzotint.common.errors import UserError
from mezzotint.common.locks import RUN, TRAINING, run_lock
from trainer.recipe import load
from trainer.run import RunDirectory

ROOT = Path(__file__).resolve().parent.parent.parent
TRAIN = ("-m", "launch.cli.main", "train")
SMALL = (
    *("name=tiny", "steps=2", "batch=4", "data.select=[]", "engine.precision=fp32"),
    *("model.width=16", "model.initial_width=16", "model.vocab=16", "log.previews=null"),
)
RANKS = {"RANK": "0", "WORLD_SIZE": "1"}


def call(cwd: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a directory."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    made = tmp_path / "elsewhere"
    made.mkdir()
    return made


@pytest.mark.processes
def test_ranks_of_the_environment_start_a_new_run_which_is_found_from_anywhere(
    tmp_path, write_set, elsewhere
):
    write_set()
    words = [*TRAIN, ROOT / "recipes" / "emoji_dvae.yaml", *SMALL, "data.url=set"]
    words += ["--runs", tmp_path / "runs"]
    done = call(tmp_path, *words, **RANKS)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "tiny"
    assert (run / "summary.json").is_file()
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["data"]["url"] == str(tmp_path / "set")
    (run / "summary.json").unlink()  # as if it had been interrupted
    again = call(elsewhere, *words)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "resuming from" in again.stderr


@pytest.mark.processes
def test_torchrun_starts_a_new_run_and_only_its_first_process_reports(tmp_path, write_set):
    url = write_set()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    words = [*TRAIN, "recipes/emoji_dvae.yaml", *SMALL, f"data.url={url}"]
    done = call(ROOT, *launcher, *words, "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "tiny"
    assert json.loads((run / "summary.json").read_text())["processes"] == 2
    assert done.stdout.count("the trained model") == 1


@pytest.fixture
def run(tmp_path, write_set, monkeypatch) -> RunDirectory:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MEZZOTINT_JOB", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    return RunDirectory(tmp_path / "runs" / "tiny")


@pytest.fixture
def recipe(write_set):
    return load("recipes/emoji_dvae.yaml", [*SMALL, f"data.url={write_set()}"])


LAUNCHERS = {
    "command": {},
    "torchrun": {**RANKS, "LOCAL_RANK": "0"},
    "environment": RANKS,
    "srun": {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
    "job": {"MEZZOTINT_JOB": "."},
}


@pytest.mark.parametrize("name", [RUN, TRAINING])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_second_start_is_refused_whoever_started_the_first(
    run, recipe, monkeypatch, launcher, name
):
    if (launcher, name) == ("job", RUN):
        pytest.skip("a job lets `mezzotint submit` hold the run for a moment")
    for variable, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(local, "JOB_SECONDS", 0.1)
    run.path.mkdir(parents=True)
    refusal = pytest.raises(UserError, match="is held by another live process")
    with run_lock(run.path, name), refusal:
        local.train(recipe, run, None, lambda step, steps, metrics: None)
    assert not run.recipe.exists()


def test_a_job_is_refused_while_its_run_is_trained(run, recipe, monkeypatch):
    run.claim(recipe)
    monkeypatch.setenv("MEZZOTINT_JOB", str(run.path))
    monkeypatch.setattr(local, "JOB_SECONDS", 0.1)
    refusal = pytest.raises(UserError, match="is held by another live process")
    with run_lock(run.path, TRAINING), refusal:
        worker.train_rank(run.path)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_one_process_is_the_first_whatever_says_so(monkeypatch, launcher):
    for name in ("RANK", "MEZZOTINT_JOB", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for variable, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(variable, value)
    assert local.is_main_process()
    monkeypatch.setenv("RANK", "1")
    assert not local.is_main_process()


PARENT = """
import os, subprocess, sys
from pathlib import Path
from mezzotint.common.locks import run_lock, write_owner
with run_lock(Path(sys.argv[1])) as lock:
    none = subprocess.DEVNULL
    start = dict(stdout=none, stderr=none, pass_fds=[lock.fileno()])
    ranks = [subprocess.Popen(["sleep", "100"], **start)]
    write_owner(lock, [rank.pid for rank in ranks])
    os.kill(os.getpid(), 9)
"""


def test_ranks_keep_the_lock_when_the_process_that_started_them_is_killed(tmp_path):
    assert call(tmp_path, "-c", PARENT, tmp_path).returncode == -signal.SIGKILL
    (rank,) = json.loads((tmp_path / RUN).read_text())["ranks"]
    try:
        refusal = pytest.raises(UserError, match=rf"another live process .*{rank}")
        with refusal, run_lock(tmp_path):
            pass
    finally:
        os.kill(rank, signal.SIGKILL)
    with run_lock(tmp_path, wait=10):
        pass


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def flock(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with run_lock(tmp_path) as lock:
        assert lock is None
    assert f"{tmp_path}: its file system has no locks" in caplog.text


def test_paths_of_a_recipe_are_absolute_and_digests_and_urls_stay(run, recipe, monkeypatch):
    relative = os.path.relpath(recipe.data.url)
    changed = recipe.model_dump(mode="json")
    changed["data"] |= {"url": relative, "encoder": "a" * 64}
    changed["publish"] = "s3://bucket/model"
    found = run.located(type(recipe).model_validate(changed))
    assert found.data.url == recipe.data.url
    assert (found.data.encoder, found.publish) == ("a" * 64, "s3://bucket/model")
