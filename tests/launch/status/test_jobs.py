"""How submitted runs stand, from what SLURM says and what jobs leave."""

import os

import pytest
from standing import NOW, SUBMITTED, facts, finish, progress, reasons, said, states

from launch.slurm import client
from launch.slurm.records import JobStart, append_job_start


def test_nothing_is_claimed_of_a_pipeline_that_was_never_submitted(root):
    run = facts(root)
    assert (run.state, run.done, run.kind) == ("not submitted", 0, "pipeline")
    assert set(states(run).values()) == {"not submitted"}
    assert run.ended


def test_a_submitted_pipeline_runs_waits_and_finishes(submitted):
    before = facts(
        submitted,
        said("words", "PENDING", reason="Priority"),
        said("train", "PENDING", reason="Dependency"),
        said("judge", "PENDING", reason="Dependency"),
    )
    assert states(before) == {"words": "pending", "train": "waiting", "judge": "waiting"}
    assert reasons(before)["words"] == "other jobs come first"
    assert reasons(before)["train"] == "waits for words"
    finish(submitted, "words")
    progress(submitted / "train", 30, 120, metrics={"loss/model": 0.5, "images_per_second": 64.0})
    during = facts(submitted, said("train", "RUNNING", nodes=("n1", "n2"), started=NOW - 60))
    train = during.stages[1]
    assert (during.state, during.done, train.state) == ("running", 1, "running")
    assert (train.job, train.nodes, train.since) == (2, ("n1", "n2"), NOW - 60)
    assert (train.step, train.steps, train.loss, train.images_per_second) == (30, 120, 0.5, 64.0)
    finish(submitted, "train")
    finish(submitted, "judge")
    after = facts(submitted)
    assert (after.state, after.done, after.ended) == ("finished", 3, True)


def test_the_time_left_goes_on_counting_between_two_reports(submitted):
    progress(submitted / "train", 30, 120, seconds_left=40.0)
    running = said("train", "RUNNING", started=NOW - 60)
    assert facts(submitted, running).stages[1].seconds_left == 35.0
    assert facts(submitted).stages[1].seconds_left is None


def test_a_requeued_job_stands_at_its_checkpoint_until_it_reports_again(submitted):
    progress(submitted / "train", 90, 120, metrics={"loss/model": 0.5})
    place = submitted / "train"
    append_job_start(place, JobStart(2, 0, ("n1",), 0, SUBMITTED + 10))
    waiting = said("train", "PENDING", reason="BeginTime", restarts=1, submitted=NOW - 3)
    stage = facts(submitted, waiting).stages[1]
    assert (stage.state, stage.restarts, stage.step) == ("requeued", 1, 90)
    append_job_start(place, JobStart(2, 1, ("n2",), 80, NOW - 1))
    stage = facts(submitted, said("train", "RUNNING", restarts=1, nodes=("n2",))).stages[1]
    assert (stage.step, stage.steps, stage.loss, stage.restarts) == (80, 120, None, 1)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (
            "job: exit code 75; back into the queue\n",
            "saved a checkpoint when it was told to leave",
        ),
        (
            "[rank0]: ValueError: odd\nsrun: error: n1\njob: exit code 1; back into the queue\n",
            "ended with exit code 1: ValueError: odd",
        ),
        ("slurmstepd: error: *** JOB 2 CANCELLED DUE TO NODE FAILURE ***\n", None),
    ],
)
def test_a_requeued_job_says_what_ended_its_last_start(submitted, log, words):
    earlier = "job: 2 starts on n1\njob: exit code 75; back into the queue\n"
    again = "job: 2 (restart 1) starts on n1\n"
    (submitted / "train" / "logs" / "job.log").write_text(earlier + again + log)
    stage = facts(submitted, said("train", "PENDING", reason="BeginTime", restarts=2)).stages[1]
    assert stage.reason == "; ".join(filter(None, [words, "SLURM starts it in a moment"]))


