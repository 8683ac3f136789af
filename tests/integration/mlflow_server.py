"""A real MLflow server on sqlite for tests, that can be stopped, frozen and started again."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from launch.train.local import free_port
from trainer.tracking.client_settings import CLIENT_ENVIRONMENT

# One process for requests, none for jobs: half a gigabyte instead of one and a half.
LIGHT = {
    **CLIENT_ENVIRONMENT,
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "OMP_NUM_THREADS": "1",
}


@dataclass
class MlflowServer:
    """`mlflow server` on a store and a port of its own."""

    folder: Path
    port: int = field(default_factory=free_port)
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """Its address, for MLFLOW_TRACKING_URI."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder / "server.log"

    def start(self) -> None:
        """Start it, on the same store and port as before, and wait until it answers."""
        command = [sys.executable, "-P", "-m", "mlflow", "server", "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        environment = {name: value for name, value in os.environ.items() if name[:7] != "MLFLOW_"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env={**environment, **LIGHT},
                stdout=log,
                stderr=log,
                start_new_session=True,  # it has a child that answers; both end with the group
            )
        deadline = time.monotonic() + 60
        while not self.answers():
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.1)

    def answers(self) -> bool:
        """Whether it takes requests."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        """End it; its store stays."""
        if self._process is not None:
            self._tell(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let it take connections and answer nothing."""
        self._tell(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._tell(signal.SIGCONT)

    def _tell(self, number: int) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A running MLflow server."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    try:
        yield server
    finally:
        server.stop()
