"""How runs stand, from what SLURM says and what lies in their directories."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from launch import finding, slurm, status_view
from launch.cluster import Cluster
from launch.errors import LaunchError
from launch.progress import Reporter, read_standing
from launch.reasons import last_complaint, without_credentials
from launch.slurm import JobState
from launch.status import RunStatus, run_status
from launch.submission import Attempt, Job, Submission, append
from trainer.faults import held
from trainer.run import write_json

NOW = float(round(time.time()))
SUBMITTED = NOW - 1000
PIPELINE = """\
name: both
stages:
  words: {kind: tokenizer, vocab: 300}
  train: {kind: train, recipe: gone.yaml, set: {data.text.tokenizer: "${words}/model"}}
  judge: {kind: evaluate, after: [train]}
"""
NEEDS = {"words": (), "train": ("words",), "judge": ("train",)}


@pytest.fixture
def root(tmp_path) -> Path:
    """A pipeline's run directory, of which nothing has been submitted."""
    path = tmp_path / "runs" / "both"
    for name in NEEDS:
        (path / name / "logs").mkdir(parents=True)
    (path / "pipeline.yaml").write_text(PIPELINE)
    return path


@pytest.fixture
def submitted(root) -> Path:
    """The same, submitted as jobs 1, 2 and 3."""
    jobs = {
        name: Job(number, name, f"both/{name}", SUBMITTED, 1, 1, after)
        for number, (name, after) in enumerate(NEEDS.items(), start=1)
    }
    Submission("both", Cluster(name="lab", shared="/tmp", scratch="/tmp"), jobs).write(root)
    return root


@pytest.fixture
def recipe(tmp_path) -> Path:
    """The run directory of a lone recipe."""
    path = tmp_path / "runs" / "alone"
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text("name: alone\nsteps: 100\n")
    return path


def said(stage: str, state: str, **facts: object) -> JobState:
    """SLURM's word on the job of a stage."""
    number = [*NEEDS].index(stage) + 1
    values = {"id": number, "name": f"both/{stage}", "state": state, "submitted": SUBMITTED}
    return JobState(**{**values, **facts})


def facts(root: Path, *words: JobState, asked: bool = True) -> RunStatus:
    """How a run stands, told what SLURM says."""
    return run_status(root, {word.id: word for word in words} if asked else None, NOW, "is down")


def states(run: RunStatus) -> dict[str, str]:
    return {stage.stage: stage.state for stage in run.stages}


def reasons(run: RunStatus) -> dict[str, str | None]:
    return {stage.stage: stage.reason for stage in run.stages}


def finish(root: Path, stage: str) -> None:
    write_json(root / stage / "stage.json", {"id": "1", "kind": "train"})


def progress(path: Path, done: int, total: int, **more: object) -> None:
    standing = {"phase": "train", "done": done, "total": total, "note": "", "time": NOW - 5}
    write_json(path / "progress.json", {**standing, **more})


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
    append(place, Attempt(2, 0, ("n1",), 0, SUBMITTED + 10))
    waiting = said("train", "PENDING", reason="BeginTime", restarts=1, submitted=NOW - 3)
    stage = facts(submitted, waiting).stages[1]
    assert (stage.state, stage.restarts, stage.step) == ("requeued", 1, 90)
    append(place, Attempt(2, 1, ("n2",), 80, NOW - 1))
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
    append(submitted / "words", Attempt(1, 0, ("n1",), 0, NOW - 60))
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


def test_without_slurm_the_directories_still_speak(submitted, monkeypatch):
    finish(submitted, "words")
    progress(submitted / "train", 30, 120)
    run = facts(submitted, asked=False)
    assert (run.stages[0].state, run.stages[1].state) == ("finished", "unknown")
    assert (run.stages[1].step, run.stages[1].steps) == (30, 120)
    assert run.notes == ("is down",)
    assert not run.ended
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LaunchError, match=r"squeue: .* not installed here"):
        slurm.states([1])


@pytest.mark.parametrize(
    "name", ["progress.json", "submission.json", "stage.json", "attempts.jsonl", "exit_code"]
)
@pytest.mark.parametrize("content", [b"", b'{"phase": "tr', b"\xff\xfe", b"[]", b'{"jobs": []}\n'])
def test_a_torn_file_is_a_missing_one(submitted, name, content):
    for path in (submitted, submitted / "words"):
        (path / name).write_bytes(content)
    run = facts(submitted)
    assert run.state in ("unknown", "not submitted")
    assert run.stages[0].step is None
    if name == "submission.json":
        assert "submission.json: cannot be read" in run.notes[0]


