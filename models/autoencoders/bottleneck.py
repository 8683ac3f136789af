"""Bottlenecks between an encoder and a decoder."""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from models.nn.random import gumbel_like


class Latent(NamedTuple):
    """What a bottleneck hands to the decoder."""

    value: Tensor
    """(B, C, h, w): what the decoder reads."""
    loss: Tensor
    """Scalar, per position and averaged over the batch, so independent of batch and image size."""
    codes: Tensor | None
    """(B, h, w) int64, or None where the bottleneck is continuous."""
    usage: Tensor | None
    """How many positions chose each code, (K,) int64, or None."""


class Bottleneck(Protocol):
    """Turns encoder outputs into a latent."""

    def __call__(self, h: Tensor, rng: Generator) -> Latent:
        """Encoder outputs (B, C, h, w) to a latent."""
        ...


class GumbelBottleneck(nn.Module):
    """A relaxed categorical code per position (dVAE of DALL-E, arXiv 2102.12092, 2.1 and A.3).

    `temperature` is a plain attribute: whoever trains anneals it. The sample is relaxed in the
    forward and in the backward pass.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, h: Tensor, rng: Generator) -> Latent:
        """Logits (B, K, h, w) to a sample on the simplex, softmax((logits + gumbel) / temperature).

        The loss is the KL divergence to the uniform prior, in nats per position.
        """
        logits = h.float()
        value = ((logits + gumbel_like(logits, rng)) / self.temperature).softmax(dim=1)
        codes = logits.argmax(dim=1)
        usage = torch.bincount(codes.flatten(), minlength=logits.shape[1])
        return Latent(value, kl_to_uniform(logits).mean(), codes, usage)


def kl_to_uniform(logits: Tensor) -> Tensor:
    """KL(softmax(logits) || uniform) over dim 1, in nats: (B, K, ...) to (B, ...).

    sum_k q_k ln q_k + ln K, between 0 (uniform) and ln K (one code).
    """
    log_q = logits.float().log_softmax(dim=1)
    return (log_q.exp() * log_q).sum(dim=1) + math.log(logits.shape[1])
