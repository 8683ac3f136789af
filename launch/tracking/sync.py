"""Send MLflow what it missed of a run: a server was down, or none was named."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launch.pipeline.config import load_run_pipeline
from launch.train.local import tracking_from_environment
from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import redact
from trainer.run import RunDirectory
from trainer.tracking.mlflow_client import LoadUploader, Uploader, UploadSummary, default_uri
from trainer.tracking.run_log import TrackingConfig, read_account


@dataclass(frozen=True)
class SyncReport:
    """What was sent, by run."""

    store: str
    runs: dict[str, UploadSummary]

    def to_json(self) -> str:
        """One JSON object."""
        runs = [{"run": name, **asdict(delivery)} for name, delivery in self.runs.items()]
        return json.dumps({"store": self.store, "runs": runs}, indent=1)

    def to_text(self) -> str:
        """A line per run."""
        lines = [f"{name}: {format_summary(delivery)}" for name, delivery in self.runs.items()]
        return "\n".join([*lines, f"MLflow at {self.store} has it all"])


def format_summary(delivery: UploadSummary) -> str:
    """What was sent of one run, in a few words."""
    counts = {
        "steps": delivery.steps,
        "pictures": delivery.pictures,
        "artifacts": delivery.artifacts,
        "load samples": delivery.samples,
    }
    words = [f"{count:,} {name}" for name, count in counts.items() if count]
    return ", ".join([*(["opened"] if delivery.opened else []), *words]) or "nothing was missing"


def sync_run(run: Path) -> SyncReport:
    """Send what is missing of a run directory, or of a pipeline's and all its stages'.

    Raises:
        UserError: no run directory, or nothing was recorded in it.
        Refused: what the server answers, or that none does.
    """
    pipeline = run / "pipeline.yaml"
    if not pipeline.is_file() and not (run / "recipe.yaml").is_file() and not read_account(run):
        raise UserError(f"{run}: is no run directory; give runs/NAME, or runs/NAME/STAGE")
    above = run.parent / "pipeline.yaml"
    root = run if pipeline.is_file() else run.parent if above.is_file() else None
    if root and root != run and run.name not in load_run_pipeline(root).stages:
        root = None
    link = tracking_from_environment(default_uri((root or run).parent), root)
    assert link is not None
    directories = [run]
    if root == run:
        directories += [run / name for name in load_run_pipeline(run).stages]
    known = [directory for directory in directories if read_account(directory)]
    if not known:
        raise UserError(f"{run}: nothing is recorded there for MLflow yet; start the run first")
    return SyncReport(redact(link.uri), {str(each): upload_run(each, link) for each in known})


def upload_run(directory: Path, link: TrackingConfig) -> UploadSummary:
    """Send what is missing of one run, and of the load of each of its nodes."""
    own = replace(link, root=None) if link.root == directory else link
    delivery = Uploader(RunDirectory(directory), own).sync()
    for lines in sorted((directory / "system").glob("*.jsonl")):
        host = lines.name.removesuffix(".jsonl")
        delivery.samples += LoadUploader(directory, own, host).sync(wait=20.0)
    return delivery
