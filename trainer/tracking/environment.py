"""How runs are tracked: MLflow's own variables and this project's."""

import os
from pathlib import Path

from trainer.tracking.address import URI, tracking_uri, variable
from trainer.tracking.run_log import TrackingConfig

EXPERIMENT, DEFAULT_EXPERIMENT = "MEZZOTINT_EXPERIMENT", "mezzotint"


def tracking_from_environment(
    default: str | None = None, root: Path | None = None
) -> TrackingConfig | None:
    """The tracking configuration of the environment; `root` is the pipeline's run directory.

    None if neither MLFLOW_TRACKING_URI nor a default names a store: the record then stays on disk.
    The experiment is that of MEZZOTINT_EXPERIMENT, else of MLFLOW_EXPERIMENT_NAME, else of
    MLFLOW_EXPERIMENT_ID, else the pipeline's name, else `mezzotint`.
    """
    uri = tracking_uri() or default
    if not uri:
        return None
    if root is None and "MEZZOTINT_PIPELINE" in os.environ:
        root = Path(os.environ["MEZZOTINT_PIPELINE"])
    name = variable(EXPERIMENT) or variable("MLFLOW_EXPERIMENT_NAME")
    identifier = None if variable(EXPERIMENT) else variable("MLFLOW_EXPERIMENT_ID")
    return TrackingConfig(
        uri,
        name or (root.name if root else DEFAULT_EXPERIMENT),
        root,
        experiment_id=identifier,
        experiment_named=name is not None,
        run_id=variable("MLFLOW_RUN_ID"),
        run_name=variable("MLFLOW_RUN_NAME"),
    )


def tracking_environment(tracking: TrackingConfig) -> dict[str, str]:
    """Variables that pass a tracking configuration to a child process, besides inherited ones."""
    variables = {URI: tracking.uri}
    if tracking.experiment_named or tracking.experiment_id is None:
        variables[EXPERIMENT] = tracking.experiment
    if tracking.root:
        variables["MEZZOTINT_PIPELINE"] = str(tracking.root)
    return variables
