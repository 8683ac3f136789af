"""Vector quantisation: the nearest of K learned vectors per position (VQ-VAE, arXiv 1711.00937)."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from models.autoencoders.bottleneck import Latent, Penalty, Statistics
from models.finite import require_finite
from models.nn import initialization
from models.nn.exact_buffers import ExactBuffers

CHUNK_CPU, CHUNK_GPU = 2**22, 2**26
"""Distances computed at a time; on a CPU they stay in its cache."""
MAX_CANDIDATES = 256


class VectorQuantizerConfig(BaseModel, frozen=True, extra="forbid"):
    """A codebook trained by gradient: |q - sg z|^2 + commitment x |z - sg q|^2 (eq. 3).

    `legacy_beta` puts the factor on the other term, as the first quantiser of taming-transformers
    and all weights trained with it do.
    """

    kind: Literal["vq"] = "vq"
    codes: int = Field(gt=1)
    commitment: float = Field(default=0.25, ge=0)
    legacy_beta: bool = False

    def inputs(self, channels: int) -> int:
        return channels

    def build(self, channels: int) -> "VectorQuantizer":
        return VectorQuantizer(self, channels)


class EmaVectorQuantizerConfig(BaseModel, frozen=True, extra="forbid"):
    """A codebook of moving averages of the vectors that chose each code (1711.00937, A.1).

    A code whose averaged count falls below `restart` times the mean count (positions / K) restarts
    at a random encoder output of the step; None disables that. All codes start unused, so that the
    first steps spread them over the encoder outputs.
    """

    kind: Literal["ema_vq"] = "ema_vq"
    codes: int = Field(gt=1)
    commitment: float = Field(default=0.25, ge=0)
    decay: float = Field(default=0.99, ge=0, lt=1)
    epsilon: float = Field(default=1e-5, gt=0)
    restart: float | None = Field(default=0.1, gt=0, lt=1)

    def inputs(self, channels: int) -> int:
        return channels

    def build(self, channels: int) -> "EmaVectorQuantizer":
        return EmaVectorQuantizer(self, channels)


class Quantizer(nn.Module, ABC):
    """Base class of the quantisers: a codebook (K, D)."""

    penalty: Penalty = "codebook"
    codebook: Tensor

    def forward(self, h: Tensor, rng: Generator) -> Latent:
        """Encoder outputs (B, D, h, w) to their nearest codes, in fp32."""
        with torch.autocast(h.device.type, enabled=False):
            flat = vectors(h)
            codebook = self.codebook.float()
            codes = nearest(flat, codebook)
            chosen = F.embedding(codes, codebook)
            usage = torch.bincount(codes, minlength=len(codebook))
            return Latent(
                value=straight_through(flat, chosen, h.shape),
                loss=self._loss(flat, chosen),
                codes=grid(codes, h.shape),
                usage=usage,
                statistics=self._observe(flat.detach(), codes, usage, rng),
            )

    @abstractmethod
    def _loss(self, flat: Tensor, chosen: Tensor) -> Tensor:
        """A mean over positions and channels, of (N, D) both."""

    def _observe(self, flat: Tensor, codes: Tensor, usage: Tensor, rng: Generator) -> Statistics:
        return Statistics(usage.float(), None, None)

    def mode(self, h: Tensor) -> Tensor:
        """The encoder's outputs before quantisation."""
        return h.float()

    def tokens(self, h: Tensor) -> Tensor:
        """Nearest codes (B, h, w) int64 of (B, D, h, w).

        Raises:
            NonFiniteError: encoder outputs are not finite.
        """
        require_finite("the encoder's output is", h)
        return grid(nearest(vectors(h), self.codebook.float()), h.shape)

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors (B, D, h, w) of codes (B, h, w), in fp32."""
        return F.embedding(codes, self.codebook.float()).movedim(-1, 1)


class VectorQuantizer(Quantizer):
    """Nearest codes with a straight-through gradient; the codebook follows its own loss."""

    def __init__(self, config: VectorQuantizerConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.codebook = nn.Parameter(torch.empty(config.codes, channels))
        initialization.uniform(self.codebook, 1 / config.codes)

    def _loss(self, flat: Tensor, chosen: Tensor) -> Tensor:
        to_code, to_vector = F.mse_loss(chosen, flat.detach()), F.mse_loss(flat, chosen.detach())
        beta = self.config.commitment
        first, second = (beta, 1.0) if self.config.legacy_beta else (1.0, beta)
        return first * to_code + second * to_vector


class EmaVectorQuantizer(ExactBuffers, Quantizer):
    """Nearest codes with a straight-through gradient; the codebook is averages, not parameters.

    A forward changes nothing; `commit` does, once per optimizer step, with the statistics of all
    micro-batches and processes. The averages stay in fp32 whatever the module is cast to.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, config: EmaVectorQuantizerConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        alive = 1.0 if config.restart is None else 0.0
        self.register_buffer("codebook", torch.empty(config.codes, channels))
        self.register_buffer("counts", torch.empty(config.codes))
        self.register_buffer("sums", torch.empty(config.codes, channels))
        initialization.normal(self.codebook, 1.0)
        initialization.constant(self.counts, alive)
        initialization.computed(self.sums, lambda: self.codebook * alive)

    def _loss(self, flat: Tensor, chosen: Tensor) -> Tensor:
        return self.config.commitment * F.mse_loss(flat, chosen)

    def _observe(self, flat: Tensor, codes: Tensor, usage: Tensor, rng: Generator) -> Statistics:
        sums = torch.zeros_like(self.sums).index_add_(0, codes, flat)
        candidates = None
        if self.config.restart is not None:
            count = min(len(flat), self.config.codes, MAX_CANDIDATES)
            picks = torch.randint(len(flat), (count,), generator=rng, device=flat.device)
            candidates = flat[picks]
        return Statistics(usage.float(), sums, candidates)

    @torch.no_grad()
    def commit(self, seen: Statistics, rng: Generator) -> int:
        """Move the averages towards the statistics of a step; returns how many codes restarted.

        N <- decay N + (1 - decay) n and m <- decay m + (1 - decay) sum z, code = m / N with N
        with Laplace smoothing, (N + eps) / (sum N + K eps) sum N (arXiv 1711.00937, A.1).
        All processes must give the same statistics and the same generator.
        """
        assert seen.sums is not None
        config = self.config
        self.counts.lerp_(seen.counts.to(self.counts), 1 - config.decay)
        self.sums.lerp_(seen.sums.to(self.sums), 1 - config.decay)
        restarted = 0
        if config.restart is not None and seen.candidates is not None:
            restarted = self._restart(seen, config.restart, rng)
        total = self.counts.sum()
        smooth = (self.counts + config.epsilon) / (total + config.codes * config.epsilon) * total
        self.codebook.copy_(self.sums / smooth[:, None])
        return restarted

    def _restart(self, seen: Statistics, threshold: float, rng: Generator) -> int:
        """Restart the least used dead codes at random encoder outputs."""
        assert seen.candidates is not None
        mean = seen.counts.sum() / self.config.codes
        dead = (self.counts < threshold * mean).nonzero()[:, 0]
        dead = dead[self.counts[dead].argsort(stable=True)][: len(seen.candidates)]
        order = torch.randperm(len(seen.candidates), generator=rng, device=rng.device)
        chosen = seen.candidates.to(self.sums)[order.to(dead.device)][: len(dead)]
        # it is replaced again at the earliest after ln 2 / (1 - decay) steps without use
        self.counts[dead] = 2 * threshold * mean
        self.sums[dead] = chosen * self.counts[dead, None]
        return len(dead)


def vectors(h: Tensor) -> Tensor:
    """(B, D, h, w) as one vector per position: (B h w, D) in fp32."""
    return h.float().movedim(1, -1).flatten(0, 2)


def grid(codes: Tensor, shape: torch.Size) -> Tensor:
    """Codes (B h w,) of encoder outputs of `shape` (B, D, h, w) as (B, h, w)."""
    return codes.view(shape[0], *shape[2:])


def nearest(flat: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest of K codes for each of N vectors (N, D): (N,) int64; no gradient.

    argmin |z - e|^2 = argmax z e - |e|^2 / 2.
    """
    with torch.no_grad():
        offset = -0.5 * codebook.square().sum(dim=1)
        chunk = CHUNK_CPU if flat.device.type == "cpu" else CHUNK_GPU
        parts = torch.split(flat, max(chunk // len(codebook), 1))
        return torch.cat([torch.addmm(offset, part, codebook.T).argmax(dim=1) for part in parts])


def straight_through(flat: Tensor, chosen: Tensor, shape: torch.Size) -> Tensor:
    """The chosen codes (B, D, h, w), whose gradient goes to the encoder's outputs unchanged."""
    value = flat + (chosen - flat).detach()
    return value.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
