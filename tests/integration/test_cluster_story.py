"""A day on a cluster: pairs in S3, a pipeline on three SLURM nodes, runs in MLflow.

The fixture `story` runs once; every test checks one part of it.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from data_pipeline.config import DataConfig, Selection, TextConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.stream import Stream
from launch.slurm import records
from trainer.tracking.run_log import read_metrics

pytestmark = [
    pytest.mark.processes,
    pytest.mark.s3,
    pytest.mark.slurm,
    pytest.mark.timeout(540),
]
PIPELINE = "recipes/pipelines/quickstart.yaml"
PAIRS, TOKENS = "s3://story/pairs", "s3://story/tokens"
PACK = ("--split", "composition", "--limit", "300", "--shard-size", "60")
STEPS = {"base": 120, "dvae": 12, "prior": 6, "clip": 6, "upsampler": 12}
MISSING = "stages.clip.set.data.url=s3://story/missing"
SETTINGS = [
    "name=story",
    f"values.pairs={PAIRS}",
    f"stages.tokens.out={TOKENS}",
    f"stages.prior.set.data.url={TOKENS}",
    "stages.tokenizer.vocab=300",
    *(f"stages.{name}.set.model.text_vocab=300" for name in ("base", "prior", "clip")),
    *(f"stages.{name}.set.steps={steps}" for name, steps in STEPS.items()),
    *(f"stages.{name}.set.log.every=1" for name in STEPS),
    *(f"stages.{name}.set.engine.precision=fp32" for name in STEPS),
    "stages.base.nodes=2",
    "stages.base.set.engine.zero=2",
    "stages.base.set.model.layers=2",
    "stages.base.set.model.width=64",
    "stages.dvae.nodes=3",
    "stages.dvae.set.engine.zero=3",
    "stages.dvae.set.batch=12",
    "stages.dvae.set.micro_batch=4",  # noise is sampled per micro-batch: the same on one process
    "stages.dvae.set.model.width=48",
    "stages.prior.set.model.layers=2",
    "stages.prior.set.model.width=64",
    "stages.clip.set.batch=16",
    "stages.cascade.evaluation.limit={test: 6, train: 4}",
    "stages.cascade.evaluation.system.base_sampling.steps=3",
    "stages.cascade.evaluation.system.upsampler_sampling.steps=2",
    "stages.dalle.evaluation.limit={test: 6, train: 4}",
    "stages.dalle.evaluation.system.candidates=4",
]


@dataclass
class Story:
    """The results of the commands, in their order."""

    environment: dict[str, str]
    folder: Path
    cluster: Path
    mlflow: str
    store: Path
    secret: str
    before: "subprocess.CompletedProcess[str]"
    first: dict[str, object]
    during: list[dict[str, object]]
    failed: dict[str, object]
    second: dict[str, object]
    after: dict[str, object]
    seconds: float

    @property
    def root(self) -> Path:
        """The pipeline's run directory."""
        return self.folder / "runs" / "story"


def call(
    environment: Mapping[str, str], *words: str, timeout: float = 120
) -> "subprocess.CompletedProcess[str]":
    """Run a `mezzotint` command."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "launch.cli.main", *words],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def answer(environment: Mapping[str, str], *words: str) -> dict[str, object]:
    """The JSON output of a command, which must succeed."""
    done = call(environment, *words, "--json")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, object] = json.loads(done.stdout)
    return found


def until(what: str, condition: Callable[[], bool], seconds: float, every: float = 0.2) -> None:
    """Wait for a condition, or fail by its name."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(every)


def states(status: Mapping[str, object]) -> dict[str, str]:
    """State by stage of a status."""
    stages = status["stages"]
    assert isinstance(stages, list)
    return {stage["stage"]: stage["state"] for stage in stages}


def settled(status: Mapping[str, object]) -> bool:
    """Whether no stage is pending or running."""
    return not set(states(status).values()) & {"running", "pending", "waiting", "requeued"}


def left_in_queue(environment: Mapping[str, str], root: Path) -> set[str]:
    """Jobs of a run that SLURM still lists: a job ends its MLflow run after its stage."""
    job = records.read_submission(root)
    assert job is not None
    queue = subprocess.run(
        ["squeue", "--noheader", "--format=%i"],
        env=dict(environment),
        check=True,
        capture_output=True,
        text=True,
    )
    return {str(entry.id) for entry in job.jobs.values()} & set(queue.stdout.split())


