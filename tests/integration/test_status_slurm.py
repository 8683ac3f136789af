"""Status, logs and cancel with a real SLURM, before, during and after jobs.

The jobs are a few lines of bash that write the files of stages.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from launch.slurm.config import Cluster
from launch.slurm.records import Job, Submission
from mezzotint.common.files import write_json

pytestmark = [pytest.mark.processes, pytest.mark.slurm]
FINISH = 'echo "{\\"id\\": \\"1\\"}" >"$D/stage.json"'
NOTE = (
    'echo "{\\"job\\": $SLURM_JOB_ID, \\"restart\\": ${SLURM_RESTART_COUNT:-0}, '
    '\\"nodes\\": [\\"$SLURMD_NODENAME\\"], \\"step\\": 0, \\"time\\": $(date +%s)}" '
    '>>"$D/attempts.jsonl"'
)


@dataclass
class Runs:
    """Runs of bash jobs with the files that `submit` writes."""

    lab: object
    path: Path
    environment: dict[str, str] = field(default_factory=dict)

    def submit(self, run: str, stages: dict[str, tuple[str, tuple[str, ...]]]) -> Path:
        """Submit stages, each a script and its dependencies."""
        root = self.path / run
        lines = ["stages:"]
        jobs: dict[str, Job] = {}
        for name, (script, after) in stages.items():
            place = root / name
            (place / "logs").mkdir(parents=True)
            (place / "job.sh").write_text(f"#!/bin/bash\nD='{place}'\n{NOTE}\n{script}\n")
            output = place / "logs" / "job.log" if "NOWHERE" not in script else "/nowhere/job.log"
            words = ["sbatch", "--parsable", f"--job-name={run}/{name}", "--requeue"]
            words += ["--open-mode=append", f"--output={output}", "--kill-on-invalid-dep=yes"]
            if after:
                words.append(f"--dependency=afterok:{jobs[after[0]].id}")
            number = int(self.lab.call(*words, place / "job.sh"))
            jobs[name] = Job(number, name, f"{run}/{name}", time.time(), 1, 1, after)
            lines.append(f"  {name}: {{kind: train, after: {json.dumps(after)}}}")
        (root / "pipeline.yaml").write_text("\n".join(lines) + "\n")
        cluster = Cluster(name="lab", shared=str(self.path), scratch="/tmp")
        Submission(run, cluster, jobs).write(root)
        return root

    def call(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run a `mezzotint` command."""
        command = [
            sys.executable,
            "-P",
            "-m",
            "launch.cli.main",
            *map(str, words),
            "--runs",
            str(self.path),
        ]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=60,
            check=False,
        )

    def status(self, run: str) -> dict[str, dict[str, object]]:
        """The stages of a run, by name."""
        done = self.call("status", run, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        return {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}

    def until(self, run: str, stage: str, state: str, timeout: float = 90.0) -> dict[str, object]:
        """Wait until a stage is in a state; returns its status."""
        deadline = time.monotonic() + timeout
        while (facts := self.status(run)[stage])["state"] != state:
            assert time.monotonic() < deadline, f"{facts['state']}: {facts['reason']}"
            time.sleep(0.3)
        return facts


@pytest.fixture(scope="module")
def runs(slurm) -> Runs:
    """Runs in a directory that all nodes see."""
    path = slurm.shared / "runs"
    path.mkdir()
    return Runs(slurm, path, {**os.environ, **slurm.environment})


@pytest.fixture(scope="module")
def go(runs) -> Callable[[str], str]:
    """Shell that waits until the test says go."""
    (runs.path / ".go").mkdir()
    return lambda name: f'until [ -e "{runs.path}/.go/{name}" ]; do sleep 0.1; done'


def let(runs: Runs, name: str) -> None:
    (runs.path / ".go" / name).touch()


def test_the_status_of_a_pipeline_is_true_before_during_and_after(runs, go):
    runs.submit(
        "whole",
        {
            "first": (f"{go('first')}\n{FINISH}", ()),
            "second": (f"{go('second')}\n{FINISH}", ("first",)),
        },
    )
    first = runs.until("whole", "first", "running")
    assert len(first["nodes"]) == 1
    assert first["nodes"][0] in runs.lab.nodes
    second = runs.status("whole")["second"]
    assert (second["state"], second["reason"]) == ("waiting", "waits for first")
    write_json(
        runs.path / "whole" / "first" / "progress.json",
        {
            **{"phase": "train", "done": 30, "total": 120, "note": "", "time": time.time()},
            **{"metrics": {"loss/model": 0.5, "images_per_second": 64.0}, "seconds_left": 60.0},
        },
    )
    first = runs.status("whole")["first"]
    assert (first["step"], first["steps"], first["loss"]) == (30, 120, 0.5)
    assert first["images_per_second"] == 64.0
    assert 0 < first["seconds_left"] <= 60
    let(runs, "first")
    runs.until("whole", "second", "running")
    assert runs.status("whole")["first"]["state"] == "finished"
    let(runs, "second")
    runs.until("whole", "second", "finished")
    (whole,) = [
        run
        for run in json.loads(runs.call("status", "--json").stdout)["runs"]
        if run["name"] == "whole"
    ]
    assert (whole["state"], whole["done"]) == ("finished", 2)


def test_a_failed_stage_has_a_reason_and_cancels_its_dependents(runs):
    runs.submit(
        "broken",
        {
            "first": (
                "echo 'error: set: is not there; check it'; echo 2 >$D/exit_code; exit 2",
                (),
            ),
            "second": (FINISH, ("first",)),
            "third": (FINISH, ("second",)),
        },
    )
    first = runs.until("broken", "first", "failed")
    assert first["reason"] == "exit code 2: set: is not there; check it"
    for stage in ("second", "third"):
        facts = runs.until("broken", stage, "cancelled")
        assert facts["reason"] == "stage first failed"
    shown = runs.call("status", "broken")
    assert "first: exit code 2: set: is not there" in shown.stdout
    log = runs.call("logs", "broken")
    assert log.stdout == "error: set: is not there; check it\n"
    assert log.stderr.startswith("first (failed): ")


def test_a_log_that_a_node_cannot_write_names_the_shared_directory(runs):
    runs.submit("blind", {"only": ("# NOWHERE", ())})
    facts = runs.until("blind", "only", "failed")
    assert "`shared` in the cluster file must name a directory that every node sees" in str(
        facts["reason"]
    )


def test_a_requeued_job_is_shown_with_its_restarts(runs, go):
    again = f'if [ -z "$SLURM_RESTART_COUNT" ]; then {go("again")}; fi'
    runs.submit(
        "again",
        {
            "only": (
                f"{again}\n"
                'if [ -z "$SLURM_RESTART_COUNT" ]; then scontrol requeue $SLURM_JOB_ID; fi\n'
                f"{go('end')}\n{FINISH}",
                (),
            )
        },
    )
    assert runs.until("again", "only", "running")["restarts"] == 0
    let(runs, "again")
    facts = runs.until("again", "only", "requeued")
    assert (facts["restarts"], facts["reason"]) == (1, "waits for its begin time")
    assert runs.until("again", "only", "running")["restarts"] == 1
    let(runs, "end")
    assert runs.until("again", "only", "finished")["restarts"] == 1


def test_cancel_ends_running_and_waiting_jobs_and_nothing_is_requeued(runs, go):
    root = runs.submit(
        "unwanted",
        {
            "first": (
                "trap '[ -e \"$D/cancelled\" ] || scontrol requeue $SLURM_JOB_ID; exit 75' TERM\n"
                f"{go('never')} & wait $!",
                (),
            ),
            "second": (FINISH, ("first",)),
            "apart": (f"{go('apart')}\n{FINISH}", ()),
        },
    )
    runs.until("unwanted", "first", "running")
    following = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "launch.cli.main", "logs", "unwanted", "first"),
            *("--follow", "--runs", str(runs.path)),
        ],
        env=runs.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    done = runs.call("cancel", "unwanted", "first", "--json")
    assert done.returncode == 0, done.stderr
    jobs = json.loads(done.stdout)["cancelled"]
    assert [(each["stage"], each["state"]) for each in jobs] == [
        ("first", "running"),
        ("second", "waiting"),
    ]
    for stage in ("first", "second"):
        assert runs.until("unwanted", stage, "cancelled")["reason"] == "by `mezzotint cancel`"
    assert runs.status("unwanted")["apart"]["state"] in ("pending", "running")
    assert following.wait(20) == 0
    output = runs.call("cancel", "unwanted")
    assert "apart: job" in output.stdout
    assert "the same `mezzotint submit` resumes from them" in output.stdout
    runs.until("unwanted", "apart", "cancelled")
    assert runs.call("cancel", "unwanted").stdout == "unwanted: no pending or running jobs\n"
    assert (root / "first" / "cancelled").is_file()


def test_a_job_that_scancel_ended_is_cancelled_by_scancel(runs, go):
    root = runs.submit("outside", {"only": (go("never"), ())})
    runs.until("outside", "only", "running")
    number = json.loads((root / "submission.json").read_text())["jobs"]["only"]["id"]
    runs.lab.call("scancel", number)
    assert runs.until("outside", "only", "cancelled")["reason"] == "by scancel"


def test_a_controller_that_does_not_answer_is_noted(runs, tmp_path):
    conf = Path(runs.environment["SLURM_CONF"]).read_text()
    lines = [line for line in conf.splitlines() if not line.startswith("SlurmctldPort")]
    elsewhere = tmp_path / "slurm.conf"
    elsewhere.write_text("\n".join([*lines, "SlurmctldPort=9", "MessageTimeout=2"]) + "\n")
    deaf = Runs(runs.lab, runs.path, {**runs.environment, "SLURM_CONF": str(elsewhere)})
    run = json.loads(deaf.call("status", "outside", "--json").stdout)
    assert run["stages"][0]["state"] == "unknown"
    assert run["notes"][0].startswith("SLURM cannot be queried: squeue: ")
    assert deaf.call("cancel", "outside").returncode == 2
