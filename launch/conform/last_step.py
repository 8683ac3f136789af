"""Whether the last timestep is trained (min-SNR and a schedule that ends in pure noise cancel)."""

import math

import torch

from launch.conform.check import CheckResult
from launch.conform.trained_run import TrainedRun
from mezzotint.common.keyed_random import keyed_generator
from models.diffusion.condition import Condition
from models.diffusion.process import DiffusionNetwork
from models.diffusion.weighting import SnrClamped
from trainer.tasks.denoising import DenoisingConfig
from trainer.tasks.objectives import objective

VALUES = (8, 4, 2, 2)


def last_timestep(run: TrainedRun) -> CheckResult | None:
    """The loss at t = 1 is finite, and so is its gradient, which is not 0."""
    config, network = run.recipe.task, run.model
    if not isinstance(config, DenoisingConfig) or not isinstance(network, DiffusionNetwork):
        return None
    process, device = network.process, run.device
    loss = objective(config.loss, config.weight or SnrClamped())
    rng = keyed_generator(run.recipe.seed, "last timestep", device=device)
    clean, noise = (torch.randn(VALUES, generator=rng, device=device) for _ in range(2))
    outputs = VALUES[1] * process.config.outputs
    raw = torch.zeros(VALUES[0], outputs, *VALUES[2:], device=device, requires_grad=True)
    times = torch.ones(VALUES[0], device=device)
    value = loss(lambda *_: raw, process, clean, Condition(), times, noise).value.mean()
    (gradient,) = torch.autograd.grad(value, raw)
    snr, norm = float(process.schedule.at(times[:1]).snr), float(gradient.norm())
    reached = float(value.detach())
    passed = math.isfinite(reached) and 0 < norm < math.inf
    measured = f"at t = 1 (SNR {snr:.3g}) the loss is {reached:.3g} and its gradient {norm:.3g}"
    return CheckResult("last timestep is trained", passed, measured)
