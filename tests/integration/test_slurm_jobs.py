"""Jobs of `mezzotint submit` on a real SLURM: how they end, and how they resume."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.slurm.config import load_cluster as load_cluster
from launch.slurm.records import read_job_starts
from launch.submit.submit import load_source, submit
from mezzotint.common.errors import UserError
from trainer.tracking.run_log import read_metrics

pytestmark = [pytest.mark.processes, pytest.mark.slurm]
RECIPE = "recipes/emoji_dvae.yaml"
STEPS = 60
SMALL = [
    "batch=12",
    "model.width=32",
    "model.initial_width=32",
    "model.vocab=64",
    "engine.precision=fp32",
    "log.every=1",
    "log.previews=null",
]
CANARY = "canary-5e2f"


@dataclass
class Cluster:
    """The command line on a login node of the lab."""

    lab: object
    home: Path

    def file(self, **changes: object) -> Path:
        """A cluster file."""
        path = self.home / "cluster.yaml"
        path.write_text(self.lab.cluster(**changes))
        return path

    def call(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run a `mezzotint` command."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "launch.cli.main", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def submit(self, *words: object, runs: Path | None = None) -> dict[str, object]:
        """Submit; returns the JSON report."""
        world_from_environment = runs or self.home / "runs"
        source, *overrides = words
        report = submit(
            load_source(source, overrides),
            load_cluster(self.home / "cluster.yaml"),
            world_from_environment,
        )
        found: dict[str, object] = json.loads(report.to_json())
        return found


@pytest.fixture
def cluster(slurm, tmp_path, monkeypatch) -> Cluster:
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    home = slurm.shared / tmp_path.name
    home.mkdir()
    return Cluster(slurm, home)


def until(condition: Callable[[], bool], log: Path | None = None, timeout: float = 200.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        text = log.read_text() if log and log.exists() else ""
        assert time.monotonic() < deadline, text[-3000:]
        time.sleep(0.05)


def steps(root: Path) -> list[int]:
    return [entry["step"] for entry in read_metrics(root / "metrics.jsonl")]


def ranks(root: Path) -> list[int]:
    """Pids of the processes that train in a run directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if Path(os.fsdecode(words[0])).name.startswith("python") and str(root).encode() in words:
            found.append(int(path.name))
    return found


@pytest.mark.timeout(500)
def test_a_job_survives_a_signal_a_crash_and_a_power_cut_with_the_same_losses(slurm, cluster):
    cluster.file(nodes=2)
    command = [RECIPE, *SMALL, "batch=48", "micro_batch=6", f"steps={STEPS}", "checkpoint.every=10"]
    command += ["optimizer.lr.peak=1e-3"]
    root = cluster.home / "runs" / "emoji_dvae"
    log = root / "logs" / "job.log"
    submitted = cluster.submit(*command)
    job = submitted["jobs"]["train"]["id"]

    def reach(step: int) -> None:
        until(lambda: (steps(root) or [0])[-1] >= step, log)

    reach(8)
    slurm.call("scancel", "--batch", "--signal=USR2", job)
    until(lambda: len(read_job_starts(root)) == 2, log)
    assert "exit code 75; requeued" in log.read_text()
    assert read_job_starts(root)[1].step >= 8, (
        "a checkpoint at the end of the step, not the last one"
    )

    reach(22)
    os.kill(ranks(root)[0], signal.SIGKILL)
    until(lambda: len(read_job_starts(root)) == 3, log)
    assert read_job_starts(root)[2].step >= 20

    reach(38)
    slurm.kill_node("n1")
    # while SLURM notices: the same, uninterrupted, in one process
    one = cluster.call("train", *command, "--runs", cluster.home / "one")
    assert one.returncode == 0, one.stderr
    until(lambda: len(read_job_starts(root)) == 4, log)
    assert read_job_starts(root)[-1].nodes == ("n2", "n3")
    slurm.start_node("n1")

    slurm.wait_for(job, "COMPLETED")
    assert (root / "exit_code").read_text() == "0\n"
    assert steps(root) == list(range(1, STEPS + 1))
    assert json.loads((root / "summary.json").read_text())["steps"] == STEPS
    assert [start.restart for start in read_job_starts(root)] == [0, 1, 2, 3]
    again = cluster.submit(*command)
    assert (again["jobs"], again["skipped"]) == ({}, ["train"])
    slurm.wait_for_nodes(3)

    losses = [
        [entry["metrics"]["loss/model"] for entry in read_metrics(path / "metrics.jsonl")]
        for path in (root, cluster.home / "one" / "emoji_dvae")
    ]
    # two processes sum in another order than one
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_cancelled_job_stays_cancelled(slurm, cluster):
    cluster.file(nodes=2)
    root = cluster.home / "runs" / "emoji_dvae"
    log = root / "logs" / "job.log"
    job = cluster.submit(RECIPE, *SMALL, "steps=5")["jobs"]["train"]["id"]
    until(lambda: len(ranks(root)) == 2, log)
    slurm.call("scancel", job)
    slurm.wait_for(job, "CANCELLED")
    until(lambda: "not requeued" in log.read_text())
    slurm.wait_for_nodes(3)
    time.sleep(2)
    assert slurm.state(job) == "CANCELLED"
    assert not (root / "exit_code").exists()
    assert set(cluster.submit(RECIPE, *SMALL, "steps=5")["jobs"]) == {"train"}
    slurm.call("scancel", "--me")


