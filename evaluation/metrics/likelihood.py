"""Bits per dimension of images under a diffusion model (arXiv 2011.13456, 4.3 and D.2)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from evaluation.metrics.intervals import Score, bootstrap_mean
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.diffusion import DiffusionGenerator
from mezzotint.inference.generator import Prompt
from models.diffusion.likelihood import bits_per_value, dequantized
from models.diffusion.solvers.grids import LogSnrTimesConfig
from models.finite import require_finite
from models.nn.random import BatchGenerator

LEVELS = 256


@dataclass(frozen=True)
class Integration:
    """How the probability-flow ODE is integrated."""

    steps: int = 64
    """Heun steps, equal in log signal-to-noise ratio, of two network calls and backward passes."""
    start: float = 0.02
    """Time of the images: the density is that of the data with the noise of this time."""
    probes: int = 1
    """Random vectors of Hutchinson's estimate."""
    seed: int = 0
    batch: int = 16


@dataclass(frozen=True)
class Bits:
    """Bits per dimension: mean over images with its interval, and of each image."""

    mean: Score
    each: Tensor
    """(n,)."""
    protocol: Mapping[str, object]


def bits_per_dimension(
    generator: DiffusionGenerator,
    levels: Tensor,
    prompts: Sequence[Prompt],
    integration: Integration,
    progress: Callable[[int, int], None] | None = None,
    *,
    keys: Sequence[str] = (),
) -> Bits:
    """Bits per dimension of images (n, H, W, 3) uint8, each conditioned on its prompt.

    The density is the model's of data with the noise of the starting time, as good a density as
    any. Uniform dequantisation makes the mean an upper bound of the bits of the levels themselves,
    in expectation over the noise and up to the error of the steps. Each image has its own random
    generator, keyed by (seed, key): its bits do not depend on the other images. `keys` are by
    default its number.

    Raises:
        NonFiniteError: bits of an image are not finite.
    """
    runtime, size = generator.runtime, integration.batch
    times = LogSnrTimesConfig(last=integration.start).build(generator.schedule, integration.steps)
    blocks, named = -(-len(levels) // size), keys or [str(index) for index in range(len(levels))]

    def compute(block: range) -> Mapping[str, Tensor]:
        index, chosen = block.start // size, slice(block.start, block.stop)
        together = min(runtime.group.size, blocks - index)

        def report(done: int, total: int) -> None:
            if progress is not None:
                progress(index * total + together * done, blocks * total)

        rng = BatchGenerator.of(
            [keyed_generator(integration.seed, "likelihood", key) for key in named[chosen]]
        )
        images = dequantized(levels[chosen].movedim(-1, -3), rng, count=LEVELS)
        likelihood = generator.log_likelihood(
            images,
            prompts[chosen],
            rng,
            times=times,
            probes=integration.probes,
            progress=report,
        )
        bits = bits_per_value(likelihood.log_density, images[0].numel(), count=LEVELS)
        names = [f"sample '{key}'" for key in named[chosen]]
        require_finite("its bits per dimension are", bits, names)
        return {"bits": bits.cpu()}

    each = runtime.group.concatenate_blocks(compute, len(levels), size)["bits"].double()
    mean = bootstrap_mean(each, keyed_generator(integration.seed, "bits"))
    return Bits(mean, each, _protocol(generator, integration))


def _protocol(generator: DiffusionGenerator, integration: Integration) -> Mapping[str, object]:
    return {
        "digests": dict(generator.digests),
        "ode": f"probability flow, {integration.steps} Heun steps equal in log signal-to-noise "
        "ratio",
        "density": f"of noisy data at time {integration.start:g}",
        "divergence": f"Hutchinson, {integration.probes} probes of signs",
        "dequantisation": f"uniform over {LEVELS} levels",
        "prior": "N(0, sigma^2) at the noisy end",
        "randomness": "one generator per image, keyed by (seed, key)",
        "interval": "95%, bootstrap over images",
        "precision": "fp32",
        "seed": integration.seed,
    }
