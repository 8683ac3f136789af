"""Whether a perceptual loss trains the network (it does not under `torch.no_grad`)."""

import torch
from torch import Tensor

from launch.conform.check import CheckResult
from launch.conform.trained_run import TrainedRun
from trainer.tasks.adversarial import AdversarialConfig
from trainer.tasks.reconstruction import ReconstructionConfig

SAMPLES = 4
SMALLEST = 1e-6
"""Relative change of the gradient below which the term is taken to have none."""


def perceptual_gradient(run: TrainedRun) -> CheckResult | None:
    """The autoencoder's gradient changes where the weight of the perceptual term is doubled."""
    config = run.recipe.task
    if not isinstance(config, AdversarialConfig | ReconstructionConfig):
        return None
    term = config.perceptual
    if term is None:
        return None
    doubled = term.model_copy(update={"weight": 2 * term.weight})
    before = _gradient(run, config)
    change = _gradient(run, config.model_copy(update={"perceptual": doubled})) - before
    relative = float(change.norm() / before.norm())
    measured = (
        f"doubling its weight changes the autoencoder's gradient by {relative:.2g} of its norm"
    )
    return CheckResult("perceptual loss has a gradient", relative > SMALLEST, measured)


def _gradient(run: TrainedRun, config: AdversarialConfig | ReconstructionConfig) -> Tensor:
    """Of the first loss, with respect to all weights of the autoencoder, as one vector."""
    task = config.build(run.model)
    weights = [weight for weight in run.model.parameters() if weight.requires_grad]
    loss = next(iter(task.losses(run.engines(), run.batch(SAMPLES), run.step())))
    found = torch.autograd.grad(loss.value, weights, allow_unused=True, materialize_grads=True)
    return torch.cat([each.flatten() for each in found])
