"""`mezzotint conform`: the checks of one training run, or of all those of a pipeline."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from launch.conform.causality import prior_causality
from launch.conform.check import Check, CheckResult
from launch.conform.last_step import last_timestep
from launch.conform.latents import latent_scale
from launch.conform.null_captions import null_captions
from launch.conform.perceptual import perceptual_gradient
from launch.conform.processes import same_updates
from launch.conform.trained_run import TrainedRun
from launch.conform.zero_convolutions import zero_convolution_order
from launch.pipeline.config import TrainStage, load_run_pipeline
from launch.processes import devices
from mezzotint.common.errors import UserError
from mezzotint.inference.model_lookup import is_pipeline

CHECKS: Sequence[Check] = (
    perceptual_gradient,
    latent_scale,
    null_captions,
    prior_causality,
    last_timestep,
    zero_convolution_order,
)
UPDATES: Sequence[Check] = (same_updates,)
"""Checks that train for a few updates in processes of their own."""


@dataclass(frozen=True)
class Conformance:
    """The results of all runs, by name."""

    runs: Mapping[str, Sequence[CheckResult]]

    @property
    def passed(self) -> bool:
        return all(result.passed for results in self.runs.values() for result in results)

    def to_text(self) -> str:
        lines = []
        for name, results in self.runs.items():
            lines.append(name)
            lines += [f"  {each.status}  {each.name}: {each.measured}" for each in results]
            lines += [] if results else ["  nothing to check"]
        return "\n".join(lines)

    def to_json(self) -> str:
        runs = {name: [asdict(each) for each in results] for name, results in self.runs.items()}
        return json.dumps({"passed": self.passed, "runs": runs})


def conform(where: Path, *, device: str | None = None, updates: bool = True) -> Conformance:
    """Check a run; `updates`: also compare those of one process with those of two.

    Raises:
        UserError: no finished run, or its data, tokenizer or encoder are missing.
    """
    place = devices(device, 1)[0]
    paths = [where]
    if is_pipeline(where.as_posix()):
        stages = load_run_pipeline(where).stages
        paths = [where / name for name, each in stages.items() if isinstance(each, TrainStage)]
        if not paths:
            raise UserError(f"{where}: none of its stages trains a model")
    return Conformance({path.name: _checked(path, place, updates=updates) for path in paths})


def _checked(path: Path, device: torch.device, *, updates: bool) -> list[CheckResult]:
    run = TrainedRun.open(path, device)
    checks = [*CHECKS, *(UPDATES if updates else ())]
    return [result for check in checks if (result := check(run)) is not None]