@pytest.mark.parametrize("content", ["", "stages: 3", "- a", "{", "stages: {words: 3}"])
def test_a_pipeline_that_cannot_be_read_is_said(submitted, content):
    (submitted / "pipeline.yaml").write_text(content)
    run = facts(submitted)
    assert run.stages or "pipeline.yaml: cannot be read" in run.notes[0]


def test_a_lone_recipe_is_stopped_then_running_then_finished(recipe):
    assert facts(recipe).stages[0].steps == 100
    progress(recipe, 40, 100)
    (stage,) = facts(recipe).stages
    assert (stage.stage, stage.state, stage.step) == ("train", "stopped", 40)
    with held(recipe):
        run = facts(recipe)
        assert (run.state, run.kind, run.holder.pid) == ("running", "recipe", os.getpid())
    write_json(recipe / "summary.json", {"steps": 100})
    assert facts(recipe).state == "finished"


def test_a_pipeline_on_this_machine_runs_fails_and_drops_what_needs_it(root):
    run_on = root / "words"
    with held(root):
        (run_on / "logs" / "stage.log").touch()
        assert states(facts(root)) == {"words": "running", "train": "waiting", "judge": "waiting"}
        (run_on / "logs" / "stage.log").write_text("error: no captions\n")
        (run_on / "exit_code").write_text("2\n")
        during = facts(root)
        assert states(during) == {"words": "failed", "train": "cancelled", "judge": "cancelled"}
    after = facts(root)
    assert reasons(after)["words"] == "exit code 2: no captions"
    assert states(after)["judge"] == "cancelled"


def test_looking_does_not_keep_a_run_from_being_held(root):
    code = (
        "import sys, time; from pathlib import Path; from trainer.faults import holder\n"
        "end = time.time() + 3\nwhile time.time() < end: holder(Path(sys.argv[1]))"
    )
    (root / "lock").touch()
    looking = subprocess.Popen([sys.executable, "-c", code, str(root)])
    for _ in range(200):
        with held(root):
            pass
    looking.kill()
    looking.wait()


def test_progress_tells_metrics_and_the_time_left_and_old_files_still_read(tmp_path, monkeypatch):
    clock = iter(range(100, 1000, 10))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    reporter = Reporter(tmp_path, shows=False)
    reporter(20, 100, {"loss/model": 1.0, "steps_per_second": 4.0})
    assert read_standing(tmp_path).seconds_left == 20.0
    reporter(40, 100, {"loss/model": 0.5, "steps_per_second": 4.0})
    standing = read_standing(tmp_path)
    assert (standing.seconds_left, standing.metrics["loss/model"]) == (30.0, 0.5)
    old = {"phase": "train", "done": 1, "total": 2, "note": "", "time": 3.0}
    write_json(tmp_path / "progress.json", old)
    assert read_standing(tmp_path).metrics == {}


def test_the_loss_of_an_older_run_is_read_from_its_record(recipe):
    progress(recipe, 40, 100)
    lines = [{"step": step, "metrics": {"loss/model": step / 10}} for step in (20, 40)]
    (recipe / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines) + "{")
    assert facts(recipe).stages[0].loss == 4.0


def test_slurms_node_lists_and_lines_are_read():
    nodes = ("n1", "n2", "n3", "n7", "gpu08", "gpu09", "a1b3", "a1b4")
    assert slurm.expand("n[1-3,7],gpu[08-09],a1b[3-4]") == nodes
    assert slurm.expand("") == ()
    line = "5|FAILED|n2|JobLaunchFailure|1|4021|1795544426|1795544432|1795544432|a|b/train|"
    job = slurm.parse_squeue(line)
    assert (job.name, job.restarts, job.exit_code, job.signal) == ("a|b/train", 1, None, 53)
    assert slurm.parse_squeue("x|") is None
    line = "6|CANCELLED by 0|None assigned|0:15|1795544426|Unknown|1795544432|both/train"
    job = slurm.parse_sacct(line)
    assert (job.state, job.nodes, job.signal, job.started) == ("CANCELLED", (), 15, None)