@pytest.fixture(scope="module")
def story(s3_server, slurm, mlflow_server) -> Story:
    """Pack, submit with one broken stage, preempt one job, submit again, wait for the end."""
    began = time.monotonic()
    folder = slurm.shared / "story"
    folder.mkdir()
    environment = {
        **os.environ,
        **s3_server.environment(),
        **slurm.environment,
        "MLFLOW_TRACKING_URI": mlflow_server.url,
        "OMP_NUM_THREADS": "1",
    }
    s3_server.bucket("story")
    packed = answer(environment, "data", "pack", "data/emoji", PAIRS, *PACK)
    assert packed["samples"] == 300
    cluster = folder / "lab.yaml"
    cluster.write_text(slurm.cluster())
    runs = ["--runs", str(folder / "runs")]
    submit = ["submit", PIPELINE, *SETTINGS, "--cluster", str(cluster), *runs]
    before = call(environment, "status", "story", "--json", *runs)
    first = answer(environment, *submit, MISSING)
    root = folder / "runs" / "story"
    during = [answer(environment, "status", "story", *runs)]
    preempt(environment, root, during, runs)
    status = answer(environment, "status", "story", *runs)
    while not settled(status):
        time.sleep(1)
        status = answer(environment, "status", "story", *runs)
        during.append(status)
    second = answer(environment, *submit)
    after = answer(environment, "status", "story", *runs)
    while not settled(after):
        time.sleep(1)
        after = answer(environment, "status", "story", *runs)
    until("the jobs leave", lambda: not left_in_queue(environment, root), 120)
    return Story(
        environment,
        folder,
        cluster,
        mlflow_server.url,
        mlflow_server.folder,
        s3_server.secret,
        before,
        first,
        during,
        status,
        second,
        after,
        time.monotonic() - began,
    )


