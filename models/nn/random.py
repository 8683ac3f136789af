"""Random draws from an explicit generator."""

import torch
from torch import Generator, Tensor


def randn_like(x: Tensor, rng: Generator) -> Tensor:
    """Standard normal noise of the shape, dtype and device of `x`."""
    return torch.randn(x.shape, generator=rng, dtype=x.dtype, device=x.device)


def gumbel_like(x: Tensor, rng: Generator) -> Tensor:
    """Standard Gumbel noise, -ln(-ln u) with u uniform, of the shape and device of `x`, in fp32."""
    uniform = torch.rand(x.shape, generator=rng, dtype=torch.float32, device=x.device)
    # a draw of exactly 0 would give an infinite logit
    return uniform.clamp_(min=torch.finfo(torch.float32).tiny).log_().neg_().log_().neg_()