def test_no_password_of_an_address_is_shown(root, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:geheim/@x@mlflow.example:5000/p")
    tracking = facts(root).tracking
    assert tracking.uri == "https://mlflow.example:5000/p"
    assert without_credentials("see http://a:b@h/x, s3://k@b") == "see http://h/x, s3://b"
    assert last_complaint("error: http://a:b@h is shut\n", 2) == "http://h is shut"


def test_runs_are_found_by_name_or_path_and_nearest_names_are_given(root, recipe):
    runs = root.parent
    os.utime(root / "pipeline.yaml", (1, 1))
    assert finding.all_runs(runs) == [recipe, root]
    assert finding.find_run("both", runs) == root
    assert finding.find_run(str(root), Path("elsewhere")) == root
    (root / "train" / "recipe.yaml").touch()
    assert finding.find_run(str(root / "train"), runs) == root
    with pytest.raises(LaunchError, match=r"bohts: no such run in .*; there is both"):
        finding.find_run("bohts", runs)
    with pytest.raises(LaunchError, match="there is none yet"):
        finding.find_run("both", Path("elsewhere"))
    with pytest.raises(LaunchError, match=r"trian: no such stage in .*; there is train"):
        finding.find_stage("trian", root)


def test_status_prints_one_json_object_of_a_run_or_of_all(mezzotint, root, recipe):
    run = json.loads(mezzotint("status", "both", "--runs", root.parent, "--json").out)
    assert [stage["stage"] for stage in run["stages"]] == [*NEEDS]
    assert {"state", "job", "nodes", "step", "loss", "images_per_second", "seconds_left"} <= set(
        run["stages"][0]
    )
    runs = json.loads(mezzotint("status", "--runs", root.parent, "--json").out)["runs"]
    assert {each["name"] for each in runs} == {"both", "alone"}
    assert json.loads(mezzotint("status", "--runs", root, "--json").out) == {"runs": []}


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_the_commands_explain_themselves_with_examples(mezzotint, command):
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", mezzotint(command, "--help").out).split())
    assert f"Examples: mezzotint {command} quickstart" in text


def test_status_is_a_readable_table(mezzotint, root):
    text = mezzotint("status", "both", "--runs", root.parent).out
    assert "both  not submitted  0 of 3 stages done" in text
    assert mezzotint("status", "--runs", root.parent).out.splitlines()[1].startswith("both ")
    assert "no runs yet" in mezzotint("status", "--runs", root).out


@pytest.mark.parametrize("width", [80, 120])
def test_a_crowded_table_fits_its_terminal(submitted, width):
    nodes = tuple(f"gpu-a-00{number}" for number in range(12, 20))
    metrics = {"loss/model": 0.0123456, "images_per_second": 12345.6}
    progress(submitted / "train", 123_400, 1_000_000, seconds_left=123_456, metrics=metrics)
    run = facts(submitted, said("train", "RUNNING", nodes=nodes, started=NOW, restarts=2))
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(status_view.view([run], listed=False, now=NOW, width=console.width))
    text = console.export_text()
    for words in ("123,400/1,000,000", "0.01235", "12,346", "1 d 10 h", "gpu-a-0012..0019 (8)"):
        assert words in text
    assert "restarted 2 times" in text
    assert "…" not in text


def test_watching_ends_with_the_run_and_json_has_a_line_per_change(recipe):
    progress(recipe, 40, 100)
    command = [sys.executable, "-m", "launch.cli", "status", "alone", "--watch", "--json"]
    command += ["--runs", str(recipe.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching, held(recipe):
        first = json.loads(watching.stdout.readline())
        progress(recipe, 60, 100)
        second = json.loads(watching.stdout.readline())
        write_json(recipe / "summary.json", {"steps": 100})
        last = json.loads(watching.stdout.readline())
        assert watching.stdout.read() == ""
        assert watching.wait(10) == 0
    assert [each["stages"][0]["step"] for each in (first, second)] == [40, 60]
    assert (first["state"], last["state"]) == ("running", "finished")


def test_watching_is_left_with_ctrl_c(recipe):
    command = [sys.executable, "-m", "launch.cli", "status", "alone", "--watch"]
    command += ["--runs", str(recipe.parent)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with held(recipe), subprocess.Popen(command, **pipes) as watching:
        assert "alone  running" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        assert (watching.wait(10), watching.stderr.read()) == (0, "")


def test_status_answers_without_torch():
    code = (
        "import sys, launch.status_view, launch.cancelling, launch.following\n"
        "sys.exit(int('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
