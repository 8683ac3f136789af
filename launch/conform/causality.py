"""Whether an autoregressive prior is causal (a forgotten mask makes it see what it predicts)."""

import torch

from launch.conform.check import CheckResult
from launch.conform.trained_run import TrainedRun
from mezzotint.common.keyed_random import keyed_generator
from models.autoregressive.prior import Prior

POSITIONS = 8
LARGEST = 1e-5


@torch.no_grad()
def prior_causality(run: TrainedRun) -> CheckResult | None:
    """Another code at a position changes the logits after it and none up to it."""
    prior = run.model
    if not isinstance(prior, Prior):
        return None
    config, device = prior.config, run.device
    rng = keyed_generator(run.recipe.seed, "causality", device=device)
    shape = (1, config.image_length)
    codes = torch.randint(config.image_vocab, shape, generator=rng, device=device)
    text = torch.randint(config.text_vocab, (1, config.text_length), generator=rng, device=device)
    before = prior(text, codes).image
    last = config.image_length - 1
    before_it, after_it = 0.0, float("inf")
    for number in range(POSITIONS):
        position = number * (last - 1) // (POSITIONS - 1)
        other = codes.clone()
        other[0, position] = (other[0, position] + 1) % config.image_vocab
        change = (prior(text, other).image - before).abs().amax(dim=(0, 2))
        before_it = max(before_it, float(change[: position + 1].max()))
        after_it = min(after_it, float(change[position + 1 :].max()))
    measured = (
        f"another code changes the logits up to its position by {before_it:.1g} at most, and "
        f"those after it by {after_it:.2g} at least ({POSITIONS} positions)"
    )
    return CheckResult("prior is causal", before_it <= LARGEST < after_it, measured)
