"""Bits per dimension of pictures under a diffusion model (arXiv 2011.13456, 4.3 and D.2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.metrics.intervals import Score, bootstrap_mean
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.diffusion import DiffusionDrawer, Wish
from models.diffusion.likelihood import bits_per_value, dequantized
from models.diffusion.solvers.grids import LogSnrTimesConfig
from models.diffusion.solvers.solver import ProgressCallback

LEVELS = 256


@dataclass(frozen=True)
class Integration:
    """How the probability-flow ODE is followed."""

    steps: int = 64
    """Heun steps, equal in log signal-to-noise ratio; two calls and backward passes each."""
    start: float = 0.02
    """The time pictures are taken for: the density weighed is that of noisy data there."""
    probes: int = 1
    """Random vectors of Hutchinson's estimate."""
    seed: int = 0
    batch: int = 16


@dataclass(frozen=True)
class Bits:
    """The mean over pictures with its interval, and each picture's."""

    mean: Score
    each: Tensor
    """(n,)."""
    protocol: Mapping[str, object]


def bits_per_dimension(
    drawer: DiffusionDrawer,
    levels: Tensor,
    wishes: Sequence[Wish],
    integration: Integration,
    progress: ProgressCallback | None = None,
) -> Bits:
    """Of pictures (n, H, W, 3) uint8, each under what its wish tells the model.

    The density is the model's of data with the noise of the starting time, as good a density as
    any. Uniform dequantisation makes the mean an upper bound of the bits of the levels themselves,
    in expectation over the noise and up to the error of the steps.
    """
    diffusion, steps = drawer.diffusion, integration.steps
    times = LogSnrTimesConfig(last=integration.start).build(diffusion.schedule, steps)
    starts = range(0, len(levels), integration.batch)
    found = []
    for place, first in enumerate(starts):
        block = slice(first, first + integration.batch)

        def tell(done: int, total: int, place: int = place) -> None:
            if progress is not None:
                progress(place * total + done, len(starts) * total)

        rng = keyed_generator(integration.seed, "likelihood", first)
        images = dequantized(levels[block].movedim(-1, -3), rng, count=LEVELS)
        likelihood = diffusion.likelihood(
            images,
            drawer.condition(wishes[block]),
            rng,
            times=times,
            probes=integration.probes,
            progress=tell,
        )
        size = images[0].numel()
        found.append(bits_per_value(likelihood.log_density, size, count=LEVELS))
    each = torch.cat(found).double()
    return Bits(
        mean=bootstrap_mean(each, keyed_generator(integration.seed, "bits")),
        each=each,
        protocol={
            "digests": dict(drawer.digests),
            "ode": f"probability flow, {steps} Heun steps equal in log signal-to-noise ratio",
            "density": f"of noisy data at time {integration.start:g}",
            "divergence": f"Hutchinson, {integration.probes} probes of signs",
            "dequantisation": f"uniform over {LEVELS} levels",
            "prior": "N(0, sigma^2) at the noisy end",
            "interval": "95%, bootstrap over pictures",
            "precision": "fp32",
            "seed": integration.seed,
        },
    )
