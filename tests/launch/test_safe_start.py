"""Commands started where the working directory holds packages with the names of ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("data_pipeline", "evaluation", "launch", "mezzotint", "models", "trainer")
ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = (sys.executable, "-P", "-m", "launch.cli.main")
SCRIPT = Path(sys.executable).with_name("mezzotint")
TINY = (
    "steps=2", "batch=4", "micro_batch=2", "engine.processes=2", "log.previews=null",
    "model.channels=16", "model.head_width=8", "optimizer.lr.warmup=1", "ema.every=1",
)  # fmt: skip
PIPELINE = """
name: tiny
stages:
  tokenizer: {{kind: tokenizer, data: {{url: {data}}}, vocab: 80}}
  page: {{kind: page, title: Tiny, after: [tokenizer]}}
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """A directory whose packages raise at import."""
    directory = tmp_path_factory.mktemp("elsewhere")
    for name in PACKAGES:
        (directory / name).mkdir()
        (directory / name / "__init__.py").write_text(f"raise RuntimeError('not our {name}')\n")
    (directory / "recipes").symlink_to(ROOT / "recipes")
    (directory / "data").symlink_to(ROOT / "data")
    return directory


def call(command: tuple[object, ...], directory: Path, *words: object) -> str:
    """Run a command in a directory; returns its output."""
    done = subprocess.run(
        [*map(str, command), *map(str, words)],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_the_working_directory_would_win_without_a_safe_path(elsewhere):
    done = subprocess.run(
        [sys.executable, "-c", "import models"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "not our models" in done.stderr


@pytest.mark.processes
@pytest.mark.parametrize("command", [COMMAND, (SCRIPT,)], ids=["module", "script"])
def test_training_by_two_processes_and_sampling_use_our_packages(elsewhere, command, tmp_path):
    if not Path(str(command[0])).exists():
        pytest.skip("the console script is not installed")
    call(command, elsewhere, "train", "recipes/emoji_class.yaml", *TINY, "--runs", tmp_path)
    run, out = tmp_path / "emoji_class", tmp_path / "sample.png"
    assert (run / "model" / "model.safetensors").is_file()
    words = ("sample", run, "--class", "0", "--steps", "2", "--number", "2", "--out", out)
    call(command, elsewhere, *words, "--processes", "2", "--device", "cpu", "--batch", "1")
    assert out.is_file()


@pytest.mark.processes
def test_the_stages_of_a_pipeline_use_our_packages(elsewhere, tmp_path):
    (tmp_path / "tiny.yaml").write_text(PIPELINE.format(data=ROOT / "data" / "emoji"))
    call(COMMAND, elsewhere, "run", tmp_path / "tiny.yaml", "--runs", tmp_path)
    assert (tmp_path / "tiny" / "tokenizer" / "model" / "tokenizer.model").is_file()
    assert (tmp_path / "tiny" / "index.html").is_file()
