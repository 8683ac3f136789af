"""`mezzotint submit` without SLURM: which stages become jobs, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch.pipeline.config import load_pipeline
from launch.pipeline.runner import input_ids, stage_settings
from launch.pipeline.state import PipelineState, StageRecord
from launch.slurm import client
from launch.slurm.config import Cluster
from launch.slurm.records import JobStart, Submission, append_job_start, read_job_starts
from launch.slurm.restart_limit import newest_step, record_start, restarts_without_progress
from launch.submit.plan import plan_pipeline, run_directory
from launch.submit.submit import tracking_address
from mezzotint.common.errors import UserError

SMALL = ["recipes/emoji_dvae.yaml", "steps=1", "batch=12"]
STAGES = {
    "tokenizer": {"kind": "tokenizer", "data": {"url": "data/emoji"}, "vocab": 300},
    "dvae": {"kind": "train", "recipe": "recipes/emoji_dvae.yaml", "set": {"batch": 12}},
    "base": {
        "kind": "train",
        "recipe": "recipes/emoji_base.yaml",
        "set": {"batch": 12, "data.text.tokenizer": "${tokenizer}/model"},
        "nodes": 2,
    },
    "page": {"kind": "page", "title": "All", "after": ["dvae", "base"]},
}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A directory with a cluster file and a pipeline, without SLURM."""
    for name, text in {
        "lab.yaml": f"name: lab\nshared: {tmp_path}\nscratch: /scratch\nnodes: 3\n",
        "pipeline.yaml": yaml.safe_dump({"name": "all", "stages": STAGES}),
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


@pytest.fixture
def submit(home, mezzotint):
    """Runs submit on the fixture's cluster file."""
    options = ["--cluster", home / "lab.yaml", "--runs", home / "runs"]
    return lambda *words: mezzotint("submit", *words, *options)


def finish(root: Path, pipeline, name: str) -> None:
    state = PipelineState(root)
    state.directory(name).mkdir(parents=True, exist_ok=True)
    inputs = input_ids(pipeline, state, name)
    state.write(
        name, StageRecord(f"id-{name}", "kind", stage_settings(pipeline, name), inputs, 1.0)
    )


def test_a_dry_run_prints_the_scripts_and_writes_nothing(home, submit):
    outcome = submit(home / "pipeline.yaml", "--dry-run")
    assert outcome.code == 0
    assert outcome.out.count("#!/bin/bash") == len(STAGES)
    assert "#SBATCH --job-name=all/base\n#SBATCH --nodes=2\n" in outcome.out
    assert "#SBATCH --job-name=all/dvae\n#SBATCH --nodes=3\n" in outcome.out
    assert "#SBATCH --job-name=all/page\n#SBATCH --nodes=1\n" in outcome.out
    assert not (home / "runs").exists()


def test_a_dry_run_in_json_lists_the_dependencies(home, submit):
    report = json.loads(submit(home / "pipeline.yaml", "--dry-run", "--json").out)
    assert report["root"] == str(home / "runs" / "all")
    assert {name: job["after"] for name, job in report["jobs"].items()} == {
        "tokenizer": [],
        "dvae": [],
        "base": ["tokenizer"],
        "page": ["base", "dvae"],
    }
    assert report["jobs"]["dvae"]["script"].startswith("#!/bin/bash\n")


def test_a_dry_run_of_a_recipe_is_one_job_in_its_run_directory(home, submit):
    report = json.loads(submit(*SMALL, "--dry-run", "--json").out)
    assert list(report["jobs"]) == ["train"]
    assert report["root"] == str(home / "runs" / "emoji_dvae")


def test_finished_stages_are_skipped_and_live_ones_stay(home):
    pipeline, root = load_pipeline(home / "pipeline.yaml"), home / "runs" / "all"
    cluster = Cluster(name="lab", shared=str(home), scratch="/s")
    finish(root, pipeline, "tokenizer")
    plan = plan_pipeline(pipeline, cluster, root, live=["dvae"])
    assert (plan.skipped, plan.active) == (("tokenizer",), ("dvae",))
    assert {name: job.after for name, job in plan.jobs.items()} == {
        "base": (),
        "page": ("base", "dvae"),
    }


def test_a_pending_job_whose_dependency_is_gone_is_submitted_again(home):
    pipeline, root = load_pipeline(home / "pipeline.yaml"), home / "runs" / "all"
    cluster = Cluster(name="lab", shared=str(home), scratch="/s")
    plan = plan_pipeline(pipeline, cluster, root, live=["page", "tokenizer"])
    assert plan.active == ("tokenizer",)
    assert set(plan.jobs) == {"dvae", "base", "page"}
    assert plan.jobs["base"].after == ("tokenizer",)


def test_redo_submits_a_finished_stage_and_its_downstream_stages(home):
    pipeline, root = load_pipeline(home / "pipeline.yaml"), home / "runs" / "all"
    cluster = Cluster(name="lab", shared=str(home), scratch="/s")
    for name in STAGES:
        finish(root, pipeline, name)
    assert plan_pipeline(pipeline, cluster, root).jobs == {}
    plan = plan_pipeline(pipeline, cluster, root, redo=["base"])
    assert set(plan.jobs) == {"base", "page"}
    assert plan.skipped == ("dvae", "tokenizer") or plan.skipped == ("tokenizer", "dvae")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipes/emoji_dvae.yaml"], "batch: 16 samples cannot be shared by 3 processes"),
        (["recipes/gone.yaml"], "recipes/gone.yaml: cannot be read"),
        ([*SMALL, "name=a b"], "name: "),
        ([*SMALL, "name=a\nb"], "name: "),
        ([*SMALL, "--redo", "base"], "--redo base: emoji_dvae is a recipe"),
        (["{home}/pipeline.yaml", "--redo", "gone"], "--redo gone: no such stage"),
        (
            ["{home}/pipeline.yaml", "stages.dvae.set.batch=16"],
            "stages.dvae.set.batch: 16 samples cannot be shared by 3 processes",
        ),
        (
            ["{home}/pipeline.yaml", "stages.dvae.recipe=recipes/gone.yaml"],
            "stages.dvae: recipes/gone.yaml: cannot be read",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(home, submit, words, message):
    outcome = submit(*(word.format(home=home) for word in words), "--dry-run")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not (home / "runs").exists()


def test_without_slurm_one_sentence_says_where_to_submit(home, submit):
    outcome = submit(home / "pipeline.yaml")
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert "SLURM is not installed here" in line
    assert not (home / "runs" / "all" / "pipeline.yaml").exists()
    assert not list((home / "runs").rglob("job.sh"))


def test_a_cluster_file_with_an_unknown_key_is_refused(home, mezzotint):
    (home / "lab.yaml").write_text("name: lab\nshared: /\nscratch: /s\npartitions: x\n")
    outcome = mezzotint("submit", *SMALL, "--cluster", home / "lab.yaml", "--dry-run")
    assert outcome.code == 2
    assert "lab.yaml: partitions: unknown key" in outcome.err


def test_runs_outside_the_shared_directory_are_refused(home, mezzotint):
    (home / "lab.yaml").write_text(f"name: lab\nshared: {home}/elsewhere\nscratch: /s\n")
    words = ("--cluster", home / "lab.yaml", "--runs", home / "runs", "--dry-run")
    outcome = mezzotint("submit", *SMALL, *words)
    assert outcome.code == 2
    assert "is not inside" in outcome.err
    assert f"--runs {home}/elsewhere/..." in outcome.err


def test_a_run_directory_has_the_path_that_the_nodes_see(tmp_path):
    (tmp_path / "disk" / "project").mkdir(parents=True)
    (tmp_path / "shared").symlink_to(tmp_path / "disk")
    cluster = Cluster(name="lab", shared=f"{tmp_path}/shared", scratch="/s")
    for typed in ("shared/project", "disk/project"):
        seen = run_directory(tmp_path / typed, "run", cluster)
        assert seen == tmp_path / "shared" / "project" / "run"


def test_errors_of_sbatch_name_the_key_of_the_cluster_file():
    hints = {
        "sbatch: error: Batch job submission failed: Invalid account or account/partition "
        "combination specified": "change account",
        "allocation failure: Invalid partition name specified": "change partition",
        "sbatch: error: Memory specification can not be satisfied": "change memory",
        "Requested time limit is invalid (missing or exceeds some limit)": "change time",
        "Invalid generic resource (gres) specification": "change gpus_per_node",
        "Invalid qos specification": "change options",
        "sbatch: unrecognized option '--nonsense'": "change options",
    }
    for error, hint in hints.items():
        assert hint in client.explain_refusal(error), error


@pytest.mark.parametrize(
    "error",
    [
        "sbatch: fatal: Could not establish a configuration source",
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller",
    ],
)
def test_a_machine_without_a_cluster_is_not_a_rejected_job(error):
    assert client.explain_refusal(error).startswith("SLURM does not answer (")
    assert "login node" in client.explain_refusal(error)


def test_the_tracking_address_is_shown_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example:5000/base")
    assert tracking_address() == "https://mlflow.example:5000/base"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert "mezzotint tracking sync" in tracking_address()


def start(restart: int, step: int, job: int = 7) -> JobStart:
    return JobStart(job, restart, ("n1",), step, 0.0)


def test_starts_count_until_a_newer_checkpoint_or_another_job():
    now = start(3, 40)
    assert restarts_without_progress([], now) == 0
    assert restarts_without_progress([start(0, 0), start(1, 20), start(2, 40)], now) == 1
    assert restarts_without_progress([start(0, 40), start(1, 40), start(2, 40)], now) == 3
    assert restarts_without_progress([start(0, 40, job=6), start(1, 40), start(2, 40)], now) == 2
    # a new cluster counts ids from 1 again: a restart count that does not rise is another job
    assert restarts_without_progress([start(0, 40), start(1, 40)], start(0, 40)) == 0


def test_a_job_fails_after_the_configured_restarts_without_progress(tmp_path):
    cluster = Cluster(name="lab", shared="/shared", scratch="/s", restarts=1)
    Submission("run", cluster).write(tmp_path)
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "exit_code").write_text("1\n")
    environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
    first = record_start(tmp_path / "stage", environment)
    assert (first.job, first.restart, first.nodes, first.step) == (7, 0, ("n1", "n2"), 0)
    assert not (tmp_path / "stage" / "exit_code").exists()
    record_start(tmp_path / "stage", {**environment, "SLURM_RESTART_COUNT": "1"})
    third = {**environment, "SLURM_RESTART_COUNT": "2"}
    with pytest.raises(UserError, match="2 starts in a row ended without a checkpoint newer"):
        record_start(tmp_path / "stage", third)
    step = tmp_path / "stage" / "checkpoints" / "step-00000040"
    step.mkdir(parents=True)
    assert newest_step(step.parent) == 0, "not complete"
    (step / "MANIFEST.json").write_text("{}")
    assert record_start(tmp_path / "stage", third).step == 40
    assert [start.restart for start in read_job_starts(tmp_path / "stage")] == [0, 1, 2]


def test_an_incomplete_line_of_job_starts_is_ignored(tmp_path):
    append_job_start(tmp_path, start(0, 0))
    with (tmp_path / "attempts.jsonl").open("ab") as file:
        file.write(b'{"job": 7, "rest')
    assert read_job_starts(tmp_path) == [start(0, 0)]


def test_an_input_error_of_a_job_is_written_for_its_script(tmp_path):
    command = [
        "-c",
        "from launch.errors import exit_with_error; exit_with_error('data.url: is not there')",
    ]
    environment = {**os.environ, "MEZZOTINT_JOB": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert (tmp_path / "refused").read_text() == "data.url: is not there\n"
