"""Which stages of a pipeline are finished, with which settings and inputs."""

import json
import secrets
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launch.pipeline.config import load_run_pipeline
from launch.report.html import StageView
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_json
from trainer.run import first_difference


@dataclass(frozen=True)
class StageRecord:
    """A finished stage: the id of its output, its settings, and the ids of its inputs."""

    id: str
    kind: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    seconds: float
    run_id: str | None = None
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PipelineState:
    """The records of finished stages: `stage.json` in the directory of each."""

    root: Path

    def directory(self, name: str) -> Path:
        return self.root / name

    def read(self, name: str) -> StageRecord | None:
        """The record of a stage; None if it has not finished."""
        path = self.directory(name) / "stage.json"
        if not path.is_file():
            return None
        try:
            return StageRecord(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path}: cannot be read; remove the file to run the stage again"
            ) from error

    def write(self, name: str, record: StageRecord) -> None:
        """Record a stage as finished; the last file that a stage writes."""
        write_json(self.directory(name) / "stage.json", asdict(record))

    def is_current(self, name: str, settings: dict[str, Any], inputs: dict[str, str]) -> bool:
        """Whether a stage has finished with these settings and inputs.

        Raises:
            UserError: it has finished with others; the first difference is named.
        """
        record = self.read(name)
        if record is None:
            return False
        difference = first_difference(record.settings, settings)
        if difference is None and record.inputs != inputs:
            difference = f"its inputs have changed ({', '.join(sorted(inputs))})"
        if difference is not None:
            raise UserError(
                f"{self.directory(name)}: is finished with other settings: {difference}; undo the "
                f"change, run the stage again with --redo {name}, or give the pipeline another "
                "name=..."
            )
        return True


def new_id() -> str:
    """A new id for the output of a stage."""
    return f"{int(time.time()):x}-{secrets.token_hex(4)}"


def stage_views(root: Path) -> list[StageView]:
    """The stages of a pipeline run, finished or not, for its result page."""
    state = PipelineState(root)
    views = []
    for name, stage in load_run_pipeline(root).stages.items():
        record = state.read(name)
        views.append(
            StageView(
                name=name,
                kind=stage.kind,
                run_dir=state.directory(name),
                seconds=record.seconds if record else None,
                facts=record.facts if record else {},
            )
        )
    return views
