"""Run directories whose status is shown."""

from pathlib import Path

import pytest
from status_helpers import NEEDS, PIPELINE, SUBMITTED

from launch.slurm.config import Cluster
from launch.slurm.records import Job, Submission


@pytest.fixture
def root(tmp_path) -> Path:
    """The run directory of a pipeline without jobs."""
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
    """The run directory of a single recipe."""
    path = tmp_path / "runs" / "alone"
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text("name: alone\nsteps: 100\n")
    return path