def test_a_failed_stage_is_told_with_the_last_error_of_its_log(submitted):
    (submitted / "words" / "logs" / "job.log").write_text(
        "error: an earlier start\nreading\n"
        "error: s3://k:geheim@host/set: no such bucket; check it\n"
        "srun: error: n1: task 0: Exited with exit code 2\n"
    )
    run = facts(
        submitted,
        said("words", "FAILED", exit_code=2, nodes=("n1",)),
        said("train", "CANCELLED", reason="DependencyNeverSatisfied"),
        said("judge", "PENDING", reason="DependencyNeverSatisfied"),
    )
    assert states(run) == {"words": "failed", "train": "cancelled", "judge": "cancelled"}
    assert reasons(run)["words"] == "exit code 2: s3://host/set: no such bucket; check it"
    assert reasons(run)["train"] == reasons(run)["judge"] == "stage words failed"
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
def test_every_end_that_is_not_good_is_told_in_words(submitted, state, more, words):
    (submitted / "words" / "logs" / "job.log").write_text("Traceback\n1: RuntimeError: no kernel\n")
    stage = facts(submitted, said("words", state, **more)).stages[0]
    assert stage.state == "failed"
    assert words in stage.reason


def test_what_slurm_has_forgotten_is_told_by_what_the_job_left(submitted):
    for stage, code in (("words", "2"), ("train", None)):
        place = submitted / stage
        (place / "logs" / "job.log").write_text("error: no captions\n")
        if code:
            (place / "exit_code").write_text(code)
    run = facts(submitted)
    assert states(run) == {"words": "failed", "train": "cancelled", "judge": "cancelled"}
    assert reasons(run)["words"] == "exit code 2: no captions"
    os.remove(submitted / "words" / "exit_code")
    (submitted / "words" / "cancelled").touch()
    os.utime(submitted / "words" / "cancelled", (NOW, NOW))
    assert states(facts(submitted))["words"] == "cancelled"
    os.remove(submitted / "words" / "cancelled")
    stage = facts(submitted).stages[0]
    assert (stage.state, stage.reason) == (
        "unknown",
        "SLURM no longer knows job 1, which left no exit code",
    )


@pytest.mark.parametrize(
    ("word", "state", "reason"),
    [
        ("CANCELLED", "cancelled", "by scancel"),
        ("COMPLETING 0:10", "failed", "exit code 1, ended by SLURM (COMPLETING)"),
    ],
)
def test_a_forgotten_job_that_was_ended_from_outside_is_told_by_its_log(
    submitted, word, state, reason
):
    append_job_start(submitted / "words", JobStart(1, 0, ("n1",), 0, NOW - 60))
    (submitted / "words" / "logs" / "job.log").write_text(
        "job: 1 starts on n1\n"
        f"job: exit code 1; ended from outside ({word}), not put back into the queue\n"
    )
    stage = facts(submitted).stages[0]
    assert (stage.state, stage.reason) == (state, reason)


def test_marks_of_an_earlier_submit_say_nothing_of_this_one(submitted):
    for name in ("cancelled", "exit_code"):
        (submitted / "words" / name).write_text("2")
        os.utime(submitted / "words" / name, (SUBMITTED - 500, SUBMITTED - 500))
    assert states(facts(submitted))["words"] == "unknown"


@pytest.mark.parametrize(
    "other",
    [
        {"name": "another/words"},
        {"submitted": SUBMITTED + 86_400},
        {"submitted": SUBMITTED - 86_400, "restarts": 2},
    ],
)
def test_a_job_of_a_fresh_cluster_with_the_same_id_is_not_ours(submitted, other):
    assert states(facts(submitted, said("words", "RUNNING", **other)))["words"] == "unknown"


def test_a_requeue_moves_the_time_at_which_a_job_was_submitted(submitted):
    late = said("words", "RUNNING", submitted=SUBMITTED + 86_400, restarts=1)
    assert states(facts(submitted, late))["words"] == "running"


def test_slurms_node_lists_and_lines_are_read():
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