def test_a_job_that_crashes_without_progress_fails_with_a_message(slurm, cluster):
    # two seconds of processor time are used up while the libraries are imported
    cluster.file(nodes=1, restarts=1, setup=["ulimit -t 2"])
    root = cluster.home / "runs" / "emoji_dvae"
    job = cluster.submit(RECIPE, *SMALL, "steps=5")["jobs"]["train"]["id"]
    slurm.wait_for(job, "FAILED")
    log = (root / "logs" / "job.log").read_text()
    assert "2 starts in a row ended without a checkpoint newer than step 0" in log
    assert [start.restart for start in read_job_starts(root)] == [0, 1]
    assert (root / "exit_code").read_text() == "2\n"


PIPELINE = """\
name: chain
values: {pairs: data/emoji}
stages:
  tokenizer: {kind: tokenizer, data: {url: data/emoji}, vocab: 300}
  dvae:
    kind: train
    recipe: recipes/emoji_dvae.yaml
    nodes: 2
    set: {data.url: "${pairs}", steps: 2, batch: 12, model.width: 32, model.vocab: 64}
  page: {kind: page, title: Both, after: [tokenizer, dvae]}
"""


@pytest.mark.timeout(200)
def test_a_stage_with_bad_input_cancels_its_dependents_and_the_same_submit_resumes(
    slurm, cluster, monkeypatch
):
    seen = cluster.home / "seen"
    cluster.file(
        setup=[f'printf %s "$AWS_SECRET_ACCESS_KEY$MLFLOW_TRACKING_URI" | sha256sum >>{seen}']
    )
    address = f"http://me:{CANARY}@127.0.0.1:9/"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    pipeline = cluster.home / "pipeline.yaml"
    pipeline.write_text(PIPELINE)
    runs = cluster.home / 'it\'s a $(touch pwned) "place" #1 100%\nof runs'
    root = runs / "chain"

    wrong = cluster.submit(pipeline, "values.pairs=data/gone", runs=runs)
    ids = {name: job["id"] for name, job in wrong["jobs"].items()}
    assert wrong["jobs"]["page"]["after"] == ["dvae", "tokenizer"]
    slurm.wait_for(ids["dvae"], "FAILED")
    assert (root / "dvae" / "exit_code").read_text() == "2\n"
    log = (root / "dvae" / "logs" / "job.log").read_text()
    assert "error: " in log
    assert "data/gone" in log
    assert "Traceback" not in log
    assert len(read_job_starts(root / "dvae")) == 1, "bad input is not requeued"
    slurm.wait_for(ids["tokenizer"], "COMPLETED")
    slurm.wait_for(ids["page"], "CANCELLED")

    right = cluster.submit(pipeline, runs=runs)
    assert right["skipped"] == ["tokenizer"]
    assert set(right["jobs"]) == {"dvae", "page"}
    again = cluster.submit(pipeline, runs=runs)
    assert (again["jobs"], again["active"]) == ({}, ["dvae", "page"])
    changed = cluster.call(
        *("submit", pipeline, "stages.dvae.set.steps=3", "--runs", runs),
        *("--cluster", cluster.home / "cluster.yaml"),
    )
    assert changed.returncode == 2
    assert "dvae.set.steps was 2 and is now 3" in changed.stderr
    assert slurm.wait_for(right["jobs"]["page"]["id"], "COMPLETED", "FAILED") == "COMPLETED"
    assert (root / "index.html").is_file()
    assert (root / "dvae" / "model" / "model.safetensors").is_file()

    digest = hashlib.sha256(f"{CANARY}{address}".encode()).hexdigest()
    assert set(seen.read_text().split()) == {digest, "-"}, "the jobs got the secrets"
    for path in root.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path
    assert CANARY not in changed.stdout + changed.stderr
    assert not list(cluster.home.rglob("pwned")), "nothing in a path is run"
    assert not Path("pwned").exists()


def test_a_path_that_the_nodes_do_not_share_is_named_with_the_node(slurm, cluster):
    cluster.file(nodes=3)
    runs = slurm.private / cluster.home.name
    job = cluster.submit(RECIPE, *SMALL, "steps=5", runs=runs)["jobs"]["train"]["id"]
    slurm.wait_for(job, "FAILED")
    root = runs / "emoji_dvae"
    log = (root / "logs" / "job.log").read_text()
    assert f"error: node n2 does not see {root}/submission.json" in log
    assert "error: node n1" not in log
    assert (root / "exit_code").read_text() == "2\n"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"partition": "gone"}, "change partition"),
        ({"nodes": 4}, "change nodes"),
        ({"memory": "900G"}, "memory"),
        ({"gpus_per_node": 1}, "gpus_per_node"),
        ({"partition": "short", "time": "20:00"}, "change time"),
        ({"options": ["--nonsense=1"]}, "change options"),
    ],
)
def test_a_rejected_job_names_the_key_and_nothing_is_submitted(slurm, cluster, changes, key):
    cluster.file(**changes)
    with pytest.raises(
        UserError, match=r"^SLURM rejects the job: .* in the cluster file$"
    ) as error:
        cluster.submit(RECIPE, *SMALL, "steps=5")
    assert key in str(error.value)
    assert slurm.call("squeue", "--noheader") == ""
    assert not list(cluster.home.rglob("job.sh"))


PLACE = (
    "import json; from trainer.distributed import world_from_environment as world; "
    "print(json.dumps(vars(world()), default=str))"
)


def test_processes_read_their_rank_from_slurms_variables(slurm):
    words = ("srun", "--nodes=2", "--ntasks=3", "--chdir", Path.cwd(), sys.executable, "-c", PLACE)
    worlds = [json.loads(line) for line in slurm.call(*words).splitlines()]
    places = sorted((each["rank"], each["local_rank"], each["local_size"]) for each in worlds)
    assert places == [(0, 0, 2), (1, 1, 2), (2, 0, 1)]
    assert {each["size"] for each in worlds} == {3}
