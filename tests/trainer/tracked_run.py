"""What tests of tracked runs share."""

from trainer.run import RunDirectory
from trainer.tracking.run_log import RunInfo, read_upload_state

OPENING = RunInfo(
    "try",
    {"optimizer": {"lr": {"peak": 1e-3}}},
    {"mezzotint.kind": "train"},
    ("set", "f" * 64, "u"),
)


def run_id(run: RunDirectory) -> str:
    identifier = read_upload_state(run.path).run_id
    assert identifier
    return identifier
