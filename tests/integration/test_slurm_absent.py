"""Tests that need a SLURM, where there is none: skipped with the reason, and a failure under CI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("ci", "outcome"), [({}, "1 skipped"), ({"CI": "true"}, "1 error")])
def test_a_missing_slurm_is_reported_and_an_error_in_ci(tmp_path, ci, outcome):
    (tmp_path / "test_it.py").write_text("def test_it(slurm): pass\n")
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment |= {"PYTHONPATH": str(Path(__file__).parent), "PATH": "/nowhere", **ci}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "slurm", "-rs", "--rootdir", tmp_path, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert outcome in done.stdout
    reason = "needs root" if os.geteuid() else "apt-get install slurm-wlm slurmctld slurmd munge"
    assert reason in done.stdout
