"""The status of submitted runs, from SLURM's states and the files of their jobs."""

import os

import pytest
from status_helpers import NOW, SUBMITTED, finish, job_state, progress, reasons, states, status

from launch.slurm import client
from launch.slurm.records import JobStart, append_job_start


def test_a_pipeline_without_jobs_is_not_submitted(root):
    run = status(root)
    assert (run.state, run.done, run.kind) == ("not submitted", 0, "pipeline")
    assert set(states(run).values()) == {"not submitted"}
    assert run.ended


def test_a_submitted_pipeline_waits_runs_and_finishes(submitted):
    before = status(
        submitted,
        job_state("tokenizer", "PENDING", reason="Priority"),
        job_state("train", "PENDING", reason="Dependency"),
        job_state("evaluate", "PENDING", reason="Dependency"),
    )
    assert states(before) == {"tokenizer": "pending", "train": "waiting", "evaluate": "waiting"}
    assert reasons(before)["tokenizer"] == "other jobs have priority"
    assert reasons(before)["train"] == "waits for tokenizer"
    finish(submitted, "tokenizer")
    progress(submitted / "train", 30, 120, metrics={"loss/model": 0.5, "images_per_second": 64.0})
    during = status(submitted, job_state("train", "RUNNING", nodes=("n1", "n2"), started=NOW - 60))
    train = during.stages[1]
    assert (during.state, during.done, train.state) == ("running", 1, "running")
    assert (train.job, train.nodes, train.since) == (2, ("n1", "n2"), NOW - 60)
    assert (train.step, train.steps, train.loss, train.images_per_second) == (30, 120, 0.5, 64.0)
    finish(submitted, "train")
    finish(submitted, "evaluate")
    after = status(submitted)
    assert (after.state, after.done, after.ended) == ("finished", 3, True)


def test_the_time_left_counts_down_between_two_reports(submitted):
    progress(submitted / "train", 30, 120, seconds_left=40.0)
    running = job_state("train", "RUNNING", started=NOW - 60)
    assert status(submitted, running).stages[1].seconds_left == 35.0
    assert status(submitted).stages[1].seconds_left is None


def test_a_requeued_job_is_at_its_checkpoint_until_the_next_report(submitted):
    progress(submitted / "train", 90, 120, metrics={"loss/model": 0.5})
    directory = submitted / "train"
    append_job_start(directory, JobStart(2, 0, ("n1",), 0, SUBMITTED + 10))
    waiting = job_state("train", "PENDING", reason="BeginTime", restarts=1, submitted=NOW - 3)
    stage = status(submitted, waiting).stages[1]
    assert (stage.state, stage.restarts, stage.step) == ("requeued", 1, 90)
    append_job_start(directory, JobStart(2, 1, ("n2",), 80, NOW - 1))
    stage = status(submitted, job_state("train", "RUNNING", restarts=1, nodes=("n2",))).stages[1]
    assert (stage.step, stage.steps, stage.loss, stage.restarts) == (80, 120, None, 1)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (
            "job: exit code 75; requeued\n",
            "saved a checkpoint on SLURM's signal",
        ),
        (
            "[rank0]: ValueError: odd\nsrun: error: n1\njob: exit code 1; requeued\n",
            "ended with exit code 1: ValueError: odd",
        ),
        ("slurmstepd: error: *** JOB 2 CANCELLED DUE TO NODE FAILURE ***\n", None),
    ],
)
def test_a_requeued_job_shows_what_ended_its_last_start(submitted, log, words):
    earlier = "job: 2 starts on n1\njob: exit code 75; requeued\n"
    again = "job: 2 (restart 1) starts on n1\n"
    (submitted / "train" / "logs" / "job.log").write_text(earlier + again + log)
    stage = status(submitted, job_state("train", "PENDING", reason="BeginTime", restarts=2)).stages[
        1
    ]
    assert stage.reason == "; ".join(filter(None, [words, "waits for its begin time"]))


def test_a_failed_stage_shows_the_last_error_of_its_log(submitted):
    (submitted / "tokenizer" / "logs" / "job.log").write_text(
        "error: an earlier start\nreading\n"
        "error: s3://k:geheim@host/set: no such bucket; check it\n"
        "srun: error: n1: task 0: Exited with exit code 2\n"
    )
    run = status(
        submitted,
        job_state("tokenizer", "FAILED", exit_code=2, nodes=("n1",)),
        job_state("train", "CANCELLED", reason="DependencyNeverSatisfied"),
        job_state("evaluate", "PENDING", reason="DependencyNeverSatisfied"),
    )
    assert states(run) == {"tokenizer": "failed", "train": "cancelled", "evaluate": "cancelled"}
    assert reasons(run)["tokenizer"] == "exit code 2: s3://host/set: no such bucket; check it"
    assert reasons(run)["train"] == reasons(run)["evaluate"] == "stage tokenizer failed"
    assert (run.state, run.ended) == ("failed", True)


