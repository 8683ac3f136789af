"""Random draws from an explicit generator."""

import torch
from torch import Generator, Tensor


def normal_like(x: Tensor, rng: Generator) -> Tensor:
    """Standard normal noise of the shape, dtype and device of `x`."""
    return torch.randn(x.shape, generator=rng, dtype=x.dtype, device=x.device)


def gumbel_like(x: Tensor, rng: Generator) -> Tensor:
    """Standard Gumbel noise, -ln E with E ~ Exp(1), of the shape and device of `x`, in fp32."""
    exponential = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    exponential.exponential_(generator=rng)
    # an exponential of exactly 0 would give an infinite logit
    return -exponential.clamp_(min=torch.finfo(torch.float32).tiny).log_()
