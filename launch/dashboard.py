"""MLflow's own web page over the runs of this machine."""

import os
import subprocess
import sys
from pathlib import Path

from launch.errors import LaunchError
from trainer.tracking import BOUNDS, default_uri


def serve(runs: Path, host: str, port: int) -> int:
    """Run `mlflow server` until interrupted; returns its exit code.

    Raises:
        LaunchError: there is no sqlite store, or runs are tracked on a server with its own page.
    """
    uri = default_uri(runs)
    if uri.startswith("http"):
        raise LaunchError("MLFLOW_TRACKING_URI names a server: open its address in a browser")
    if not uri.startswith("sqlite:///"):
        raise LaunchError("MLFLOW_TRACKING_URI names no sqlite file: use that store's own page")
    store = Path(uri.removeprefix("sqlite:///"))
    if not store.is_file():
        raise LaunchError(f"{store}: no runs are tracked there yet; train something first")
    environment = {**BOUNDS, **os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--default-artifact-root", (store.parent / "mlartifacts").as_uri()]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    sys.stdout.write(f"http://{host}:{port} (Ctrl-C ends it)\n")
    sys.stdout.flush()
    try:
        return subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 0
