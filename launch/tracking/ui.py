"""MLflow's own web page over the runs of this machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import redact
from trainer.tracking.mlflow_client import BOUNDS, default_uri


def serve_ui(runs: Path, host: str, port: int) -> int:
    """Run `mlflow server` until interrupted; returns its exit code.

    Raises:
        UserError: there is no sqlite store, or runs are tracked on a server with its own page.
    """
    uri = default_uri(runs)
    if uri.startswith("http"):
        raise UserError(
            f"MLFLOW_TRACKING_URI names a server: open its address {redact(uri)} in a browser"
        )
    if not uri.startswith("sqlite:///"):
        raise UserError("MLFLOW_TRACKING_URI names no sqlite file: use that store's own page")
    store = Path(uri.removeprefix("sqlite:///"))
    if not store.is_file():
        raise UserError(f"{store}: no runs are tracked there yet; train something first")
    environment = {**BOUNDS, **os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
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


def allowed_hosts(host: str) -> list[str]:
    """Names under which the page may be asked for, as MLflow's server takes them.

    Its default is this machine and private addresses by number; here this machine's own name and
    the one that it listens on are added, and no other, so that no page of elsewhere can ask for it.
    """
    names = ["localhost", "127.0.0.1", "[::1]", "0.0.0.0"]
    names += dict.fromkeys([socket.gethostname(), socket.getfqdn(), host])
    private = ["10.*", "192.168.*", *(f"172.{second}.*" for second in range(16, 32))]
    ports = [f"{name.replace('[', '[[]', 1)}:*" for name in names]
    return [*names, *ports, *private, "fc00:*", "fd00:*"]
