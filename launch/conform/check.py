"""The result of one check."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from launch.conform.trained_run import TrainedRun

Status = Literal["passed", "failed"]


@dataclass(frozen=True)
class CheckResult:
    """What was measured in one run."""

    name: str
    passed: bool
    measured: str
    """In words, with the numbers."""

    @property
    def status(self) -> Status:
        return "passed" if self.passed else "failed"


Check = Callable[[TrainedRun], CheckResult | None]
"""None: the run has nothing that the check is about."""
