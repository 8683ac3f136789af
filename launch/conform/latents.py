"""Whether latents are scaled to a standard deviation of 1, not that of one batch or rank alone."""

import torch

from launch.conform.check import CheckResult
from launch.conform.trained_run import TrainedRun
from trainer.tasks.first_stage import latent_target

SAMPLES, BATCH = 1024, 64
LARGEST = 0.02


def latent_scale(run: TrainedRun) -> CheckResult | None:
    """The latents that the network is trained on have mean 0 and standard deviation 1."""
    target, stage = latent_target(run.recipe.task), run.inputs.first_stage
    if target is None or stage is None:
        return None
    measured = target.model_copy(update={"scaling": stage.scaling})
    count = min(SAMPLES, len(run.inputs.dataset))
    values = torch.cat(
        [
            measured.clean(run.batch(min(BATCH, count - first), first), run.step(first).rng)
            for first in range(0, count, BATCH)
        ]
    ).double()
    mean, deviation = float(values.mean()), float(values.std(correction=0))
    words = f"mean {mean:.3f}, standard deviation {deviation:.3f} of {count} samples"
    passed = abs(deviation - 1) <= LARGEST and abs(mean) <= LARGEST
    return CheckResult("latents are scaled to 1", passed, f"{words} (tolerance {LARGEST})")
