"""MLflow's web interface for the runs of this machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from shlex import quote

from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import redact
from trainer.tracking.address import check_uri, default_uri, folder_of, sqlite_path
from trainer.tracking.client_settings import CLIENT_ENVIRONMENT


def serve_ui(runs: Path, host: str, port: int) -> int:
    """Run `mlflow server` until interrupted; returns its exit code.

    Raises:
        UserError: there is no sqlite store, or runs are tracked on a server with its own page.
    """
    uri = default_uri(runs)
    if uri.startswith("http"):
        raise UserError(f"MLFLOW_TRACKING_URI is a server: open {redact(uri)} in a browser")
    check_uri(uri)
    folder = folder_of(uri)
    store = sqlite_path(uri) if folder is None else Path(folder)
    if store is None:
        raise UserError(
            "MLFLOW_TRACKING_URI is neither a sqlite file nor a folder: use the web interface of "
            "that store"
        )
    if not store.exists():
        raise UserError(f"{store}: no runs are tracked there yet; train something first")
    environment = {
        **CLIENT_ENVIRONMENT,
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--default-artifact-root", (store.parent / "mlartifacts").as_uri()]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", ",".join(allowed_hosts(host))]
    sys.stdout.write(f"http://{host}:{port} (Ctrl-C ends it)\n")
    sys.stdout.flush()
    try:
        return subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 0


def dashboard_hint(runs: Path) -> str:
    """How to see the runs in MLflow."""
    uri = default_uri(runs)
    if sqlite_path(uri) is None and folder_of(uri) is None:
        return f"MLflow: {redact(uri)}"
    return f"Dashboard: mezzotint dashboard --runs {quote(str(runs))}"


def allowed_hosts(host: str) -> list[str]:
    """Patterns of the `Host` headers that MLflow's server accepts.

    MLflow's defaults (this machine, private addresses), and the names of this machine. All others
    are rejected, so that no page of another site can query the server (DNS rebinding).
    """
    names = ["localhost", "127.0.0.1", "[::1]", "0.0.0.0"]
    names += dict.fromkeys([socket.gethostname(), socket.getfqdn(), host])
    private = ["10.*", "192.168.*", *(f"172.{second}.*" for second in range(16, 32))]
    ports = [f"{name.replace('[', '[[]', 1)}:*" for name in names]
    return [*names, *ports, *private, "fc00:*", "fd00:*"]