def preempt(
    environment: Mapping[str, str], root: Path, seen: list[dict[str, object]], runs: list[str]
) -> None:
    """Signal the job of `base` in the middle of its run, as a scheduler does."""
    metrics = root / "base" / "metrics.jsonl"
    until("base trains", lambda: len(read_metrics(metrics)) >= 2, 240)
    seen.append(answer(environment, "status", "story", *runs))  # takes seconds on a busy machine
    job = records.read_submission(root)
    assert job is not None
    until("base goes on", lambda: len(read_metrics(metrics)) >= STEPS["base"] // 6, 240)
    subprocess.run(
        ["scancel", "--batch", "--signal=USR2", str(job.jobs["base"].id)],
        env=dict(environment),
        check=True,
    )


def test_status_of_a_run_before_its_submit_is_an_error(story):
    assert story.before.returncode == 2
    assert "story" in story.before.stderr


def test_a_submit_lists_a_job_for_every_stage(story):
    assert sorted(story.first["jobs"]) == sorted(
        yaml.safe_load(Path(PIPELINE).read_text())["stages"]
    )
    assert story.first["skipped"] == []


def test_status_shows_the_nodes_and_the_step_of_a_running_stage(story):
    rows = [
        row
        for status in story.during
        for row in status["stages"]
        if row["stage"] == "base" and row["state"] == "running" and row["step"]
    ]
    assert rows
    assert all(len(row["nodes"]) == 2 and row["steps"] == STEPS["base"] for row in rows)
    assert any(row["loss"] is not None and row["images_per_second"] > 0 for row in rows)


def test_a_preempted_job_is_requeued_and_ends_at_the_right_step(story):
    attempts = records.read_job_starts(story.root / "base")
    assert [attempt.restart for attempt in attempts] == [0, 1]
    assert 0 < attempts[1].step < STEPS["base"]
    assert json.loads((story.root / "base" / "summary.json").read_text())["steps"] == STEPS["base"]
    assert row(story.after, "base")["restarts"] == 1


def row(status: Mapping[str, object], stage: str) -> dict[str, object]:
    """One stage of a status."""
    stages = status["stages"]
    assert isinstance(stages, list)
    return next(each for each in stages if each["stage"] == stage)


@pytest.mark.parametrize(("stage", "nodes", "zero"), [("base", 2, 2), ("dvae", 3, 3)])
def test_a_stage_trains_on_its_nodes_with_its_zero_stage(story, stage, nodes, zero):
    last = records.read_job_starts(story.root / stage)[-1]
    assert len(set(last.nodes)) == nodes
    summary = json.loads((story.root / stage / "summary.json").read_text())
    assert (summary["processes"], summary["zero"]) == (nodes, zero)


def test_independent_stages_run_in_parallel(story):
    spans = {}
    for stage in STEPS:
        directory = story.root / stage
        first = records.read_job_starts(directory)[0].time
        spans[stage] = (first, (directory / "stage.json").stat().st_mtime)
    assert any(
        max(one[0], other[0]) < min(one[1], other[1])
        for one, other in itertools.combinations(spans.values(), 2)
    )


def test_a_failed_stage_cancels_its_dependents_with_a_reason(story):
    found = states(story.failed)
    assert found["clip"] == "failed"
    assert {found[name] for name in ("cascade", "dalle", "page")} == {"cancelled"}
    assert "missing" in row(story.failed, "clip")["reason"]
    assert all("clip" in row(story.failed, name)["reason"] for name in ("cascade", "dalle", "page"))
    others = set(found) - {"clip", "cascade", "dalle", "page"}
    assert {found[name] for name in others} == {"finished"}


def test_the_same_submit_resumes_without_repeating_stages(story):
    assert sorted(story.second["jobs"]) == ["cascade", "clip", "dalle", "page"]
    done = {"base", "dvae", "prior", "tokenizer", "tokens", "upsampler"}
    assert set(story.second["skipped"]) == done
    assert set(states(story.after).values()) == {"finished"}
    assert len(records.read_job_starts(story.root / "dvae")) == 1


@pytest.mark.parametrize("system", ["cascade", "dalle"])
def test_the_evaluation_jobs_write_their_reports(story, system):
    found = json.loads((story.root / system / "evaluation.json").read_text())
    assert found["metrics"]["exact_match"]["composition"]["n"] == 6
    assert list((story.root / system).glob("grid_*.png"))
    assert "data:image/png;base64," in (story.root / "index.html").read_text()


@pytest.fixture(scope="module")
def tracked(story) -> MlflowClient:
    """The tracking server of the story."""
    return MlflowClient(tracking_uri=story.mlflow)


def runs_of(client: MlflowClient) -> list[object]:
    """All runs of the story's experiment."""
    experiment = client.get_experiment_by_name("story")
    return list(client.search_runs([experiment.experiment_id], max_results=100))


def test_mlflow_holds_one_parent_and_one_run_per_stage(story, tracked):
    found = runs_of(tracked)
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert sorted(run.info.run_name for run in children) == sorted(story.first["jobs"])
    assert {run.info.status for run in found} == {"FINISHED"}


def test_a_requeued_stage_keeps_its_run_with_every_step_once(story, tracked):
    base = next(run for run in runs_of(tracked) if run.info.run_name == "base")
    history = tracked.get_metric_history(base.info.run_id, "loss/model")
    assert [entry.step for entry in history] == list(range(1, STEPS["base"] + 1))
    times = [entry.timestamp for entry in history]
    assert times == sorted(times)


def test_mlflow_has_system_metrics_of_every_node(story, tracked):
    dvae = next(run for run in runs_of(tracked) if run.info.run_name == "dvae")
    nodes = records.read_job_starts(story.root / "dvae")[-1].nodes
    for node in nodes:
        assert f"system/{node}/cpu_utilization_percentage" in dvae.data.metrics


@pytest.fixture(scope="module")
def alone(story) -> Path:
    """The recipe of the three-node job, trained by one process."""
    recipe = str(story.root / "dvae" / "recipe.yaml")
    environment = {**story.environment, "MLFLOW_TRACKING_URI": ""}
    runs = story.folder / "alone"
    done = call(environment, "train", recipe, "--name", "alone", "--runs", str(runs))
    assert done.returncode == 0, done.stderr
    return runs / "alone"


def test_three_nodes_have_the_losses_of_one_process(story, alone):
    many, one = (read_metrics(path / "metrics.jsonl") for path in (story.root / "dvae", alone))
    assert [entry["step"] for entry in many] == list(range(1, STEPS["dvae"] + 1))
    for left, right in zip(many, one, strict=True):
        assert left["step"] == right["step"]
        expected = right["metrics"]["loss/model"]
        assert left["metrics"]["loss/model"] == pytest.approx(expected, rel=1e-5)


def test_three_processes_read_the_samples_of_one_in_the_same_order(story, monkeypatch):
    for name, value in story.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MEZZOTINT_CACHE", str(story.folder / "scratch" / "order"))
    people = (Selection(split="composition", part="train"),)
    text = TextConfig(tokenizer=str(story.root / "tokenizer" / "model"), length=8)
    data = open_dataset(DataConfig(url=PAIRS, select=people, text=text))

    def keys(rank: int, world: int) -> list[tuple[str, ...]]:
        stream = Stream(data, global_batch=12, rank=rank, world=world, seed=1)
        return [batch.keys for batch in itertools.islice(stream, STEPS["dvae"])]

    shares = zip(*(keys(rank, 3) for rank in range(3)), strict=True)
    assert [sum(share, ()) for share in shares] == keys(0, 1)


def test_no_secret_is_left_anywhere(story):
    for path in itertools.chain(story.folder.rglob("*"), story.store.rglob("*")):
        if path.is_file():
            assert story.secret.encode() not in path.read_bytes(), path


def test_the_story_takes_less_than_eight_minutes(story):
    assert story.seconds < 480
