"""Upload to MLflow what it has not received: the server was down, or none was set."""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launch.pipeline.config import load_run_pipeline
from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import redact
from trainer.run import RunDirectory
from trainer.tracking.address import default_uri
from trainer.tracking.environment import tracking_from_environment
from trainer.tracking.mlflow_client import NodeMetricsUploader, Uploader
from trainer.tracking.run_log import TrackingConfig, UploadSummary, read_run_record


@dataclass(frozen=True)
class SyncReport:
    """What was uploaded, by run."""

    store: str
    runs: dict[str, UploadSummary]

    def to_json(self) -> str:
        runs = [{"run": name, **asdict(summary)} for name, summary in self.runs.items()]
        return json.dumps({"store": self.store, "runs": runs}, indent=1)

    def to_text(self) -> str:
        lines = [f"{name}: {format_summary(summary)}" for name, summary in self.runs.items()]
        return "\n".join([*lines, f"MLflow at {self.store} is up to date"])


def format_summary(summary: UploadSummary) -> str:
    """What was uploaded of one run, on one line."""
    counts = [
        (summary.steps, "step", "steps"),
        (summary.images, "image", "images"),
        (summary.artifacts, "file", "files"),
        (summary.samples, "sample of system metrics", "samples of system metrics"),
    ]
    parts = [f"{count:,} {one if count == 1 else more}" for count, one, more in counts if count]
    return ", ".join([*(["created"] if summary.created else []), *parts]) or "up to date"


def sync_run(run: Path) -> SyncReport:
    """Upload what is missing of a run directory, or of a pipeline and all its stages.

    Raises:
        UserError: not a run directory, or it holds no record.
        TrackingError: the server refuses, or does not answer.
    """
    run = Path(os.path.abspath(run))  # `.` has no parent
    pipeline = run / "pipeline.yaml"
    if not pipeline.is_file() and not (run / "recipe.yaml").is_file() and not read_run_record(run):
        raise UserError(f"{run}: is not a run directory; use runs/NAME, or runs/NAME/STAGE")
    parent = run.parent / "pipeline.yaml"
    root = run if pipeline.is_file() else run.parent if parent.is_file() else None
    if root and root != run and run.name not in load_run_pipeline(root).stages:
        root = None
    tracking = tracking_from_environment(default_uri((root or run).parent), root)
    assert tracking is not None
    directories = [run]
    if root == run:
        directories += [run / name for name in load_run_pipeline(run).stages]
    recorded = [directory for directory in directories if read_run_record(directory)]
    if not recorded:
        raise UserError(f"{run}: holds no record for MLflow yet; start the run first")
    return SyncReport(
        redact(tracking.uri), {str(each): upload_run(each, tracking) for each in recorded}
    )


def upload_run(directory: Path, tracking: TrackingConfig) -> UploadSummary:
    """Upload what is missing of one run, and of the system metrics of each of its nodes."""
    own = replace(tracking, root=None) if tracking.root == directory else tracking
    summary = Uploader(RunDirectory(directory), own).sync()
    for lines in sorted((directory / "system").glob("*.jsonl")):
        host = lines.name.removesuffix(".jsonl")
        summary.samples += NodeMetricsUploader(directory, own, host).sync(wait=20.0)
    return summary