@pytest.mark.parametrize(
    ("state", "more", "words"),
    [
        ("FAILED", {"signal": 53, "nodes": ("n3",)}, "not visible on n3: `shared` in the cluster"),
        ("FAILED", {"exit_code": 1}, "exit code 1: RuntimeError: no kernel"),
        ("FAILED", {"signal": 9}, "signal 9"),
        ("NODE_FAIL", {"nodes": ("n2",)}, "node failure (n2)"),
        ("TIMEOUT", {}, "time limit (`time` in the cluster file)"),
        ("OUT_OF_MEMORY", {}, "`memory` in the cluster file"),
    ],
)
def test_every_failure_has_a_reason(submitted, state, more, words):
    (submitted / "tokenizer" / "logs" / "job.log").write_text(
        "Traceback\n1: RuntimeError: no kernel\n"
    )
    stage = status(submitted, job_state("tokenizer", state, **more)).stages[0]
    assert stage.state == "failed"
    assert words in stage.reason


def test_a_job_unknown_to_slurm_is_classified_by_its_files(submitted):
    for stage, code in (("tokenizer", "2"), ("train", None)):
        directory = submitted / stage
        (directory / "logs" / "job.log").write_text("error: no captions\n")
        if code:
            (directory / "exit_code").write_text(code)
    run = status(submitted)
    assert states(run) == {"tokenizer": "failed", "train": "cancelled", "evaluate": "cancelled"}
    assert reasons(run)["tokenizer"] == "exit code 2: no captions"
    os.remove(submitted / "tokenizer" / "exit_code")
    (submitted / "tokenizer" / "cancelled").touch()
    os.utime(submitted / "tokenizer" / "cancelled", (NOW, NOW))
    assert states(status(submitted))["tokenizer"] == "cancelled"
    os.remove(submitted / "tokenizer" / "cancelled")
    stage = status(submitted).stages[0]
    assert (stage.state, stage.reason) == (
        "unknown",
        "SLURM no longer knows job 1, and there is no exit code",
    )


@pytest.mark.parametrize(
    ("word", "state", "reason"),
    [
        ("CANCELLED", "cancelled", "by scancel"),
        ("COMPLETING 0:10", "failed", "exit code 1, ended by SLURM (COMPLETING)"),
    ],
)
def test_a_job_unknown_to_slurm_that_slurm_ended_is_classified_by_its_log(
    submitted, word, state, reason
):
    append_job_start(submitted / "tokenizer", JobStart(1, 0, ("n1",), 0, NOW - 60))
    (submitted / "tokenizer" / "logs" / "job.log").write_text(
        f"job: 1 starts on n1\njob: exit code 1; ended by SLURM ({word}), not requeued\n"
    )
    stage = status(submitted).stages[0]
    assert (stage.state, stage.reason) == (state, reason)


def test_marks_of_an_earlier_submit_are_ignored(submitted):
    for name in ("cancelled", "exit_code"):
        (submitted / "tokenizer" / name).write_text("2")
        os.utime(submitted / "tokenizer" / name, (SUBMITTED - 500, SUBMITTED - 500))
    assert states(status(submitted))["tokenizer"] == "unknown"


@pytest.mark.parametrize(
    "other",
    [
        {"name": "another/tokenizer"},
        {"submitted": SUBMITTED + 86_400},
        {"submitted": SUBMITTED - 86_400, "restarts": 2},
    ],
)
def test_a_job_of_a_new_cluster_with_the_same_id_is_ignored(submitted, other):
    assert (
        states(status(submitted, job_state("tokenizer", "RUNNING", **other)))["tokenizer"]
        == "unknown"
    )


def test_a_requeue_renews_the_submit_time_of_a_job(submitted):
    late = job_state("tokenizer", "RUNNING", submitted=SUBMITTED + 86_400, restarts=1)
    assert states(status(submitted, late))["tokenizer"] == "running"


def test_node_lists_and_lines_of_slurm_are_parsed():
    nodes = ("n1", "n2", "n3", "n7", "gpu08", "gpu09", "a1b3", "a1b4")
    assert client.expand_nodes("n[1-3,7],gpu[08-09],a1b[3-4]") == nodes
    assert client.expand_nodes("") == ()
    line = "5|FAILED|n2|JobLaunchFailure|1|4021|1795544426|1795544432|1795544432|a|b/train|"
    job = client.parse_squeue(line)
    assert (job.name, job.restarts, job.exit_code, job.signal) == ("a|b/train", 1, None, 53)
    assert client.parse_squeue("x|") is None
    line = "6|CANCELLED by 0|None assigned|0:15|1795544426|Unknown|1795544432|both/train"
    job = client.parse_sacct(line)
    assert (job.state, job.nodes, job.signal, job.started) == ("CANCELLED", (), 15, None)
