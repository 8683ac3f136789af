"""A small test cluster: SLURM of three nodes, an S3 and an MLflow server. `make lab`.

Runs until Ctrl-C and removes everything. It writes `lab/environment.sh`, to be sourced by another
shell, and `lab/cluster.yaml`, the cluster file.
"""

import shlex
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import s3
import slurm
from mlflow_server import MlflowServer

WORDS = """\
Three nodes, an S3 server with the bucket s3://pairs, and an MLflow server are up. In another shell:

  source {folder}/environment.sh
  sinfo
  mezzotint data pack data/emoji s3://pairs/people --split composition
  mezzotint submit recipes/pipelines/quickstart.yaml values.pairs=s3://pairs/people \\
      --cluster {folder}/cluster.yaml --runs $RUNS

MLflow: {mlflow}
Ctrl-C here ends all of it and removes the runs.
"""


def main() -> None:
    """Start it, print how to use it, wait."""
    reason = slurm.missing()
    if reason:
        sys.exit(f"error: {reason}")
    folder = Path("lab")
    with ExitStack() as stack:
        nodes = stack.enter_context(slurm.lab())
        store = stack.enter_context(s3.server())
        tracking = MlflowServer(nodes.home / "mlflow")
        tracking.folder.mkdir()
        stack.callback(tracking.stop)
        tracking.start()
        store.bucket("pairs")
        variables = {
            **store.environment(),
            "SLURM_CONF": nodes.environment["SLURM_CONF"],
            "MLFLOW_TRACKING_URI": tracking.url,
            "RUNS": str(nodes.shared / "runs"),
        }
        folder.mkdir(exist_ok=True)
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
        script = folder / "environment.sh"
        script.touch(mode=0o600)
        script.write_text("".join(lines))
        (folder / "cluster.yaml").write_text(nodes.cluster(export=[]))
        stack.callback(script.unlink)
        sys.stdout.write(WORDS.format(folder=folder, mlflow=tracking.url))
        sys.stdout.flush()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        signal.pause()


if __name__ == "__main__":
    main()
