"""Embeddings as codes: principal components, each in equal buckets (unCLIP, arXiv 2204.06125, 2.2).

Besides the components an embedding has a level: how similar it is to its caption's embedding,
compared with other pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mezzotint.common.errors import UserError
from models.nn import initialization
from models.nn.exact_buffers import ExactBuffers

FEWEST = 2
"""Embeddings of which components can be measured."""


@dataclass(frozen=True)
class CodecStatistics:
    """What codes refer to, measured over a sample of a set; all in fp32."""

    mean: Tensor
    """(D,)."""
    basis: Tensor
    """(components, D): unit vectors, by decreasing variance along them."""
    low: Tensor
    """(components,): the least coordinate."""
    high: Tensor
    """(components,): the largest."""
    edges: Tensor
    """(levels - 1,): similarities between levels that are equally frequent."""


def measure(
    vectors: Tensor, similarities: Tensor, *, components: int, levels: int
) -> CodecStatistics:
    """Of normalised embeddings (N, D) and the similarities (M,) of pairs, in float64.

    Raises:
        UserError: there are fewer than two embeddings, or all are equal.
    """
    if len(vectors) < FEWEST:
        raise UserError(
            f"the components of embeddings are measured over {FEWEST} samples at least, and the "
            f"set has {len(vectors)}"
        )
    values = vectors.double()
    mean = values.mean(dim=0)
    centred = values - mean
    variance, axes = torch.linalg.eigh(centred.T @ centred / len(values))
    if not float(variance[-1]) > 0:
        raise UserError("all embeddings of the set are equal: nothing can be learned from them")
    basis = axes.flip(1)[:, :components].T
    # an axis has no sign of its own
    largest = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
    basis = basis * largest.sign()
    scores = centred @ basis.T
    low, high = scores.amin(dim=0), scores.amax(dim=0)
    least = 1e-6 * float(variance[-1]) ** 0.5
    share = torch.arange(1, levels, dtype=torch.float64, device=values.device) / levels
    edges = similarities.double().quantile(share)
    found = (mean, basis, low, torch.maximum(high, low + least), edges)
    return CodecStatistics(*(each.float().contiguous() for each in found))


class EmbeddingCodec(ExactBuffers):
    """Normalised embeddings (B, D) to codes (B, components) and back.

    Its statistics are part of a model's weights, measured before training.
    """

    mean: Tensor
    basis: Tensor
    low: Tensor
    high: Tensor
    edges: Tensor

    def __init__(self, dim: int, components: int, buckets: int, levels: int) -> None:
        super().__init__()
        self.components, self.buckets, self.levels = components, buckets, levels
        starts = {
            "mean": ((dim,), 0.0),
            "basis": ((components, dim), 0.0),
            "low": ((components,), -1.0),
            "high": ((components,), 1.0),
            "edges": ((levels - 1,), 0.0),
        }
        for name, (shape, number) in starts.items():
            self.register_buffer(name, torch.empty(shape, dtype=torch.float32))
            initialization.constant(getattr(self, name), number)

    def use(self, statistics: CodecStatistics) -> None:
        """Take measured statistics; on the meta device they are noted until it has memory."""
        for name, value in vars(statistics).items():
            initialization.computed(getattr(self, name), value.clone)

    @property
    def is_measured(self) -> bool:
        """Whether there are statistics."""
        return bool(self.basis.any())

    def encode(self, vectors: Tensor) -> Tensor:
        """Codes (B, components) int64 in [0, buckets), by decreasing variance."""
        with torch.autocast(vectors.device.type, enabled=False):
            scores = (vectors.float() - self.mean) @ self.basis.T
        share = (scores - self.low) / (self.high - self.low)
        return (share * self.buckets).floor().long().clamp(0, self.buckets - 1)

    def decode(self, codes: Tensor) -> Tensor:
        """The middles of buckets as vectors (B, D)."""
        share = (codes.float() + 0.5) / self.buckets
        with torch.autocast(codes.device.type, enabled=False):
            return self.mean + (self.low + share * (self.high - self.low)) @ self.basis

    def level(self, similarity: Tensor) -> Tensor:
        """Levels (B,) int64 in [0, levels) of similarities (B,)."""
        return torch.bucketize(similarity.float(), self.edges, right=True)
