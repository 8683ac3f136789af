"""Batch scripts: readable, correct shell whatever the names are, and without secrets."""

import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.slurm.config import Cluster, load_cluster
from launch.slurm.job_script import JobScript, JobSpec, render_job_script
from mezzotint.common.errors import UserError

GOLDEN = Path(__file__).with_name("golden")
CANARY = "canary-81c4"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": CANARY,
    "AWS_SECRET_ACCESS_KEY": CANARY,
    "HTTPS_PROXY": f"http://me:{CANARY}@proxy",
    "MEZZOTINT_WATCH_PARENT": "1",
    "MLFLOW_TRACKING_URI": f"http://me:{CANARY}@mlflow:5000",
    "PATH": "/usr/bin",
}
HOSTILE = [
    "a b",
    "it's",
    'say "no"',
    "$(touch pwned)",
    "`touch pwned`",
    "a\nb",
    "#",
    "%j",
    "-x",
    "~",
]
PATHS = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(blacklist_characters="/\0\\", blacklist_categories=("Cs",)), min_size=1),
).filter(lambda name: name not in (".", ".."))


def stage(cluster: Cluster, name: str, base: Path, *, trains: bool = True) -> JobSpec:
    resources = cluster.training_resources() if trains else cluster.serial_resources()
    root = base / "runs" / "quickstart"
    command = ("launch.cli.main", "stage", str(root), name)
    return JobSpec("quickstart", name, root, root / name, command, resources, trains)


def script(job: JobSpec, cluster: Cluster, base: Path) -> JobScript:
    python = str(base / ".venv" / "bin" / "python")
    return render_job_script(job, cluster, python=python, cwd=str(base), environment=ENVIRONMENT)


@pytest.mark.parametrize(
    ("cluster", "name", "trains"),
    [("lab", "dvae", True), ("gpu", "base", True), ("gpu", "evaluate", False)],
)
def test_the_scripts_of_the_example_clusters_match_the_golden_files(cluster, name, trains):
    cluster_config = load_cluster(f"recipes/clusters/{cluster}.yaml")
    base = Path(cluster_config.shared) / "mezzotint"
    text = script(stage(cluster_config, name, base, trains=trains), cluster_config, base).text
    golden = GOLDEN / f"{cluster}-{name}.sh"
    if os.environ.get("MEZZOTINT_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_a_single_recipe_is_trained_by_the_worker_in_its_run_directory():
    cluster = load_cluster("recipes/clusters/lab.yaml")
    root = Path("/shared/runs/emoji_dvae")
    job = JobSpec(
        "emoji_dvae",
        "train",
        root,
        root,
        ("launch.train.worker", str(root)),
        cluster.training_resources(),
        True,
    )
    text = script(job, cluster, Path("/shared")).text
    assert '"$python" -P -m launch.train.worker "$directory" &' in text
    assert "#SBATCH --output=/shared/runs/emoji_dvae/logs/job.log" in text


@settings(max_examples=60, deadline=None)
@given(name=PATHS, other=PATHS)
def test_any_path_is_quoted_exactly_and_runs_nothing(name, other):
    cluster = Cluster(name="lab", shared="/shared", scratch=f"/{other}", nodes=2)
    base = Path("/shared") / name
    made = script(stage(cluster, "dvae", base), cluster, base)
    subprocess.run(["bash", "-n"], input=made.text.encode(), check=True)
    head, _, rest = made.text.partition("\nroot=")
    lines = "root=" + rest.partition("\n# The processes rendezvous")[0]
    lines += "\n" + re.search(r"export MEZZOTINT_CACHE=.*?\n(?=export)", made.text, re.DOTALL)[0]
    shown = 'printf "%s\\0" "$root" "$directory" "$cwd" "$python" "$MEZZOTINT_CACHE"'
    command = ["bash", "-uc", f"SLURM_JOB_USER=me\n{lines}\n{shown}"]
    done = subprocess.run(command, capture_output=True, check=True, env={}, cwd="/")
    root = f"/shared/{name}/runs/quickstart"
    assert done.stdout.decode().split("\0")[:-1] == [
        root,
        f"{root}/dvae",
        f"/shared/{name}",
        f"/shared/{name}/.venv/bin/python",
        f"/{other}/mezzotint-me",
    ]
    assert done.stderr == b""
    # sbatch parses shell quotes; options that a line cannot hold become arguments
    assert all(
        line.startswith(("#!", "# ", "#SBATCH --", "#SBATCH '--"))
        for line in head.split("\n")
        if line
    )
    options = [shlex.split(line[8:])[0] for line in head.split("\n") if line.startswith("#SBATCH")]
    options += made.arguments
    assert f"--chdir=/shared/{name}" in options
    assert f"--output={root}/dvae/logs/job.log".replace("%", "%%") in options


def test_a_path_that_slurm_would_interpret_is_refused():
    cluster = Cluster(name="lab", shared="/shared", scratch="/scratch")
    with pytest.raises(UserError, match="backslash"):
        script(stage(cluster, "dvae", Path("/shared/a\\b")), cluster, Path("/shared"))


def test_variables_are_exported_by_name_and_no_value_is_written():
    cluster = Cluster(
        name="lab", shared="/shared", scratch="/scratch", export=("HTTPS_PROXY", "NOT_SET")
    )
    made = script(stage(cluster, "dvae", Path("/shared")), cluster, Path("/shared"))
    assert (
        "#SBATCH --export=AWS_ACCESS_KEY_ID,AWS_SECRET_ACCESS_KEY,HTTPS_PROXY,MLFLOW_TRACKING_URI\n"
        in made.text
    )
    assert CANARY not in made.text + "".join(made.arguments)


def test_a_job_runs_the_code_that_the_submitting_process_runs():
    cluster = load_cluster("recipes/clusters/lab.yaml")
    job = stage(cluster, "dvae", Path("/shared"))
    made = render_job_script(
        job, cluster, python="python", cwd="/", environment={"PYTHONPATH": "/code"}
    )
    assert "#SBATCH --export=PYTHONPATH\n" in made.text


def test_without_variables_to_inherit_a_job_gets_none():
    cluster = load_cluster("recipes/clusters/lab.yaml")
    job = stage(cluster, "dvae", Path("/shared"))
    made = render_job_script(job, cluster, python="python", cwd="/", environment={"HOME": "/root"})
    assert "#SBATCH --export=NONE\n" in made.text


def test_a_single_process_needs_no_rendezvous():
    cluster = load_cluster("recipes/clusters/lab.yaml")
    job = stage(cluster, "evaluate", Path("/shared"), trains=False)
    assert "MASTER_PORT" not in script(job, cluster, Path("/shared")).text
    resources = replace(job.resources, nodes=2)
    job = replace(job, resources=resources)
    assert "MASTER_PORT" in script(job, cluster, Path("/shared")).text
