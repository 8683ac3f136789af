"""The quickstart's own pipeline, in a seconds-per-stage size, from data to result page."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from models import store

pytestmark = pytest.mark.processes
TRAINED = ("dvae", "prior", "clip", "base", "upsampler")
SETTINGS = [
    *(f"stages.{name}.set.steps=6" for name in TRAINED),
    *(f"stages.{name}.set.log.every=2" for name in TRAINED),
    "stages.base.set.log.previews=3",
    "stages.base.set.model.layers=2",
    "stages.base.set.model.width=64",
    "stages.prior.set.model.layers=2",
    "stages.prior.set.model.width=64",
    "stages.clip.set.batch=16",
    "stages.cascade.evaluation.limit={test: 6, train: 4}",
    "stages.cascade.evaluation.system.base_sampling.steps=3",
    "stages.cascade.evaluation.system.upsampler_sampling.steps=2",
    "stages.dalle.evaluation.limit={test: 6, train: 4}",
    "stages.dalle.evaluation.system.candidates=4",
]


def run(runs: Path) -> str:
    environment = dict(os.environ)
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [
        sys.executable,
        "-P",
        "-m",
        "launch.cli.main",
        "run",
        "recipes/pipelines/quickstart.yaml",
    ]
    done = subprocess.run(
        [*command, *SETTINGS, "--runs", str(runs)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A runs directory with the finished pipeline."""
    path = tmp_path_factory.mktemp("quickstart")
    run(path)
    return path


def test_every_stage_writes_what_the_next_one_reads(runs):
    root = runs / "quickstart"
    for name in TRAINED:
        assert store.describe(str(root / name / "model")).config.kind
        assert json.loads((root / name / "summary.json").read_text())["steps"] == 6
        assert list((root / name / "checkpoints").glob("step-*"))
    assert (root / "tokenizer" / "model" / "tokenizer.model").is_file()
    encoder = json.loads((root / "tokens" / "set" / "manifest.json").read_text())["encoder"]
    assert encoder == store.describe(str(root / "dvae" / "model")).digest


def test_zero_stages_2_and_3_are_used(runs):
    stages = {
        json.loads((runs / "quickstart" / name / "summary.json").read_text())["zero"]
        for name in TRAINED
    }
    assert {2, 3} <= stages


@pytest.mark.parametrize("system", ["cascade", "dalle"])
def test_both_systems_are_evaluated_on_captions_seen_and_never_seen(runs, system):
    tree = json.loads((runs / "quickstart" / system / "evaluation.json").read_text())
    found = tree["metrics"]
    for metric in ("exact_match", "clip_retrieval"):
        for part, count in (("composition", 6), ("train", 4)):
            score = found[metric][part]
            assert score["n"] == count
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    assert "fd_efficientnet_lite0" in found
    assert list((runs / "quickstart" / system).glob("grid_*.png"))


def test_the_result_page_is_self_contained(runs):
    page = (runs / "quickstart" / "index.html").read_text()
    assert "data:image/png;base64," in page
    assert 'src="http' not in page


def test_mlflow_holds_one_parent_and_a_child_per_stage(runs):
    with closing(sqlite3.connect(runs / "mlflow.db")) as store_file:
        rows = store_file.execute(
            "select r.name, r.status, t.value from runs r left join tags t "
            "on t.run_uuid = r.run_uuid and t.key = 'mlflow.parentRunId'"
        ).fetchall()
        sliders = store_file.execute(
            "select count(*) from metrics where key = 'loss/model'"
        ).fetchone()
    parents = [row for row in rows if row[2] is None]
    assert [row[0] for row in parents] == ["quickstart"]
    children = [row for row in rows if row[2] is not None]
    assert len({row[2] for row in children}) == 1
    assert len(children) == 10
    assert {row[1] for row in rows} == {"FINISHED"}
    assert sliders[0] == 5 * 3


def test_the_same_command_again_trains_nothing(runs):
    root = runs / "quickstart"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("stage.json")}
    assert "already finished" in run(runs)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("stage.json")} == before


def test_a_changed_setting_of_a_finished_stage_is_refused_by_name(runs):
    command = [
        sys.executable,
        "-P",
        "-m",
        "launch.cli.main",
        "run",
        "recipes/pipelines/quickstart.yaml",
    ]
    changed = [*SETTINGS, "stages.base.set.steps=7", "--runs", str(runs)]
    done = subprocess.run([*command, *changed], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "set.steps was 6 and is now 7" in done.stderr
    assert "Traceback" not in done.stderr


def test_images_can_be_sampled_from_the_finished_run(runs, tmp_path):
    command = [sys.executable, "-P", "-m", "launch.cli.main", "sample", str(runs / "quickstart")]
    out = tmp_path / "images.png"
    done = subprocess.run(
        [*command, "woman pilot: dark skin tone", "--out", str(out), "--number", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert out.read_bytes().startswith(b"\x89PNG")
