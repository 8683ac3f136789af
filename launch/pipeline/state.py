"""What a pipeline remembers of its stages: which are finished, with which settings and inputs."""

import json
import secrets
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mezzotint.common.errors import UserError
from mezzotint.common.files import write_json
from trainer.run import first_difference


@dataclass(frozen=True)
class Entry:
    """A finished stage: an id of its outputs, its settings, and the ids of the inputs it read."""

    id: str
    kind: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    seconds: float
    run_id: str | None = None
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ledger:
    """`stage.json` in the directory of each stage of a pipeline run."""

    root: Path

    def directory(self, name: str) -> Path:
        """The run directory of a stage."""
        return self.root / name

    def read(self, name: str) -> Entry | None:
        """What is remembered of a finished stage; None when it has not finished."""
        path = self.directory(name) / "stage.json"
        if not path.is_file():
            return None
        try:
            return Entry(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path}: cannot be read; remove the file to run the stage again"
            ) from error

    def write(self, name: str, entry: Entry) -> None:
        """Remember a stage as finished, last of all that it writes."""
        write_json(self.directory(name) / "stage.json", asdict(entry))

    def is_current(self, name: str, settings: dict[str, Any], inputs: dict[str, str]) -> bool:
        """Whether a stage has finished with these settings and inputs.

        Raises:
            UserError: it has finished with others; the first difference is named.
        """
        entry = self.read(name)
        if entry is None:
            return False
        difference = first_difference(entry.settings, settings)
        if difference is None and entry.inputs != inputs:
            difference = f"what it read has changed ({', '.join(sorted(inputs))})"
        if difference is not None:
            raise UserError(
                f"{self.directory(name)}: is finished with other settings: {difference}; undo the "
                f"change, run the stage again with --redo {name}, or give the pipeline another "
                "name=..."
            )
        return True


def new_id() -> str:
    """A fresh id for a stage's outputs."""
    return f"{int(time.time()):x}-{secrets.token_hex(4)}"
