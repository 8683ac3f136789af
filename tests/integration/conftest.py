"""What integration tests train with, and on: emoji, a tokenizer, made-up image tokens."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow_server import mlflow_server  # noqa: F401 - a fixture
from s3 import s3_server  # noqa: F401 - a fixture
from slurm import slurm  # noqa: F401 - a fixture

from data_pipeline.config import DataConfig, ImageConfig, Selection
from data_pipeline.dataset import open_dataset
from data_pipeline.derive import derive
from data_pipeline.text.tokenizer import Tokenizer
from launch.train.local import free_port, wait_for_ranks

PEOPLE = Selection(split="composition", part="train")
VOCAB = 300
SESSIONS = Path(__file__).with_name("sessions.py")
STAGES = Path(__file__).with_name("stages.py")


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory) -> Path:
    """A tokenizer of 300 pieces trained on the captions of people."""
    directory = tmp_path_factory.mktemp("tokenizer")
    captions = open_dataset(DataConfig(url="data/emoji", select=(PEOPLE,))).captions()
    (directory / "tokenizer.model").write_bytes(Tokenizer.train(captions, VOCAB))
    return directory


@pytest.fixture(scope="session")
def token_set(tmp_path_factory) -> Path:
    """Image tokens of people: the brightness of 8 x 8 patches in 64 levels."""
    directory = tmp_path_factory.mktemp("tokens") / "set"
    data = DataConfig(url="data/emoji", select=(PEOPLE,), image=ImageConfig(size=8))

    source = open_dataset(data)
    grey = (source.batch(range(len(source))).images.mean(1) + 1) / 2
    codes = (grey * 63).round().int().numpy()
    derive(source, str(directory), [{"codes": codes}], fields=("codes",), encoder="0" * 64)
    return directory


@pytest.fixture(scope="session")
def tiny_inputs(tokenizer_directory, token_set) -> Callable[[str], list[str]]:
    """Overrides that point a recipe at these inputs."""
    text = [
        f"data.text.tokenizer={tokenizer_directory}",
        f"model.text_vocab={VOCAB}",
    ]

    def overrides(name: str) -> list[str]:
        match name:
            case "emoji_prior":
                return [*text, f"data.url={token_set}"]
            case "emoji_base" | "emoji_clip":
                return text
            case _:
                return []

    return overrides


@pytest.fixture(scope="session")
def train_sessions() -> Callable[[Path, int], None]:
    """Run a file of sessions (see sessions.py) in a number of processes that form one group."""
    return start


@pytest.fixture(scope="session")
def start_ranks() -> Callable[[Path, int, Path], None]:
    """Run a program on a file in a number of processes that form one group."""
    return start


@pytest.fixture(scope="session")
def footprints_file() -> Path:
    """The program that weighs engines."""
    return SESSIONS.with_name("footprints.py")


def start(file: Path, world: int, program: Path = SESSIONS) -> None:
    """Run a program on a file in `world` processes that form one group."""
    environment = {
        **os.environ,
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    logs = [file.with_suffix(f".rank{rank}.log") for rank in range(world)]
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("w") as output:
            command = [sys.executable, str(program), str(file)]
            own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(
                subprocess.Popen(command, env=own, stdout=output, stderr=subprocess.STDOUT)
            )
    assert wait_for_ranks(ranks) == 0, logs[0].read_text()[-3000:]


@pytest.fixture(scope="session")
def run_stages() -> Callable[..., Path]:
    """Runs all stages of a pipeline with settings in one process; returns the run directory."""

    def run(pipeline: str, path: Path, *settings: str) -> Path:
        variables = {key: each for key, each in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        done = subprocess.run(
            [sys.executable, str(STAGES), pipeline, str(path), *settings],
            env=variables,
            capture_output=True,
            text=True,
            timeout=290,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return path

    return run
