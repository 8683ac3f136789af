"""Bottlenecks between an encoder and a decoder."""

import math
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Generator, Tensor, nn

from models.autoencoders.gumbel_softmax import SMALL, gumbel_softmax
from models.nn.random import gumbel_like, randn_like

Penalty = Literal["kl", "codebook"]
"""The kind of a bottleneck's loss, which decides its weight in an objective."""


class Statistics(NamedTuple):
    """Codebook statistics of one forward pass, to be summed over micro-batches and processes.

    A forward pass changes no state: it may run twice (activation checkpointing).
    """

    counts: Tensor
    """How many positions chose each code, (K,) fp32."""
    sums: Tensor | None
    """Sum of the encoder outputs that chose each code, (K, D) fp32, where the codebook uses it."""
    candidates: Tensor | None
    """Some encoder outputs (R, D) fp32, where dead codes may restart."""


class Latent(NamedTuple):
    """The result of a bottleneck."""

    value: Tensor
    """(B, C, h, w), the input of the decoder."""
    loss: Tensor
    """Scalar, per position and averaged over the batch, so independent of batch and image size."""
    codes: Tensor | None = None
    """(B, h, w) int64, or None where the bottleneck is continuous."""
    usage: Tensor | None = None
    """How many positions chose each code, (K,) int64, or None."""
    rate: Tensor | None = None
    """KL divergence to the prior in nats per position, before any free bits, or None."""
    statistics: Statistics | None = None
    """For a codebook that `commit` updates, else None."""


class Identity(BaseModel, frozen=True, extra="forbid"):
    """A plain autoencoder, whose only bottleneck is the number of channels."""

    kind: Literal["identity"] = "identity"

    def inputs(self, channels: int) -> int:
        return channels

    def build(self, channels: int) -> "IdentityBottleneck":
        return IdentityBottleneck()


class IdentityBottleneck(nn.Module):
    """Passes the encoder's outputs on."""

    penalty: Penalty = "kl"

    def forward(self, h: Tensor, rng: Generator) -> Latent:
        return Latent(h, h.new_zeros((), dtype=torch.float32))

    def mode(self, h: Tensor) -> Tensor:
        return h


class Gaussian(BaseModel, frozen=True, extra="forbid"):
    """A diagonal gaussian per position against the standard normal prior (arXiv 1312.6114).

    A channel whose mean divergence is below `free_bits` bits per position is not penalised (arXiv
    1606.04934, C.8, per channel).
    """

    kind: Literal["gaussian"] = "gaussian"
    free_bits: float = Field(default=0.0, ge=0)

    def inputs(self, channels: int) -> int:
        """Encoder channels for a latent of `channels`: means, then log variances."""
        return 2 * channels

    def build(self, channels: int) -> "GaussianBottleneck":
        return GaussianBottleneck(self.free_bits)


class GaussianBottleneck(nn.Module):
    """Samples mean + exp(log variance / 2) noise; the loss is the KL divergence per position."""

    penalty: Penalty = "kl"

    def __init__(self, free_bits: float = 0.0) -> None:
        super().__init__()
        self.free_nats = free_bits * math.log(2)

    def forward(self, h: Tensor, rng: Generator) -> Latent:
        """Means and log variances (B, 2 C, h, w) to a sample (B, C, h, w) in fp32."""
        mean, log_variance = moments(h)
        value = mean + (0.5 * log_variance).exp() * randn_like(mean, rng)
        channels = kl_to_normal(mean, log_variance).mean(dim=(0, 2, 3))
        return Latent(value, channels.clamp(min=self.free_nats).sum(), rate=channels.sum())

    def mode(self, h: Tensor) -> Tensor:
        return moments(h)[0]


def moments(h: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance, clamped to [-30, 20], of (B, 2 C, h, w), in fp32."""
    mean, log_variance = h.float().chunk(2, dim=1)
    return mean, log_variance.clamp(-30.0, 20.0)


def kl_to_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp log_variance) || N(0, 1)) per element in nats (arXiv 1312.6114, B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)


class GumbelBottleneck(nn.Module):
    """A relaxed categorical code per position (dVAE of DALL-E, arXiv 2102.12092, 2.1 and A.3).

    `temperature` is a plain attribute that training anneals. The sample is relaxed in the forward
    and in the backward pass.
    """

    penalty: Penalty = "kl"

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, h: Tensor, rng: Generator) -> Latent:
        """Logits (B, K, h, w) to a sample on the simplex, softmax((logits + gumbel) / temperature).

        The loss is the KL divergence to the uniform prior, in nats per position.
        """
        logits = h.float()
        if logits.numel() > SMALL:
            value, negative_entropy, codes = gumbel_softmax(logits, self.temperature, rng)
            divergence = (negative_entropy + math.log(logits.shape[1])).mean()
        else:
            value = ((logits + gumbel_like(logits, rng)) / self.temperature).softmax(dim=1)
            codes = logits.argmax(dim=1)
            divergence = kl_to_uniform(logits).mean()
        usage = torch.bincount(codes.flatten(), minlength=logits.shape[1])
        statistics = Statistics(usage.float(), None, None)
        return Latent(value, divergence, codes, usage, divergence, statistics)


def kl_to_uniform(logits: Tensor) -> Tensor:
    """KL(softmax(logits) || uniform) over dim 1, in nats: (B, K, ...) to (B, ...).

    sum_k q_k ln q_k + ln K, between 0 (uniform) and ln K (one code).
    """
    log_q = logits.float().log_softmax(dim=1)
    return (log_q.exp() * log_q).sum(dim=1) + math.log(logits.shape[1])


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of code counts (K,), a scalar: K if all codes are used equally often."""
    share = counts.float() / counts.sum().clamp(min=1)
    return torch.special.entr(share).sum().exp()
